// Frozen by construction, determinism and exact resume, for every method on every golden base.
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>

#include "gtest/gtest.h"
#include "io/file.h"
#include "peft/trainer.h"
#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

GoldenWorld MakeWorld(const std::string& shape, const std::string& method, int threads) {
  GoldenWorld w = OpenGoldenWorld(shape, Precision::kF32, threads);
  w.adapter =
      FreshAdapter(ConfigNamed(method, w.model->info().model_type), 0, *w.context, *w.model);
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

class Frozen : public testing::TestWithParam<std::tuple<const char*, std::string>> {};

TEST_P(Frozen, GradientAndOptimizerBytesFollowFromTrainableBytes) {
  GoldenWorld w = MakeWorld(std::get<0>(GetParam()), std::get<1>(GetParam()), 1);
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
  GoldenWorld w = MakeWorld(std::get<0>(GetParam()), std::get<1>(GetParam()), 1);
  std::vector<uint64_t> checksums;
  std::vector<Tensor> vectors;
  for (const BaseTensor& t : w.model->tensors()) {
    checksums.push_back(t.weight != nullptr ? t.weight->Checksum() : 0);
    vectors.push_back(t.weight != nullptr ? Tensor() : t.vector.Clone());
  }
  std::vector<Tensor> before;
  for (const Parameter& p : w.adapter.method->parameters()) before.push_back(p.value().Clone());
  const TrainOptions options = Options("moves");
  const auto result = Train(*w.context, *w.model, w.adapter, w.lines, nullptr, options, {});
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
  const auto& [shape, kind] = GetParam();
  const TrainOptions whole = Options("whole");
  {
    GoldenWorld w = MakeWorld(shape, kind, 1);
    ASSERT_TRUE(Train(*w.context, *w.model, w.adapter, w.lines, nullptr, whole, {}).ok());
  }
  const TrainOptions threaded = Options("threads");
  {
    GoldenWorld w = MakeWorld(shape, kind, 2);
    ASSERT_TRUE(Train(*w.context, *w.model, w.adapter, w.lines, nullptr, threaded, {}).ok());
  }
  EXPECT_EQ(AdapterBytes(whole), AdapterBytes(threaded));

  TrainOptions cut = Options("cut");
  std::atomic<bool> interrupt{false};
  TrainEvents events;
  events.interrupt = &interrupt;
  events.on_step = [&](const StepReport& r) { interrupt = r.step == 2; };
  {
    GoldenWorld w = MakeWorld(shape, kind, 1);
    const auto first = Train(*w.context, *w.model, w.adapter, w.lines, nullptr, cut, events);
    ASSERT_TRUE(first.ok() && first->interrupted && first->steps == 2);
  }
  cut.resume = true;
  {
    GoldenWorld w = MakeWorld(shape, kind, 2);
    ASSERT_TRUE(Train(*w.context, *w.model, w.adapter, w.lines, nullptr, cut, {}).ok());
  }
  EXPECT_EQ(AdapterBytes(whole), AdapterBytes(cut));
  for (const TrainOptions& o : {whole, threaded, cut}) std::filesystem::remove_all(o.out);
}

// All methods at once on one base, with their own seeds, rates, batch sizes, accumulation, steps
// and data: each ends in the bits that it has alone.
class Together : public testing::TestWithParam<const char*> {};

TEST_P(Together, EveryRunEndsInTheBitsItHasAlone) {
  const std::vector<std::string>& methods = MethodNames();
  const auto options = [&](size_t i, const std::string& name) {
    TrainOptions o = Options(name + methods[i]);
    o.steps = 3 + static_cast<int64_t>(i % 3);
    o.batch_size = 2 + static_cast<int64_t>(i % 2);
    o.accumulate = 1 + static_cast<int64_t>(i % 2);
    o.optimizer.learning_rate = 1e-3 * static_cast<double>(1 + i % 4);
    o.seed = 3 * i;
    o.z_loss = i % 4 == 1 ? 1e-3f : 0;
    return o;
  };
  const auto lines = [&](const GoldenWorld& w, size_t i) {
    std::vector<TokenLine> own(w.lines.begin() + static_cast<long>(i % 3), w.lines.end());
    for (TokenLine& line : own) line.task = static_cast<int>(i);
    return own;
  };
  GoldenWorld w = OpenGoldenWorld(GetParam());
  std::vector<Adapter> adapters(methods.size());
  std::vector<std::vector<TokenLine>> data(methods.size());
  std::vector<RunSpec> specs;
  for (size_t i = 0; i < methods.size(); ++i) {
    const auto fresh = [&] {
      return FreshAdapter(ConfigNamed(methods[i], w.model->info().model_type), static_cast<int>(i),
                          *w.context, *w.model);
    };
    data[i] = lines(w, i);
    Adapter alone = fresh();
    const auto result =
        Train(*w.context, *w.model, alone, data[i], nullptr, options(i, "alone"), {});
    ASSERT_TRUE(result.ok()) << result.status();
    adapters[i] = fresh();
    specs.push_back({&adapters[i], data[i], nullptr, options(i, "together"), {}});
  }
  const auto results = TrainTogether(*w.context, *w.model, specs);
  ASSERT_TRUE(results.ok()) << results.status();
  for (size_t i = 0; i < methods.size(); ++i) {
    const TrainOptions alone = options(i, "alone"), together = options(i, "together");
    EXPECT_EQ((*results)[i].steps, together.steps);
    EXPECT_EQ(AdapterBytes(alone), AdapterBytes(together)) << methods[i];
    for (const TrainOptions& o : {alone, together}) std::filesystem::remove_all(o.out);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Together,
                         testing::Values("t5-v1_0-1", "t5-v1_1-2", "llama-1", "qwen2-1", "gpt2-1"));

INSTANTIATE_TEST_SUITE_P(All, Frozen,
                         testing::Combine(testing::Values("t5-v1_0-1", "t5-v1_1-1", "llama-1",
                                                          "qwen2-1", "gpt2-1"),
                                          testing::ValuesIn(MethodNames())));

INSTANTIATE_TEST_SUITE_P(LoraForms, Frozen,
                         testing::Combine(testing::Values("t5-v1_0-1", "llama-1", "gpt2-1"),
                                          testing::ValuesIn(LoraFormNames())));

// A causal prompt costs P rows, not B * P; a mixed batch gives each line what it has alone.
TEST(SharedRows, CausalPromptOnceAndMixedAdapters) {
  GoldenWorld w = MakeWorld("llama-1", "prompt", 1);
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
  GoldenWorld w = MakeWorld("llama-1", "lora", 1);
  LoraConfig config = LoraConfigOf({"down_proj"}, 3);
  config.targets.layers = {static_cast<int>(w.model->info().layers) - 1};
  const Adapter adapter = FreshAdapter(config, 0, *w.context, *w.model);
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
