// Gradients of prompts and LoRAs through whole models: the logits under a random cotangent against
// f64 differences of their product, along the gradients.
#include "absl/strings/match.h"
#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

class ModelGradientTest : public testing::TestWithParam<std::string> {
 protected:
  ModelGradientTest() : w_(OpenGoldenWorld(GetParam())) {
    // Short lines are enough, and keep sanitizers quick.
    std::erase_if(w_.lines,
                  [](const TokenLine& l) { return l.input_ids.size() + l.labels.size() > 40; });
  }

  // Sets up the logits of `method`, their cotangent, and the bound of their product's roundings: a
  // few units in the last place of the largest logit, of random signs, within four deviations.
  void Start(Method& method) {
    method_ = &method;
    batch_ = MakeBatch(w_.model->layout(method), w_.lines, Outputs::kAll);
    const Var logits = Logits();
    Random random(21);
    cotangent_ = NormalTensor({logits.rows(), logits.columns()}, 1, random);
    double size = 0, largest = 0;
    for (int64_t i = 0; i < cotangent_.count(); ++i) {
      size += std::pow(static_cast<double>(cotangent_.f32()[i]), 2);
      largest = std::max(largest, std::abs(static_cast<double>(logits.value().f32()[i])));
    }
    rounding_ = 4 * 8 * std::exp2(-24) * largest * std::sqrt(size);
    Differentiate();
    moved_.clear(), start_.clear(), direction_.clear(), norms_.clear();
    for (Parameter& p : method.parameters()) {
      if (!absl::EndsWith(p.name(), suffix_)) continue;
      ASSERT_TRUE(p.gradient()) << p.name();
      moved_.push_back(&p);
      start_.push_back(p.value().Clone());
      direction_.push_back(p.gradient().Clone());
      norms_.push_back(std::sqrt(Dot(p.gradient(), p.gradient())));
    }
  }

  static double Dot(const Tensor& a, const Tensor& b) {
    double sum = 0;
    for (int64_t i = 0; i < a.count(); ++i) sum += static_cast<double>(a.f32()[i]) * b.f32()[i];
    return sum;
  }
  Var Logits() {
    Context& c = *w_.context;
    const Var encoded = w_.model->Encode(c, batch_, *method_);
    return w_.model->Logits(c, w_.model->Decode(c, batch_, encoded, *method_, nullptr),
                            batch_.output_spans, *method_);
  }
  void Differentiate() {
    Context& c = *w_.context;
    method_->parameters().ZeroGradients();
    c.tape.mode = TapeMode::kRecord;
    Backward(c, Logits(), cotangent_.Clone());
    c.tape.mode = TapeMode::kOff;
  }
  // Moves parameter i from its start by `step` along its unit gradient.
  void Move(size_t i, double step) {
    const Tensor& value = moved_[i]->value();
    for (int64_t j = 0; j < value.count(); ++j) {
      value.f32()[j] =
          static_cast<float>(start_[i].f32()[j] + step * direction_[i].f32()[j] / norms_[i]);
    }
  }
  void MoveAll(double step) {
    for (size_t i = 0; i < start_.size(); ++i) Move(i, step);
  }
  double Product() { return Dot(cotangent_, Logits().value()); }

  // Each tensor alone: the slope along its gradient is the gradient's norm.
  void CheckEachTensor() {
    for (size_t i = 0; i < start_.size(); ++i) {
      const auto at = [&](double step) {
        Move(i, step);
        return Product();
      };
      const auto slope = [&](double h) {  // fourth order
        return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
      };
      constexpr double kStep = 4e-3;
      const double fine = slope(kStep), coarse = slope(2 * kStep);
      Move(i, 0);
      // The difference of the slopes is 15 times the fine one's truncation; a quarter of it is
      // taken. The gradient's own roundings: 1e-4, as in the golden files.
      const double bound = rounding_ * 1.5 / kStep + std::abs(coarse - fine) / 4 + 1e-4 * norms_[i];
      const std::string& name = moved_[i]->name();
      EXPECT_NEAR(fine, norms_[i], bound) << name;
      EXPECT_LT(bound, 0.1 * norms_[i]) << name << ": the check has no power";
    }
  }

  // With relu, slopes jump where a unit changes sign: all tensors move at once from -h to h, and
  // the change is the integral of the slopes. The midpoint rule on n points is within the slopes'
  // total variation / n of it.
  void CheckIntegral() {
    constexpr double kStep = 0.01;
    constexpr int kPoints = 64;
    MoveAll(kStep);
    double change = Product();
    MoveAll(-kStep);
    change -= Product();
    double mean = 0, variation = 0, last = 0;
    for (int n = 0; n < kPoints; ++n) {
      MoveAll(kStep * (2 * (n + 0.5) / kPoints - 1));
      Differentiate();
      double slope = 0;
      for (size_t i = 0; i < start_.size(); ++i) {
        slope += Dot(moved_[i]->gradient(), direction_[i]) / norms_[i];
      }
      mean += slope / kPoints;
      if (n > 0) variation += std::abs(slope - last);
      last = slope;
    }
    const double bound = rounding_ / kStep + variation / kPoints + 1e-4 * std::abs(mean);
    EXPECT_NEAR(change / (2 * kStep), mean, bound);
    EXPECT_LT(bound, 0.02 * std::abs(mean)) << "the check has no power";
  }

  // Of the parameters whose names end in `suffix`; `relu`: the method's slopes jump.
  void Check(Method& method, const std::string& suffix = "", bool relu = false) {
    suffix_ = suffix;
    Start(method);
    if (relu || GetParam().find("v1_0") != std::string::npos) {
      CheckIntegral();
    } else {
      CheckEachTensor();
    }
  }

  GoldenWorld w_;
  Method* method_ = nullptr;
  Batch batch_;
  Tensor cotangent_;
  double rounding_ = 0;
  std::string suffix_;
  std::vector<Parameter*> moved_;
  std::vector<Tensor> start_, direction_;
  std::vector<double> norms_;
};

TEST_P(ModelGradientTest, OfAPrompt) {
  const Adapter adapter = FreshAdapter(PromptConfig(5), 0, *w_.context, *w_.model);
  Check(*adapter.method);
}

TEST_P(ModelGradientTest, OfALoraOnEveryLinear) {
  const Adapter adapter = FreshAdapter(LoraConfigOf({"all-linear"}, 3), 0, *w_.context, *w_.model);
  MoveParameters(*adapter.method, 0.1);
  Check(*adapter.method);
}

// relu adapters have slopes that jump. T5's short targets leave some tensors with gradients too
// small for differences in f32, so the methods are checked along all tensors at once there too.
TEST_P(ModelGradientTest, OfEveryOtherMethod) {
  for (const std::string method : {"prefix", "prefix-network", "houlsby", "pfeiffer", "parallel",
                                   "bitfit", "norm", "unipelt", "mam"}) {
    SCOPED_TRACE(method);
    const Adapter adapter =
        FreshAdapter(ConfigNamed(method, w_.model->info().model_type), 0, *w_.context, *w_.model);
    MoveParameters(*adapter.method, 0.1);
    Check(*adapter.method, "", true);
  }
}

// The norms are constants in DoRA's gradient: differences of the whole function agree along the
// magnitudes only. Along A and B the gradient is compared with PEFT's (golden_adapter_test).
TEST_P(ModelGradientTest, OfDorasMagnitudes) {
  LoraConfig config = LoraConfigOf({"all-linear"}, 3);
  config.dora = true;
  const Adapter adapter = FreshAdapter(config, 0, *w_.context, *w_.model);
  MoveParameters(*adapter.method, 0.1);
  Check(*adapter.method, ".lora_magnitude_vector");
}

INSTANTIATE_TEST_SUITE_P(Models, ModelGradientTest, testing::ValuesIn(GoldenModelNames()),
                         TestName);

}  // namespace
}  // namespace permafrost
