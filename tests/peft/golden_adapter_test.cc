// Adapters of tests/golden/models against PEFT: logits, losses, gradients, ten steps of AdamW.
#include "engine/optim/optimizer.h"
#include "peft/adapter_file.h"
#include "tests/util/golden_forward.h"

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
  // Adds the gradient of the mean loss of `lines` as one batch.
  void AddGradient(Method& method, absl::Span<const TokenLine> lines) {
    const Batch batch = MakeBatch(model_->layout(method), lines, Outputs::kLabelled);
    const size_t targets = batch.target_labels.size();
    const std::vector<float> weights(targets, 1 / static_cast<float>(targets));
    c_.tape.mode = TapeMode::kRecord;
    Backward(c_, model_->Loss(c_, batch, method, weights).loss, Tensor::From({1, 1}, {1}));
    c_.tape.mode = TapeMode::kOff;
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

// The contract allows 1e-3 and expects 1e-5; the golden files carry up to 5e-5 of their own.
TEST_P(GoldenAdapterTest, GradientsAgreeWithPeft) {
  for (const std::string kind : {"prompt", "lora", "ia3"}) {
    for (const Recompute recompute :
         {Recompute::kNone, Recompute::kAttention, Recompute::kLayers}) {
      c_.recompute = recompute;
      const auto method = Load(kind);
      AddGradient(*method, golden_.lines);
      for (const Parameter& p : method->parameters()) {
        const std::vector<float> expected =
            golden_.Expected(absl::StrCat(kind, ".grad.", p.name()));
        const Tensor gradient = p.gradient() ? p.gradient() : Tensor::Zeros(p.value().shape());
        EXPECT_LE(RelativeNormDifference(gradient.values(), expected), 1e-4) << p.name();
      }
    }
  }
}

// Within 2e-3 of the change, as the contract says.
TEST_P(GoldenAdapterTest, TenStepsOfAdamWAgreeWithPeft) {
  for (const std::string kind : {"prompt", "lora", "ia3"}) {
    const auto method = Load(kind);
    std::vector<Tensor> before;
    for (const Parameter& p : method->parameters()) before.push_back(p.value().Clone());
    const double rate = golden_.settings["adamw"][kind]["lr"].get<double>();
    Optimizer optimizer({.learning_rate = rate, .weight_decay = 0.01, .clip = 1},
                        method->parameters());
    const auto lines = absl::MakeConstSpan(golden_.lines);
    for (int step = 0; step < 10; ++step) {  // batches of 4 and 3 in turn
      AddGradient(*method, step % 2 == 0 ? lines.first(4) : lines.subspan(4));
      const double expected =
          golden_.settings["adamw"][kind]["steps"][static_cast<size_t>(step)]["grad_norm"]
              .get<double>();
      EXPECT_NEAR(optimizer.Step(c_, 1), expected, 2e-3 * expected) << kind << " step " << step;
    }
    for (size_t i = 0; i < method->parameters().size(); ++i) {
      const Parameter& p = method->parameters()[i];
      const std::vector<float> expected =
          golden_.Expected(absl::StrCat(kind, ".adamw10.", p.name()));
      ASSERT_EQ(expected.size(), p.value().values().size()) << p.name();
      double difference = 0, change = 0;
      for (size_t j = 0; j < expected.size(); ++j) {
        const double d = static_cast<double>(p.value().f32()[j]) - expected[j];
        const double moved = static_cast<double>(expected[j]) - before[i].f32()[j];
        difference += d * d;
        change += moved * moved;
      }
      EXPECT_LE(std::sqrt(difference), 2e-3 * std::sqrt(change)) << kind << " " << p.name();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenAdapterTest, testing::ValuesIn(GoldenModelNames()),
                         TestName);

}  // namespace
}  // namespace permafrost
