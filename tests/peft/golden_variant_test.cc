// Adapters of tests/golden/adapters against PEFT (prefixes, norms and DoRA on every base; on three
// of them biases, embeddings, whole modules, patterns and AdaLoRA) and, for methods that PEFT does
// not have, against the equations in torch (UniPELT and mix-and-match, bottleneck adapters, BitFit,
// trained heads and top layers): logits, losses, gradients, ten steps of AdamW, files.
#include <unistd.h>

#include <cstring>

#include "tests/util/golden_adapter.h"
#include "tests/util/merged_hooks.h"

namespace permafrost {
namespace {

namespace fs = std::filesystem;

constexpr int kTask = 0;

// "dora/llama-1", for each folder that there is.
std::vector<std::string> VariantNames() {
  std::vector<std::string> names;
  const std::string root = std::string(PERMAFROST_GOLDEN) + "/adapters";
  for (const auto& kind : fs::directory_iterator(root)) {
    if (!kind.is_directory()) continue;
    for (const auto& world : fs::directory_iterator(kind.path())) {
      names.push_back(fs::relative(world.path(), root).generic_string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

// The lines of the world with the adapter's figures.
GoldenCase OpenVariant(const std::string& name) {
  GoldenCase golden = OpenGoldenCase(name.substr(name.find('/') + 1));
  const std::string folder = absl::StrCat(PERMAFROST_GOLDEN, "/adapters/", name);
  auto expected = SafetensorsFile::Open(folder + "/expected.safetensors");
  EXPECT_TRUE(expected.ok()) << expected.status();
  golden.expected = *std::move(expected);
  const auto text = ReadFile(folder + "/case.json");
  EXPECT_TRUE(text.ok()) << text.status();
  golden.settings = *ParseJson(*text, "case.json");
  for (TokenLine& line : golden.lines) line.task = kTask;
  return golden;
}

class GoldenVariantTest : public testing::TestWithParam<std::string> {
 protected:
  GoldenVariantTest()
      : folder_(absl::StrCat(PERMAFROST_GOLDEN, "/adapters/", GetParam())),
        golden_(OpenVariant(GetParam())) {
    auto model = OpenModel(c_, golden_.folder);
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
  }
  Adapter Load(const std::string& folder) {
    auto adapter = LoadAdapter(folder, kTask, c_, *model_);
    EXPECT_TRUE(adapter.ok()) << adapter.status();
    return *std::move(adapter);
  }

  Context c_;
  std::string folder_;
  GoldenCase golden_;
  std::unique_ptr<Model> model_;
};

TEST_P(GoldenVariantTest, ForwardAgrees) {
  const Adapter adapter = Load(folder_);
  ExpectGolden(golden_, "adapter", c_, *model_, *adapter.method, kTask);
}

TEST_P(GoldenVariantTest, GradientsAgree) {
  for (const Recompute recompute : {Recompute::kNone, Recompute::kAttention, Recompute::kLayers}) {
    c_.recompute = recompute;
    const Adapter adapter = Load(folder_);
    AddGradient(c_, *model_, *adapter.method, golden_.lines);
    ExpectGoldenGradients(golden_, "adapter", *adapter.method);
  }
}

TEST_P(GoldenVariantTest, TenStepsOfAdamWAgree) {
  const Adapter adapter = Load(folder_);
  ExpectGoldenTraining(
      golden_, "adapter", c_, *model_, *adapter.method,
      golden_.settings["not_compared_after_training"].get<std::vector<std::string>>());
}

// What a base can hold is the same when merged: each form may be kLogitBound from the exact
// function.
TEST_P(GoldenVariantTest, AMergedModelIsTheAdaptedOne) {
  const Adapter adapter = Load(folder_);
  const std::string& kind = GetParam();
  const bool decoder = kind.find("/t5") == std::string::npos;
  const bool tied = model_->head_tensor() == model_->embedding_tensor();
  const bool has_biases = kind.find("/gpt2") != std::string::npos;
  const bool acts_between = kind.starts_with("prefix") || kind.starts_with("unipelt") ||
                            kind.starts_with("mam") || kind.starts_with("houlsby") ||
                            kind.starts_with("parallel");
  const bool no_place_for_biases =
      kind.starts_with("bitfit") && !has_biases && kind != "bitfit/qwen2-1";
  const bool expected = !acts_between && !no_place_for_biases &&
                        !(kind.starts_with("embedding") && (tied || !decoder)) &&
                        !(kind.starts_with("modules_to_save") && tied) &&
                        !(kind.starts_with("lora_bias") && !has_biases);
  ASSERT_EQ(adapter.method->mergeable(), expected);
  if (!expected) return;
  Merged merged(c_, *model_, *adapter.method);
  const Forward a = RunForward(c_, *model_, *adapter.method, golden_.lines, Outputs::kAll);
  const Forward b = RunForward(c_, *model_, merged, golden_.lines, Outputs::kAll);
  EXPECT_LE(RelativeMaxDifference(b.logits, a.logits), 2 * kLogitBound);
}

// Every tensor of the file is written again with its name, shape and bits. The frozen embedding
// that PEFT adds to an adapter on it is not.
TEST_P(GoldenVariantTest, TheFileIsWrittenAsItWasRead) {
  const std::string out = absl::StrCat(testing::TempDir(), "/variant_", getpid());
  ASSERT_TRUE(SaveAdapter(out, Load(folder_), *model_).ok());
  const auto before = SafetensorsFile::Open(folder_ + "/adapter_model.safetensors");
  const auto after = SafetensorsFile::Open(out + "/adapter_model.safetensors");
  ASSERT_TRUE(before.ok() && after.ok());
  size_t copies = 0;
  for (const TensorView& t : before->tensors()) {
    if (t.name.ends_with("embed_tokens.base_layer.weight")) {
      ++copies;
      continue;
    }
    const TensorView* written = after->Find(t.name);
    ASSERT_NE(written, nullptr) << t.name;
    EXPECT_EQ(written->shape, t.shape) << t.name;
    EXPECT_EQ(std::memcmp(written->bytes.data(), t.bytes.data(), t.bytes.size()), 0) << t.name;
  }
  EXPECT_EQ(before->tensors().size(), after->tensors().size() + copies);
  const auto text = ReadFile(folder_ + "/adapter_config.json");
  const auto again = ReadFile(out + "/adapter_config.json");
  const nlohmann::json want = *ParseJson(*text, "config"), got = *ParseJson(*again, "config");
  for (const auto& [field, value] : want.items()) {
    if (!got.contains(field) || field == "base_model_name_or_path") continue;
    EXPECT_EQ(got[field], value) << field;
  }
  fs::remove_all(out);
}

INSTANTIATE_TEST_SUITE_P(Adapters, GoldenVariantTest, testing::ValuesIn(VariantNames()), TestName);

}  // namespace
}  // namespace permafrost
