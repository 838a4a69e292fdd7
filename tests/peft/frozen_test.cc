// Frozen by construction, determinism and exact resume, for every method on every golden base.
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>

#include "gtest/gtest.h"
#include "io/examples.h"
#include "io/file.h"
#include "peft/trainer.h"

namespace permafrost {
namespace {

struct World {
  std::unique_ptr<Context> context;
  std::unique_ptr<Model> model;
  Adapter adapter;
  std::vector<TokenLine> lines;
};

World MakeWorld(const std::string& shape, MethodKind kind, int threads) {
  World w;
  const std::string folder = PERMAFROST_GOLDEN "/models/" + shape;
  w.context = std::make_unique<Context>(threads);
  w.model = *OpenModel(*w.context, folder);
  AdapterConfig config;
  config.kind = kind;
  config.virtual_tokens = 5;
  config.lora.rank = 3;
  config.lora.dropout = 0.1;
  config.lora.targets = {"all-linear"};
  Random random(7);
  Tensor prompt({5, w.model->info().width});
  for (int64_t i = 0; i < prompt.count(); ++i)
    prompt.f32()[i] = static_cast<float>(random.Normal());
  w.adapter = *CreateAdapter(config, 0, *w.context, *w.model, random, prompt);
  const TokenOptions options{.vocabulary = static_cast<int>(w.model->info().vocabulary),
                             .equal_length = !w.model->info().encoder_decoder,
                             .need_labels = true};
  const std::vector<TokenExample> examples =
      ReadTokenExamples(folder + "/data.jsonl", options).value();
  for (const TokenExample& e : examples) {
    w.lines.push_back(
        {{e.input_ids.begin(), e.input_ids.end()}, {e.labels.begin(), e.labels.end()}, 0});
  }
  return w;
}

TrainOptions Options(const std::string& name) {
  TrainOptions o;
  o.out = testing::TempDir() + "/frozen_" + name + std::to_string(getpid());
  o.steps = 5;
  o.batch_size = 3;
  o.accumulate = 2;
  o.optimizer.learning_rate = 1e-3;
  o.seed = 11;
  o.settings = "test";
  return o;
}

std::string AdapterBytes(const TrainOptions& o) {
  return *ReadFile(o.out + "/adapter_model.safetensors");
}

class Frozen : public testing::TestWithParam<std::tuple<const char*, MethodKind>> {};

TEST_P(Frozen, GradientAndOptimizerBytesFollowFromTrainableBytes) {
  World w = MakeWorld(std::get<0>(GetParam()), std::get<1>(GetParam()), 1);
  const int64_t trainable = w.adapter.method->parameters().count() * 4;
  const int64_t gradient_before = MemoryOf(MemoryTag::kGradient).live;
  const int64_t optimizer_before = MemoryOf(MemoryTag::kOptimizer).live;
  Optimizer optimizer({}, w.adapter.method->parameters());
  EXPECT_EQ(MemoryOf(MemoryTag::kOptimizer).live - optimizer_before, 2 * trainable);
  AccumulateGradients(*w.context, *w.model, *w.adapter.method,
                      std::vector<std::vector<TokenLine>>{w.lines}, 0);
  EXPECT_EQ(MemoryOf(MemoryTag::kGradient).live - gradient_before, trainable);
}

TEST_P(Frozen, EveryParameterMovesAndNoBaseByteDoes) {
  World w = MakeWorld(std::get<0>(GetParam()), std::get<1>(GetParam()), 1);
  std::vector<uint64_t> checksums;
  std::vector<Tensor> vectors;
  for (const BaseTensor& t : w.model->tensors()) {
    checksums.push_back(t.weight != nullptr ? t.weight->Checksum() : 0);
    vectors.push_back(t.weight != nullptr ? Tensor() : t.vector.Clone());
  }
  std::vector<Tensor> before;
  for (const Parameter& p : w.adapter.method->parameters()) before.push_back(p.value().Clone());
  const TrainOptions options = Options("moves");
  const auto result =
      Train(*w.context, *w.model, w.adapter, *w.adapter.method, w.lines, nullptr, options, {});
  ASSERT_TRUE(result.ok()) << result.status();
  for (size_t i = 0; i < before.size(); ++i) {
    const Tensor& now = w.adapter.method->parameters()[i].value();
    EXPECT_NE(std::memcmp(before[i].raw(), now.raw(), now.bytes()), 0)
        << w.adapter.method->parameters()[i].name();
  }
  for (size_t i = 0; i < checksums.size(); ++i) {
    const BaseTensor& t = w.model->tensors()[i];
    if (t.weight != nullptr) {
      EXPECT_EQ(t.weight->Checksum(), checksums[i]) << t.name;
    } else {
      EXPECT_EQ(std::memcmp(t.vector.raw(), vectors[i].raw(), vectors[i].bytes()), 0) << t.name;
    }
  }
  std::filesystem::remove_all(options.out);
}

TEST_P(Frozen, SameBytesForOneAndTwoThreadsAndAfterResume) {
  const auto [shape, kind] = GetParam();
  const TrainOptions whole = Options("whole");
  {
    World w = MakeWorld(shape, kind, 1);
    ASSERT_TRUE(
        Train(*w.context, *w.model, w.adapter, *w.adapter.method, w.lines, nullptr, whole, {})
            .ok());
  }
  const TrainOptions threaded = Options("threads");
  {
    World w = MakeWorld(shape, kind, 2);
    ASSERT_TRUE(
        Train(*w.context, *w.model, w.adapter, *w.adapter.method, w.lines, nullptr, threaded, {})
            .ok());
  }
  EXPECT_EQ(AdapterBytes(whole), AdapterBytes(threaded));

  TrainOptions cut = Options("cut");
  std::atomic<bool> interrupt{false};
  TrainEvents events;
  events.interrupt = &interrupt;
  events.on_step = [&](const StepReport& r) { interrupt = r.step == 2; };
  {
    World w = MakeWorld(shape, kind, 1);
    const auto first =
        Train(*w.context, *w.model, w.adapter, *w.adapter.method, w.lines, nullptr, cut, events);
    ASSERT_TRUE(first.ok() && first->interrupted && first->steps == 2);
  }
  cut.resume = true;
  {
    World w = MakeWorld(shape, kind, 2);
    ASSERT_TRUE(
        Train(*w.context, *w.model, w.adapter, *w.adapter.method, w.lines, nullptr, cut, {}).ok());
  }
  EXPECT_EQ(AdapterBytes(whole), AdapterBytes(cut));
  for (const TrainOptions& o : {whole, threaded, cut}) std::filesystem::remove_all(o.out);
}

INSTANTIATE_TEST_SUITE_P(
    All, Frozen,
    testing::Combine(testing::Values("t5-v1_0-1", "t5-v1_1-1", "llama-1", "qwen2-1", "gpt2-1"),
                     testing::Values(MethodKind::kPrompt, MethodKind::kLora, MethodKind::kFull)));

// A causal prompt costs P rows, not B * P; a mixed batch gives each line what it has alone.
TEST(SharedRows, CausalPromptOnceAndMixedAdapters) {
  World w = MakeWorld("llama-1", MethodKind::kPrompt, 1);
  const Batch batch = MakeBatch(w.model->layout(*w.adapter.method), w.lines, Outputs::kLabelled);
  int64_t text = 0;
  for (const TokenLine& line : w.lines) text += static_cast<int64_t>(line.input_ids.size());
  EXPECT_EQ(batch.decoder.rows.count(), 5 + text);

  AdapterSet set;
  set.Add("first", std::move(w.adapter.method));
  const std::string lora = PERMAFROST_GOLDEN "/models/llama-1/adapters/lora";
  Adapter second = *LoadAdapter(lora, 1, *w.context, *w.model);
  set.Add("second", std::move(second.method));
  std::vector<TokenLine> mixed = w.lines;
  for (size_t i = 0; i < mixed.size(); ++i) mixed[i].task = static_cast<int>(i % 3) - 1;
  const LineLosses together =
      ComputeLosses(*w.context, *w.model, set, mixed, static_cast<int64_t>(mixed.size()));
  for (size_t i = 0; i < mixed.size(); ++i) {
    const LineLosses alone = ComputeLosses(*w.context, *w.model, set, {&mixed[i], 1}, 1);
    EXPECT_NEAR(together.per_line[i], alone.mean, 1e-5 * alone.mean) << i;
  }
}

// Nothing below the first trainable tensor is recorded: with a LoRA in the last layer only, that
// layer's ops.
TEST(SavedPerNeed, NothingBelowTheFirstTrainableTensor) {
  World w = MakeWorld("llama-1", MethodKind::kLora, 1);
  AdapterConfig config;
  config.kind = MethodKind::kLora;
  config.lora.targets = {"down_proj"};
  config.lora.layers = {static_cast<int>(w.model->info().layers) - 1};
  Random random(1);
  Adapter adapter = *CreateAdapter(config, 0, *w.context, *w.model, random, {});
  const Batch batch = MakeBatch(w.model->layout(*adapter.method), w.lines, Outputs::kLabelled);
  const std::vector<float> weights(batch.target_labels.size(), 1.0f);
  w.context->tape.mode = TapeMode::kRecord;
  w.model->Loss(*w.context, batch, *adapter.method, weights);
  std::vector<std::string> names;
  for (const Tape::Node& n : w.context->tape.nodes()) names.push_back(n.name);
  EXPECT_EQ(names, (std::vector<std::string>{"AddLowRank", "Add", "RmsNorm", "HeadCrossEntropy"}));
  w.context->tape.Clear();
}

}  // namespace
}  // namespace permafrost
