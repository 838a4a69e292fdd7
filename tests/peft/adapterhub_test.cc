// AdapterHub folders against what the library computes with them, and the way back.
#include "peft/adapterhub.h"

#include <gmock/gmock.h>

#include <map>

#include "absl/strings/match.h"
#include "peft/trainer.h"
#include "tests/util/golden_forward.h"
#include "tests/util/golden_world.h"
#include "tests/util/hub_golden.h"

namespace permafrost {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kTask = 0;

// The adapters of one base.
class AdapterHubGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  AdapterHubGoldenTest() : hub_(OpenHubGolden(GetParam())) {
    for (TokenLine& line : hub_.golden.lines) line.task = kTask;
    auto model = OpenModel(c_, hub_.base);
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
  }
  std::string Folder(const std::string& adapter) const { return hub_.golden.adapter(adapter); }
  Adapter Load(const std::string& folder) {
    auto adapter = LoadAdapter(folder, kTask, c_, *model_);
    EXPECT_TRUE(adapter.ok()) << adapter.status();
    return adapter.ok() ? *std::move(adapter) : Adapter{};
  }
  void ExpectForward(const std::string& adapter, Hooks& hooks) {
    for (size_t i = 0; i < hub_.golden.lines.size(); ++i) {
      const Forward f = RunForward(c_, *model_, hooks, {&hub_.golden.lines[i], 1}, Outputs::kAll);
      const std::vector<float> logits = hub_.golden.Expected(absl::StrCat(adapter, ".logits.", i));
      EXPECT_LE(RelativeMaxDifference(f.logits, logits), kLogitBound) << adapter << " line " << i;
      const double loss = hub_.golden.Expected(absl::StrCat(adapter, ".loss.", i))[0];
      EXPECT_NEAR(f.losses[0], loss, kLossBound * std::abs(loss)) << adapter << " line " << i;
    }
  }

  Context c_;
  HubGolden hub_;
  std::unique_ptr<Model> model_;
};

TEST_P(AdapterHubGoldenTest, ForwardAgrees) {
  for (const std::string& adapter : hub_.names) {
    const Adapter loaded = Load(Folder(adapter));
    ASSERT_NE(loaded.method, nullptr) << adapter;
    ExpectForward(adapter, *loaded.method);
  }
}

// By the names of AdapterHub's file; the golden files carry up to 5e-5 of their own.
TEST_P(AdapterHubGoldenTest, GradientsAgree) {
  const std::string path = testing::TempDir() + "hub_gradients.safetensors";
  for (const std::string& adapter : hub_.names) {
    const Adapter loaded = Load(Folder(adapter));
    ASSERT_NE(loaded.method, nullptr) << adapter;
    AccumulateGradients(c_, *model_, *loaded.method,
                        std::vector<std::vector<TokenLine>>{hub_.golden.lines}, 0);
    ASSERT_TRUE(WriteGradients(path, *loaded.method).ok());
    const auto written = SafetensorsFile::Open(path);
    ASSERT_TRUE(written.ok()) << written.status();
    double squares = 0;
    for (const TensorView& t : written->tensors()) {
      std::vector<float> actual(static_cast<size_t>(t.num_elements()));
      ASSERT_TRUE(ReadAsF32(t, 0, absl::MakeSpan(actual)).ok());
      const std::vector<float> expected =
          hub_.golden.Expected(absl::StrCat(adapter, ".grad.", t.name));
      EXPECT_LE(RelativeNormDifference(actual, expected), 1e-4) << adapter << " " << t.name;
      for (const float g : actual) squares += static_cast<double>(g) * g;
    }
    // Nothing else is trained: no block of c_attn's B that the library does not have. (IA3's vector
    // of c_attn has a third for q, which stays 1 until it is trained.)
    const double norm = GradientNorm(loaded.method->parameters());
    if (adapter != "ia3") {
      EXPECT_NEAR(norm, std::sqrt(squares), 1e-6 * norm) << adapter;
    }
  }
}

// Written again, the tensors are the same bytes under the same names, and the config says the same.
TEST_P(AdapterHubGoldenTest, RoundTrip) {
  const std::string folder = testing::TempDir() + "hub_round_trip";
  for (const std::string& adapter : hub_.names) {
    const Adapter loaded = Load(Folder(adapter));
    ASSERT_NE(loaded.method, nullptr) << adapter;
    const absl::Status saved = SaveAdapterHub(folder, adapter, loaded, *model_);
    ASSERT_TRUE(saved.ok()) << adapter << ": " << saved;
    const auto before = SafetensorsFile::Open(Folder(adapter) + "/adapter.safetensors");
    const auto after = SafetensorsFile::Open(folder + "/adapter.safetensors");
    ASSERT_TRUE(before.ok() && after.ok());
    ASSERT_EQ(after->tensors().size(), before->tensors().size()) << adapter;
    for (size_t i = 0; i < before->tensors().size(); ++i) {
      EXPECT_EQ(after->tensors()[i].name, before->tensors()[i].name);
      EXPECT_EQ(after->tensors()[i].shape, before->tensors()[i].shape) << before->tensors()[i].name;
      EXPECT_TRUE(after->tensors()[i].bytes == before->tensors()[i].bytes)
          << adapter << " " << before->tensors()[i].name;
    }
    const Adapter again = Load(folder);
    ASSERT_NE(again.method, nullptr);
    ExpectForward(adapter, *again.method);
  }
}

// All adapters of a base and the bare base in one batch, each line twice.
TEST_P(AdapterHubGoldenTest, ABatchOfAllAdaptersGivesEachLineItsOwn) {
  AdapterSet set;
  std::vector<std::string> names = hub_.names;
  for (size_t i = 0; i < names.size(); ++i) {
    auto adapter = LoadAdapter(Folder(names[i]), static_cast<int>(i), c_, *model_);
    ASSERT_TRUE(adapter.ok()) << adapter.status();
    set.Add(names[i], adapter->method);
  }
  names.emplace_back("none");
  std::vector<TokenLine> lines;
  std::vector<std::string> expected;
  for (size_t i = 0; i < 3 * names.size(); ++i) {
    const size_t task = i % names.size(), line = i / names.size();
    lines.push_back(hub_.golden.lines[line]);
    lines.back().task = names[task] == "none" ? kNoTask : static_cast<int>(task);
    expected.push_back(absl::StrCat(names[task], ".loss.", line));
  }
  const Forward f = RunForward(c_, *model_, set, lines, Outputs::kAll);
  for (size_t i = 0; i < lines.size(); ++i) {
    const double loss = hub_.golden.Expected(expected[i])[0];
    EXPECT_NEAR(f.losses[i], loss, kLossBound * std::abs(loss)) << expected[i];
  }
}

// A candidate's score is minus the loss of the line that it makes, whatever a gate sees.
TEST_P(AdapterHubGoldenTest, CandidatesScoreAsLinesOfTheirOwn) {
  for (const std::string& adapter : hub_.names) {
    const Adapter loaded = Load(Folder(adapter));
    ASSERT_NE(loaded.method, nullptr) << adapter;
    const ChoiceLine choice{
        .input_ids = {5, 9, 17, 4}, .candidates = {{7}, {8, 30}, {8, 3, 11}}, .task = kTask};
    const auto scores = ScoreChoices(c_, *model_, *loaded.method, {&choice, 1}, Score::kSum, 1)[0];
    for (size_t i = 0; i < choice.candidates.size(); ++i) {
      const std::vector<int32_t>& candidate = choice.candidates[i];
      TokenLine line{choice.input_ids, candidate, kTask};
      if (!model_->info().encoder_decoder) {
        line.input_ids.insert(line.input_ids.end(), candidate.begin(), candidate.end());
        line.labels.insert(line.labels.begin(), choice.input_ids.size(), -100);
      }
      const Forward f = RunForward(c_, *model_, *loaded.method, {&line, 1}, Outputs::kAll);
      const double sum = -f.losses[0] * static_cast<double>(candidate.size());
      EXPECT_NEAR(scores[i], sum, 2 * kLossBound * std::abs(sum)) << adapter << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Bases, AdapterHubGoldenTest, testing::ValuesIn(HubGoldenNames()),
                         TestName);

// ---- one folder, changed

class AdapterHubFolderTest : public testing::Test {
 protected:
  void Open(const std::string& base, const std::string& adapter) {
    hub_ = OpenHubGolden(base);
    auto model = OpenModel(c_, hub_.base);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    folder_ = testing::TempDir() + "hub_folder";
    std::filesystem::remove_all(folder_);
    std::filesystem::copy(hub_.golden.adapter(adapter), folder_);
    const auto text = ReadFile(folder_ + "/adapter_config.json");
    ASSERT_TRUE(text.ok());
    config_ = nlohmann::json::parse(*text);
    auto file = SafetensorsFile::Open(folder_ + "/adapter.safetensors");
    ASSERT_TRUE(file.ok());
    tensors_.clear();
    for (const TensorView& t : file->tensors()) {
      std::vector<float> values(static_cast<size_t>(t.num_elements()));
      ASSERT_TRUE(ReadAsF32(t, 0, absl::MakeSpan(values)).ok());
      tensors_.push_back({t.name, t.shape, Tensor::From({1, t.num_elements()}, values)});
    }
  }
  // The folder with config_ and tensors_ as they are now.
  absl::StatusOr<Adapter> Load() {
    std::vector<TensorView> views;
    for (const FileTensor& t : tensors_)
      views.push_back(F32View(t.name, t.shape, t.value.values()));
    EXPECT_TRUE(WriteSafetensors(folder_ + "/adapter.safetensors", views).ok());
    EXPECT_TRUE(WriteFileAtomically(folder_ + "/adapter_config.json", config_.dump()).ok());
    return LoadAdapter(folder_, kTask, c_, *model_);
  }
  std::string Error() {
    const auto adapter = Load();
    return adapter.ok() ? "" : std::string(adapter.status().message());
  }
  FileTensor& Named(const std::string& end) {
    for (FileTensor& t : tensors_) {
      if (absl::EndsWith(t.name, end)) return t;
    }
    ADD_FAILURE() << end;
    return tensors_[0];
  }
  // Logits of the golden lines with an adapter.
  std::vector<float> Logits(const Adapter& adapter) {
    for (TokenLine& line : hub_.golden.lines) line.task = kTask;
    return RunForward(c_, *model_, *adapter.method, hub_.golden.lines, Outputs::kAll).logits;
  }

  Context c_;
  HubGolden hub_;
  std::unique_ptr<Model> model_;
  std::string folder_;
  nlohmann::json config_;
  std::vector<FileTensor> tensors_;
};

TEST_F(AdapterHubFolderTest, PicklesHeadsAndInterfaces) {
  Open("qwen2-1", "parallel");
  // Beside the adapter the library leaves these.
  for (const char* name : {"head_config.json", "model_head.safetensors", "adapter_interface.json",
                           "pytorch_adapter.bin"}) {
    ASSERT_TRUE(
        WriteFileAtomically(folder_ + "/" + name, std::string_view("no file of ours")).ok());
  }
  EXPECT_EQ(Error(), "");
  std::filesystem::remove(folder_ + "/adapter.safetensors");
  const auto pickle = LoadAdapter(folder_, kTask, c_, *model_);
  EXPECT_THAT(std::string(pickle.status().message()),
              AllOf(HasSubstr("pytorch_adapter.bin"), HasSubstr("use_safetensors=True")));
  std::filesystem::remove(folder_ + "/pytorch_adapter.bin");
  const auto nothing = LoadAdapter(folder_, kTask, c_, *model_);
  EXPECT_THAT(std::string(nothing.status().message()), HasSubstr("adapter.safetensors"));
}

TEST_F(AdapterHubFolderTest, TensorsAreStrict) {
  Open("gpt2-1", "lora");
  EXPECT_EQ(Error(), "");
  const std::vector<FileTensor> whole = tensors_;
  const std::string name = "transformer.h.1.attn.c_attn.loras.lora.lora_A";
  std::erase_if(tensors_, [&](const FileTensor& t) { return t.name == name; });
  EXPECT_THAT(Error(), HasSubstr("missing " + name));
  tensors_ = whole;
  tensors_.push_back({"transformer.h.0.mlp.c_fc.loras.lora.lora_A", {1}, Tensor::Zeros({1, 1})});
  EXPECT_THAT(Error(), HasSubstr("unused transformer.h.0.mlp.c_fc"));
  tensors_ = whole;
  Named("h.0.attn.c_attn.loras.lora.lora_B").shape = {6, 30};
  EXPECT_THAT(Error(), HasSubstr("expected [60, 3], found [6, 30]"));
  tensors_ = whole;
  Named("lora_B").value.f32()[3] = std::nanf("");
  EXPECT_THAT(Error(), HasSubstr("NaN"));
  tensors_ = whole;
  config_["name"] = "other";  // than the tensors'
  EXPECT_THAT(Error(), AllOf(HasSubstr("missing"), HasSubstr("unused")));
}

// A width that a config asks for has to be that of a file before anything is made of it.
TEST_F(AdapterHubFolderTest, HugeSizesCostNothing) {
  Open("gpt2-1", "parallel_gated");
  config_["config"]["reduction_factor"] = 1e-6;
  EXPECT_THAT(Error(), HasSubstr("adapter_down.1.weight: expected [30000000, 30], found [3, 30]"));
  Open("gpt2-1", "prefix_mlp");
  config_["config"]["prefix_length"] = 1 << 20;
  EXPECT_THAT(Error(), HasSubstr("expected [1048576, 30], found [3, 30]"));
}

// Converted pickles hold a prefix once more under every attention.
TEST_F(AdapterHubFolderTest, CopiesOfATableHaveToBeEqual) {
  Open("t5-v1_0-2", "prefix_flat");
  const auto original = Load();
  ASSERT_TRUE(original.ok()) << original.status();
  const std::vector<FileTensor> whole = tensors_;
  for (const char* attention :
       {"encoder.block.1.layer.0.SelfAttention", "decoder.block.2.layer.1.EncDecAttention"}) {
    for (const FileTensor& t : whole) {
      const std::string rest = t.name.substr(sizeof("prefix_tuning") - 1);
      tensors_.push_back({absl::StrCat(attention, ".prefix_tuning.pool", rest), t.shape, t.value});
    }
  }
  const std::vector<FileTensor> copied = tensors_;
  const auto with_copies = Load();
  ASSERT_TRUE(with_copies.ok()) << with_copies.status();
  EXPECT_EQ(Logits(*with_copies), Logits(*original));

  tensors_.erase(tensors_.begin(), tensors_.begin() + static_cast<std::ptrdiff_t>(whole.size()));
  const auto only_copies = Load();
  ASSERT_TRUE(only_copies.ok()) << only_copies.status();
  EXPECT_EQ(Logits(*only_copies), Logits(*original));

  tensors_ = copied;
  FileTensor& last = tensors_.back();
  last.value = last.value.Clone();
  last.value.f32()[0] += 1;
  EXPECT_THAT(Error(), AllOf(HasSubstr(last.name), HasSubstr("expected the values of")));
}

TEST_F(AdapterHubFolderTest, WhatTheLibraryCannotRunIsRefused) {
  Open("t5-v1_0-2", "prefix_flat");
  config_["config"]["leave_out"] = {0};
  std::erase_if(tensors_, [](const FileTensor& t) { return absl::StrContains(t.name, "encoder"); });
  EXPECT_THAT(Error(), HasSubstr("leave_out"));

  const nlohmann::json prefix = {{"architecture", "prefix_tuning"}, {"flat", true}};
  Open("llama-2", "lora");
  config_["config"] = prefix;
  EXPECT_THAT(Error(), HasSubstr("head_dim 10"));
  Open("qwen2-1", "parallel");
  config_["config"] = prefix;
  EXPECT_THAT(Error(), HasSubstr("no prefixes for qwen2"));

  Open("qwen2-1", "union");
  config_["config"]["configs"][1] = config_["config"]["configs"][0];
  EXPECT_THAT(Error(), HasSubstr("different places"));
  Open("gpt2-1", "bottleneck_lost");
  config_["config"]["reduction_factor"] = {{"0", 9}};
  EXPECT_THAT(Error(), HasSubstr("expected a value for layer 1"));
  config_["config"]["output_adapter"] = false;
  EXPECT_THAT(Error(), HasSubstr("acts somewhere"));
  Open("gpt2-1", "bottleneck_lost");
  config_["config"]["non_linearity"] = "mish";
  EXPECT_THAT(Error(), HasSubstr("found mish"));
}

// Our own methods, written for AdapterHub: read again they compute the same, or the error says why
// they cannot be written.
TEST_F(AdapterHubFolderTest, OwnMethodsAreWrittenOrRefused) {
  const std::map<std::string, std::string> refused = {
      {"prompt", "prompt tuning"}, {"ptuning", "P-tuning"}, {"full", "fully trained"},
      {"unipelt", "AdapterHub"},   {"bitfit", "BitFit"},    {"lora", "adapter of"}};
  for (const std::string base : {"gpt2-1", "t5-v1_1-1", "llama-square", "qwen2-1"}) {
    Open(base, base == "qwen2-1" ? "union" : "ia3");
    for (const std::string method : {"prompt", "ptuning", "full", "unipelt", "bitfit", "lora",
                                     "prefix", "houlsby", "pfeiffer", "parallel", "mam"}) {
      const Adapter adapter =
          FreshAdapter(ConfigNamed(method, model_->info().model_type), kTask, c_, *model_);
      MoveParameters(*adapter.method, 0.1);
      const absl::Status saved = SaveAdapterHub(folder_, "own", adapter, *model_);
      const std::string message(saved.message());
      const auto why = refused.find(method);
      // Prefixes of our own leave T5's text where it is, and put a decoder's behind them.
      const bool prefix =
          method == "prefix" || (method == "mam" && base != "llama-square" && base != "gpt2-1");
      if (prefix || why != refused.end()) {
        EXPECT_FALSE(saved.ok()) << base << " " << method;
        if (prefix) continue;
        EXPECT_THAT(message, HasSubstr(why->second)) << base << " " << method;
        continue;
      }
      ASSERT_TRUE(saved.ok()) << base << " " << method << ": " << saved;
      const auto again = LoadAdapter(folder_, kTask, c_, *model_);
      ASSERT_TRUE(again.ok()) << base << " " << method << ": " << again.status();
      EXPECT_LE(RelativeMaxDifference(Logits(*again), Logits(adapter)), kLogitBound)
          << base << " " << method;
    }
  }
}

}  // namespace
}  // namespace permafrost
