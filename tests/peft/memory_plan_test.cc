// The memory plan against what the tape keeps, for every method on every golden base.
#include "peft/memory_plan.h"

#include "absl/strings/str_join.h"
#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

// Every method, and norms by name as PEFT's files have them.
std::vector<std::pair<std::string, AdapterConfig>> Configs(const std::string& model_type) {
  std::vector<std::pair<std::string, AdapterConfig>> configs;
  for (const std::string& method : MethodNames()) {
    configs.emplace_back(method, ConfigNamed(method, model_type));
  }
  configs.emplace_back("lora-pissa", ConfigNamed("lora-pissa", model_type));
  const std::vector<std::string> norms =
      model_type == "t5"     ? std::vector<std::string>{"layer_norm", "final_layer_norm"}
      : model_type == "gpt2" ? std::vector<std::string>{"ln_2", "ln_f"}
                             : std::vector<std::string>{"post_attention_layernorm", "norm"};
  for (const std::vector<std::string>& names : {norms, {norms[0]}, {norms[1]}}) {
    configs.emplace_back(absl::StrCat("norms ", absl::StrJoin(names, ", ")),
                         FullConfig{.part = FullConfig::Part::kNorms, .layers = 0, .norms = names});
  }
  return configs;
}

class MemoryPlanTest : public testing::TestWithParam<std::string> {};

TEST_P(MemoryPlanTest, IsNearWhatAStepKeeps) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    GoldenWorld w = OpenGoldenWorld(GetParam(), precision);
    Context& c = *w.context;
    for (const auto& [method, config] : Configs(w.model->info().model_type)) {
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
