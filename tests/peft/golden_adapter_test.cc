// Adapters of tests/golden/models against PEFT: logits, losses, gradients, ten steps of AdamW.
#include "tests/util/golden_adapter.h"

namespace permafrost {
namespace {

constexpr int kTask = 0;

class GoldenAdapterTest : public testing::TestWithParam<std::string> {
 protected:
  GoldenAdapterTest() : golden_(OpenGoldenCase(GetParam())) {
    for (TokenLine& line : golden_.lines) line.task = kTask;
    auto model = OpenModel(c_, golden_.folder);
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
  }
  std::shared_ptr<Method> Load(const std::string& kind) {
    auto adapter = LoadAdapter(golden_.adapter(kind), kTask, c_, *model_);
    EXPECT_TRUE(adapter.ok()) << adapter.status();
    return std::move(adapter->method);
  }

  Context c_;
  GoldenCase golden_;
  std::unique_ptr<Model> model_;
};

TEST_P(GoldenAdapterTest, ForwardAgreesWithPeft) {
  for (const std::string kind : {"prompt", "lora", "ia3"}) {
    const auto method = Load(kind);
    ExpectGolden(golden_, kind, c_, *model_, *method, kTask);
  }
}

TEST_P(GoldenAdapterTest, GradientsAgreeWithPeft) {
  for (const std::string kind : {"prompt", "lora", "ia3"}) {
    for (const Recompute recompute :
         {Recompute::kNone, Recompute::kAttention, Recompute::kLayers}) {
      c_.recompute = recompute;
      const auto method = Load(kind);
      AddGradient(c_, *model_, *method, golden_.lines);
      ExpectGoldenGradients(golden_, kind, *method);
    }
  }
}

TEST_P(GoldenAdapterTest, TenStepsOfAdamWAgreeWithPeft) {
  for (const std::string kind : {"prompt", "lora", "ia3"}) {
    const auto method = Load(kind);
    ExpectGoldenTraining(golden_, kind, c_, *model_, *method);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenAdapterTest, testing::ValuesIn(GoldenModelNames()),
                         TestName);

}  // namespace
}  // namespace permafrost
