// Gradients through whole models, with every base tensor replaced by a trainable copy: against a
// directional difference of the loss, with and without recomputation, for any number of threads.
#include <deque>
#include <map>

#include "engine/parameter.h"
#include "engine/random.h"
#include "tests/util/golden_case.h"

namespace permafrost {
namespace {

// Trainable copies of every tensor of a model.
class TrainAll : public Hooks {
 public:
  TrainAll(Context& c, const Model& model) {
    for (size_t i = 0; i < model.tensors().size(); ++i) {
      const BaseTensor& t = model.tensors()[i];
      parameters_.Add(t.name, t.weight != nullptr ? t.weight->ToF32(c) : t.vector.Clone());
    }
    for (Parameter& p : parameters_) vars_.push_back(p.var());
  }
  const Var* Replacement(TensorId tensor, int) const override {
    return &vars_[static_cast<size_t>(tensor)];
  }
  ParameterList& parameters() { return parameters_; }

 private:
  ParameterList parameters_;
  std::deque<Var> vars_;
};

class TrainableBaseTest : public testing::TestWithParam<std::string> {
 protected:
  TrainableBaseTest() : golden_(OpenGoldenCase(GetParam())) {
    // Short lines are enough here, and keep sanitizers quick.
    std::erase_if(golden_.lines, [](const TokenLine& l) { return l.input_ids.size() > 40; });
    for (TokenLine& line : golden_.lines) {
      if (line.labels.size() > 40) line.labels.resize(40);
      if (!golden_.encoder_decoder()) line.labels.resize(line.input_ids.size(), -100);
    }
  }

  // The mean loss; its gradients stay in `hooks`.
  double Loss(Context& c, const Model& model, Hooks& hooks, bool backward) {
    const Batch batch = MakeBatch(model.layout(hooks), golden_.lines, Outputs::kLabelled);
    const float weight = 1 / static_cast<float>(batch.target_labels.size());
    const std::vector<float> weights(batch.target_labels.size(), weight);
    c.tape.mode = backward ? TapeMode::kRecord : TapeMode::kOff;
    const HeadLoss loss = model.Loss(c, batch, hooks, weights);
    if (backward) Backward(c, loss.loss, Tensor::From({1, 1}, {1}));
    double sum = 0;
    for (int64_t i = 0; i < loss.per_target.count(); ++i) {
      sum += static_cast<double>(loss.per_target.f32()[i]) / static_cast<double>(weights.size());
    }
    return sum;
  }
  std::vector<float> Gradients(TrainAll& hooks) {
    std::vector<float> all;
    for (const Parameter& p : hooks.parameters()) {
      EXPECT_TRUE(p.gradient()) << p.name() << " has no gradient";
      if (!p.gradient()) continue;
      all.insert(all.end(), p.gradient().values().begin(), p.gradient().values().end());
    }
    return all;
  }

  GoldenCase golden_;
};

// Per tensor: the derivative of the loss along its own gradient is the gradient's squared norm.
TEST_P(TrainableBaseTest, GradientsAreDirectionalDerivatives) {
  Context c;
  auto opened = OpenModel(c, golden_.folder);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const Model& model = **opened;
  TrainAll hooks(c, model);
  Hooks none;
  const double plain = Loss(c, model, none, false);
  const double loss = Loss(c, model, hooks, true);
  EXPECT_NEAR(loss, plain, 1e-5 * plain);  // the copies are the base
  for (Parameter& p : hooks.parameters()) {
    ASSERT_TRUE(p.gradient()) << p.name();
    double norm = 0;
    for (const float g : p.gradient().values()) norm += static_cast<double>(g) * g;
    norm = std::sqrt(norm);
    const Tensor kept = p.value().Clone();
    // Fourth-order stencil along the unit gradient. Beside truncation and the loss's roundings, a
    // relu that changes sign within the step may move the slope by a small part.
    const auto at = [&](double step) {
      for (int64_t i = 0; i < kept.count(); ++i) {
        p.value().f32()[i] =
            static_cast<float>(kept.f32()[i] + step * p.gradient().f32()[i] / norm);
      }
      return Loss(c, model, hooks, false);
    };
    const double h = std::min(1e-3, 4e-3 / norm);
    const double slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    const double coarse = (8 * (at(2 * h) - at(-2 * h)) - (at(4 * h) - at(-4 * h))) / (24 * h);
    at(0);
    const double rounding = 1.5 * 4 * std::exp2(-24) * loss / h;
    EXPECT_NEAR(slope, norm, 0.005 * norm + rounding + std::abs(coarse - slope) / 4) << p.name();
  }
}

TEST_P(TrainableBaseTest, ThreadsChangeNoBitAndRecomputationCostsNoAccuracy) {
  std::vector<float> exact;  // f32, everything kept
  double rounding = 0;       // how far bf16 is from that
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    for (const Recompute recompute :
         {Recompute::kNone, Recompute::kAttention, Recompute::kLayers}) {
      std::vector<std::vector<float>> gradients;
      for (const int threads : {1, 3}) {
        Context c(threads, precision);
        auto opened = OpenModel(c, golden_.folder);
        ASSERT_TRUE(opened.ok()) << opened.status();
        TrainAll hooks(c, **opened);
        c.recompute = recompute;
        Loss(c, **opened, hooks, true);
        gradients.push_back(Gradients(hooks));
      }
      EXPECT_EQ(gradients[0], gradients[1]) << "recompute " << static_cast<int>(recompute);
      if (exact.empty()) exact = gradients[0];
      const double difference = RelativeNormDifference(gradients[0], exact);
      if (precision == Precision::kBF16 && recompute == Recompute::kNone) rounding = difference;
      // f32 sums flow together in another order; bf16 starts again from a rounded input, which
      // is one rounding beside the many that the kept run has too.
      EXPECT_LE(difference, precision == Precision::kF32 ? 1e-5 : 1.5 * rounding)
          << "recompute " << static_cast<int>(recompute);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TrainableBaseTest, testing::ValuesIn(GoldenModelNames()),
                         TestName);

}  // namespace
}  // namespace permafrost
