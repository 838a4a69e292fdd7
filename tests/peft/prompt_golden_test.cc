// Anchored prompts against a reference in torch, and multitask prompt tuning against PEFT
// (tests/golden/prompts).
#include <unistd.h>

#include <filesystem>
#include <sstream>

#include "models/generate.h"
#include "peft/adapter_file.h"
#include "tests/util/golden_forward.h"
#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

using nlohmann::json;

struct PromptCase {
  GoldenWorld world;  // an adapter, and lines of task 0
  std::vector<json> objects;
  SafetensorsFile expected;

  std::vector<float> Expected(const std::string& name) const {
    const TensorView* view = expected.Find(name);
    EXPECT_NE(view, nullptr) << name;
    if (view == nullptr) return {};
    std::vector<float> values(static_cast<size_t>(view->num_elements()));
    EXPECT_TRUE(ReadAsF32(*view, 0, absl::MakeSpan(values)).ok()) << name;
    return values;
  }
};

std::string PathOf(const std::string& kind, const std::string& model) {
  return absl::StrCat(PERMAFROST_GOLDEN, "/prompts/", kind, "-", model);
}

PromptCase OpenCase(const std::string& kind, const std::string& model) {
  PromptCase result;
  result.world = OpenGoldenWorld(model);
  const std::string path = PathOf(kind, model);
  auto expected = SafetensorsFile::Open(path + ".safetensors");
  EXPECT_TRUE(expected.ok()) << expected.status();
  result.expected = *std::move(expected);
  const auto lines =
      ReadTokenExamples(path + ".jsonl", {.vocabulary = 1 << 20, .virtual_ids = true});
  EXPECT_TRUE(lines.ok()) << lines.status();
  result.world.lines.clear();
  for (const TokenExample& e : *lines) {
    result.world.lines.push_back({e.input_ids, e.labels, 0, std::max(e.task_id, 0)});
  }
  std::istringstream text(*ReadFile(path + ".jsonl"));
  for (std::string line; std::getline(text, line);) result.objects.push_back(json::parse(line));
  return result;
}

// Logits, losses and greedy tokens line by line; losses and gradients of all lines in one batch.
void ExpectAgreement(PromptCase& p) {
  GoldenWorld& w = p.world;
  Context& c = *w.context;
  const Forward together = RunForward(c, *w.model, w.hooks(), w.lines, Outputs::kAll);
  for (size_t i = 0; i < w.lines.size(); ++i) {
    const TokenLine& line = w.lines[i];
    const Forward f = RunForward(c, *w.model, w.hooks(), {&line, 1}, Outputs::kAll);
    const double loss = p.Expected(absl::StrCat("loss.", i))[0];
    EXPECT_NEAR(f.losses[0], loss, kLossBound * loss) << i;
    EXPECT_NEAR(together.losses[i], loss, kLossBound * loss) << i;
    const std::vector<float> logits = p.Expected(absl::StrCat("logits.", i));
    ASSERT_GE(f.logits.size(), logits.size());
    EXPECT_LE(RelativeMaxDifference(absl::MakeConstSpan(f.logits).last(logits.size()), logits),
              kLogitBound)
        << i;
    const auto ids = Generate(c, *w.model, w.hooks(), 0, line.input_ids,
                              {.max_new_tokens = 8, .prompt = line.prompt}, nullptr);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, p.objects[i]["generated"].get<std::vector<int32_t>>()) << i;
  }

  const Batch batch = MakeBatch(w.model->layout(w.hooks()), w.lines, Outputs::kLabelled);
  const size_t targets = batch.target_labels.size();
  const std::vector<float> weights(targets, 1 / static_cast<float>(targets));
  c.tape.mode = TapeMode::kRecord;
  Backward(c, w.model->Loss(c, batch, w.hooks(), weights).loss, Tensor::From({1, 1}, {1}));
  c.tape.mode = TapeMode::kOff;
  for (const Parameter& parameter : w.adapter.method->parameters()) {
    ASSERT_TRUE(parameter.gradient()) << parameter.name();
    EXPECT_LE(RelativeNormDifference(parameter.gradient().values(),
                                     p.Expected("grad." + parameter.name())),
              1e-4)
        << parameter.name();
  }
}

class AnchoredGolden : public testing::TestWithParam<std::string> {};

TEST_P(AnchoredGolden, AgreesWithTheReference) {
  PromptCase p = OpenCase("anchored", GetParam());
  const std::vector<float> table = p.Expected("prompt_embeddings");
  const int64_t width = p.world.model->info().width;
  ASSERT_EQ(static_cast<int64_t>(table.size()), 5 * width);
  p.world.adapter = PromptAdapter(0, Tensor::From({5, width}, table), "{v*3} {text} {v*2}");
  EXPECT_EQ(p.world.hooks().VirtualTokens(0), 0);
  EXPECT_EQ(p.world.hooks().AnchoredTokens(0), 5);
  ExpectAgreement(p);
}

// Beside lines of a prompt in front and of no adapter, each line has the bits it has alone.
TEST_P(AnchoredGolden, MixesWithOthersInABatch) {
  PromptCase p = OpenCase("anchored", GetParam());
  Context& c = *p.world.context;
  const int64_t width = p.world.model->info().width;
  const Tensor table = Tensor::From({5, width}, p.Expected("prompt_embeddings"));
  AdapterSet set;
  set.Add("anchored", PromptAdapter(0, table.Clone(), "{v*5}").method);
  set.Add("front", PromptAdapter(1, table.Clone()).method);
  const TokenLine front{{5, 6, 7}, {5, 6, 7}, 1}, bare{{5, 6, 7}, {5, 6, 7}};
  const std::vector<TokenLine> mixed = {front, p.world.lines[0], bare, p.world.lines[1]};
  const Forward together = RunForward(c, *p.world.model, set, mixed, Outputs::kAll);
  for (size_t i = 0; i < mixed.size(); ++i) {
    const Forward alone = RunForward(c, *p.world.model, set, {&mixed[i], 1}, Outputs::kAll);
    EXPECT_EQ(together.losses[i], alone.losses[0]) << i;
  }
}

// The file remembers the template; P-tuning's becomes a prompt.
TEST_P(AnchoredGolden, FilesRememberTheTemplate) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/anchored_", getpid());
  GoldenWorld w = OpenGoldenWorld(GetParam());
  const std::string input = "{v*2} a {text}{v*3} \"{{b}}\"";
  const std::vector<Adapter> adapters = {
      FreshAdapter(PromptTuningConfig{.virtual_tokens = 5, .input_template = input}, 0, *w.context,
                   *w.model),
      FreshAdapter(PTuningConfig{.virtual_tokens = 5, .encoder_width = 3, .input_template = input},
                   0, *w.context, *w.model)};
  for (const Adapter& adapter : adapters) {
    EXPECT_EQ(adapter.method->InputTemplate(), input);
    ASSERT_TRUE(SaveAdapter(folder, adapter, *w.model).ok());
    const auto loaded = LoadAdapter(folder, 0, *w.context, *w.model);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->method->InputTemplate(), input);
    EXPECT_EQ(loaded->method->AnchoredTokens(0), 5);
    const Tensor a = adapter.method->FileTensors()[0].value,
                 b = loaded->method->FileTensors()[0].value;
    EXPECT_TRUE(std::equal(a.values().begin(), a.values().end(), b.values().begin()));
  }
  std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Models, AnchoredGolden, testing::Values("llama-1", "gpt2-1", "t5-v1_1-1"),
                         TestName);

TEST(Anchored, GenerateNeedsTheAdaptersVirtualTokens) {
  GoldenWorld w = OpenGoldenWorld("llama-1");
  w.adapter = FreshAdapter(PromptTuningConfig{.virtual_tokens = 2, .input_template = "{v*2} {x}"},
                           0, *w.context, *w.model);
  for (const std::vector<int32_t>& ids :
       {std::vector<int32_t>{5, 6}, {kVirtual, 5}, {kVirtual, kVirtual, kVirtual, 5}}) {
    EXPECT_FALSE(Generate(*w.context, *w.model, w.hooks(), 0, ids, {}, nullptr).ok());
  }
  const std::vector<int32_t> good = {5, kVirtual, 6, kVirtual};
  EXPECT_TRUE(Generate(*w.context, *w.model, w.hooks(), 0, good,
                       {.max_new_tokens = 2, .repetition_penalty = 1.5}, nullptr)
                  .ok());
  EXPECT_TRUE(Generate(*w.context, *w.model, w.hooks(), 0, good,
                       {.max_new_tokens = 2, .repetition_penalty = 1.5, .beams = 2}, nullptr)
                  .ok());
}

class MultitaskGolden : public testing::TestWithParam<std::string> {};

TEST_P(MultitaskGolden, AgreesWithPeft) {
  PromptCase p = OpenCase("multitask", GetParam());
  auto adapter = LoadAdapter(PathOf("multitask", GetParam()), 0, *p.world.context, *p.world.model);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  p.world.adapter = *std::move(adapter);
  EXPECT_EQ(p.world.adapter.method->Prompts(), 3);
  ExpectAgreement(p);
}

// What we write is the file that PEFT wrote: names, shapes, values, fields.
TEST_P(MultitaskGolden, FilesAreThoseOfPeft) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/multitask_", getpid());
  const std::string theirs = PathOf("multitask", GetParam());
  GoldenWorld w = OpenGoldenWorld(GetParam());
  const auto adapter = LoadAdapter(theirs, 0, *w.context, *w.model);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  ASSERT_TRUE(SaveAdapter(folder, *adapter, *w.model).ok());
  const auto a = SafetensorsFile::Open(theirs + "/adapter_model.safetensors"),
             b = SafetensorsFile::Open(folder + "/adapter_model.safetensors");
  ASSERT_TRUE(a.ok() && b.ok());
  ASSERT_EQ(a->tensors().size(), b->tensors().size());
  for (const TensorView& t : a->tensors()) {
    const TensorView* own = b->Find(t.name);
    ASSERT_NE(own, nullptr) << t.name;
    EXPECT_EQ(own->shape, t.shape) << t.name;
    std::vector<float> x(static_cast<size_t>(t.num_elements())), y(x.size());
    ASSERT_TRUE(ReadAsF32(t, 0, absl::MakeSpan(x)).ok());
    ASSERT_TRUE(ReadAsF32(*own, 0, absl::MakeSpan(y)).ok());
    EXPECT_EQ(x, y) << t.name;
  }
  const json x = json::parse(*ReadFile(theirs + "/adapter_config.json")),
             y = json::parse(*ReadFile(folder + "/adapter_config.json"));
  for (const auto& [field, value] : y.items()) {
    EXPECT_TRUE(x.contains(field)) << field;
    EXPECT_TRUE(field == "base_model_name_or_path" || value == x[field]) << field;
  }
  std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Models, MultitaskGolden,
                         testing::Values("llama-1", "gpt2-1", "t5-v1_1-1", "t5-v1_0-1"), TestName);

}  // namespace
}  // namespace permafrost
