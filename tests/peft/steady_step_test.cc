// A steady training step takes nothing from the system: the pool does not grow, every tag returns
// to its level, and (where the process can be still) no page faults.
#include <sys/resource.h>

#include "engine/optim/optimizer.h"
#include "peft/trainer.h"
#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

std::vector<int64_t> LiveBytes() {
  std::vector<int64_t> live;
  for (int t = 0; t < kMemoryTags; ++t) live.push_back(MemoryOf(static_cast<MemoryTag>(t)).live);
  return live;
}

int64_t MinorFaults() {
  rusage u;
  getrusage(RUSAGE_SELF, &u);
  return u.ru_minflt;
}

class SteadyStepTest : public testing::TestWithParam<std::tuple<std::string, Precision>> {};

TEST_P(SteadyStepTest, TakesNothingFromTheSystem) {
  const auto& [name, precision] = GetParam();
  GoldenWorld w = OpenGoldenWorld(name, precision);
  std::erase_if(w.lines,
                [](const TokenLine& l) { return l.input_ids.size() + l.labels.size() > 80; });
  const std::vector<std::vector<TokenLine>> micro_batches = {{w.lines.begin(), w.lines.begin() + 4},
                                                             {w.lines.begin() + 4, w.lines.end()}};
  LoraConfig lora = LoraConfigOf({"all-linear"}, 3);
  lora.dropout = 0.1;
  const std::vector<AdapterConfig> configs = {
      PromptConfig(5), lora, DefaultIa3Config(w.model->info().model_type, {}), FullConfig()};
  for (const AdapterConfig& config : configs) {
    for (const Recompute recompute :
         {Recompute::kNone, Recompute::kAttention, Recompute::kLayers}) {
      w.context->recompute = recompute;
      const Adapter adapter = FreshAdapter(config, 0, *w.context, *w.model);
      Optimizer optimizer({.learning_rate = 1e-3}, adapter.method->parameters());
      uint32_t number = 0;
      const auto step = [&] {
        adapter.method->SetRandom(0, number++);
        AccumulateGradients(*w.context, *w.model, *adapter.method, micro_batches, 0);
        optimizer.Step(*w.context, 1);
      };
      for (int i = 0; i < 3; ++i) step();
      const std::vector<int64_t> live = LiveBytes();
      const int64_t requests = MemoryPoolStatistics().requests;
      std::vector<int64_t> faults;
      for (int i = 0; i < 4; ++i) {
        const int64_t before = MinorFaults();
        step();
        faults.push_back(MinorFaults() - before);
        EXPECT_EQ(LiveBytes(), live) << "step " << i;
      }
      EXPECT_EQ(MemoryPoolStatistics().requests, requests);
      // The kernel may move a page under load, never in every step.
      std::sort(faults.begin(), faults.end());
#ifndef PERMAFROST_SANITIZED  // sanitizers touch memory of their own
      EXPECT_EQ(faults[0], 0) << "at most " << faults.back();
#endif
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, SteadyStepTest,
    testing::Combine(testing::Values("t5-v1_0-1", "t5-v1_1-1", "llama-1", "gpt2-1"),
                     testing::Values(Precision::kF32, Precision::kBF16)),
    [](const auto& test) {
      const bool bf16 = std::get<1>(test.param) == Precision::kBF16;
      return TestName({std::get<0>(test.param), test.index}) + (bf16 ? "_bf16" : "_f32");
    });

}  // namespace
}  // namespace permafrost
