// The memory plan against what the tape keeps, for every method on every golden base.
#include "peft/memory_plan.h"

#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

class MemoryPlanTest : public testing::TestWithParam<std::string> {};

TEST_P(MemoryPlanTest, IsNearWhatAStepKeeps) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    GoldenWorld w = OpenGoldenWorld(GetParam(), precision);
    Context& c = *w.context;
    std::vector<std::string> methods = MethodNames();
    methods.push_back("lora-pissa");
    for (const std::string& method : methods) {
      const AdapterConfig config = ConfigNamed(method, w.model->info().model_type);
      const Adapter adapter = FreshAdapter(config, 0, c, *w.model);
      const Batch batch = MakeBatch(w.model->layout(*adapter.method), w.lines, Outputs::kLabelled);
      const StepRows rows{batch.encoder.rows.count(), batch.decoder.rows.count(),
                          static_cast<int64_t>(batch.outputs.size()),
                          static_cast<int64_t>(batch.target_labels.size())};
      for (const Recompute recompute :
           {Recompute::kNone, Recompute::kAttention, Recompute::kLayers}) {
        c.recompute = recompute;
        c.training = true;
        c.tape.mode = TapeMode::kRecord;
        w.model->Loss(c, batch, *adapter.method,
                      std::vector<float>(batch.target_labels.size(), 1.0f));
        const double kept = static_cast<double>(c.tape.saved_bytes());
        c.tape.Clear();
        const auto estimate = EstimateStepMemory(config, *w.model, rows, precision, recompute);
        ASSERT_TRUE(estimate.ok()) << estimate.status();
        ASSERT_TRUE(estimate->has_value()) << method;
        EXPECT_NEAR(static_cast<double>((*estimate)->kept), kept, 0.03 * kept)
            << method << ", precision " << static_cast<int>(precision) << ", recompute "
            << static_cast<int>(recompute);
      }
    }
  }
}

TEST_P(MemoryPlanTest, SaysWhereItHasNoFormula) {
  GoldenWorld w = OpenGoldenWorld(GetParam());
  const AdapterConfig config = ConfigNamed("lora-everything", w.model->info().model_type);
  const auto estimate =
      EstimateStepMemory(config, *w.model, {10, 10, 10, 10}, Precision::kF32, Recompute::kNone);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_FALSE(estimate->has_value());
}

INSTANTIATE_TEST_SUITE_P(Models, MemoryPlanTest, testing::ValuesIn(GoldenModelNames()), TestName);

}  // namespace
}  // namespace permafrost
