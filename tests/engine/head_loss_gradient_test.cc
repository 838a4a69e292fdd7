// The head with its cross-entropy: values in f64, gradients of hidden rows and of a trainable head.
#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

struct Targets {
  std::vector<int32_t> rows, labels;
  std::vector<float> weights;
};

// Every row of h is read; rows repeat (candidates that share a text's last row).
Targets MakeTargets(Random& random, int64_t count, int64_t rows, int64_t vocabulary) {
  Targets t;
  for (int64_t i = 0; i < count; ++i) {
    t.rows.push_back(static_cast<int32_t>(i < rows ? i : random.Below(rows)));
    t.labels.push_back(static_cast<int32_t>(random.Below(vocabulary)));
    t.weights.push_back(static_cast<float>(0.25 + random.Uniform()));
  }
  return t;
}

struct HeadCase {
  int64_t targets;
  float scale, z_loss;
};

class HeadLossTest : public testing::TestWithParam<HeadCase> {
 protected:
  static constexpr int64_t kRows = 6, kWidth = 5, kVocabulary = 11;
  HeadLossTest()
      : random_(1),
        h_(RandomTensor(random_, {kRows, kWidth})),
        head_(RandomTensor(random_, {kVocabulary, kWidth})),
        targets_(MakeTargets(random_, GetParam().targets, kRows, kVocabulary)) {}

  Random random_;
  Tensor h_, head_;
  Targets targets_;
  // The loss is one sum: its roundings are those of the terms, some forty each.
  const GradCheckOptions options_{.steps = 64};
};

TEST_P(HeadLossTest, FrozenHead) {
  Context packing;
  const Weight weight = Weight::FromF32(packing, head_, DType::kF32);
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return HeadCrossEntropy(c, v[0], &weight, {}, targets_.rows, targets_.labels,
                                targets_.weights,
                                {.scale = GetParam().scale, .z_loss = GetParam().z_loss})
            .loss;
      },
      {h_}, options_);
}

TEST_P(HeadLossTest, TrainableHead) {
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return HeadCrossEntropy(c, v[0], nullptr, v[1], targets_.rows, targets_.labels,
                                targets_.weights,
                                {.scale = GetParam().scale, .z_loss = GetParam().z_loss})
            .loss;
      },
      {h_, head_}, options_);
}

TEST_P(HeadLossTest, ValuesAreThoseOfTheFormula) {
  const auto [count, scale, z_loss] = GetParam();
  Context c;
  const Weight weight = Weight::FromF32(c, head_, DType::kF32);
  const HeadLoss result = HeadCrossEntropy(c, h_, &weight, {}, targets_.rows, targets_.labels,
                                           targets_.weights, {.scale = scale, .z_loss = z_loss});
  ASSERT_EQ(result.per_target.shape(), (Shape{1, count}));
  double total = 0, size = 0;
  for (size_t t = 0; t < targets_.rows.size(); ++t) {
    double sum = 0, label_logit = 0, largest = 0;
    for (int64_t v = 0; v < kVocabulary; ++v) {
      double logit = 0;
      for (int64_t d = 0; d < kWidth; ++d) {
        logit += static_cast<double>(scale) * static_cast<double>(h_.row(targets_.rows[t])[d]) *
                 static_cast<double>(head_.row(v)[d]);
      }
      sum += std::exp(logit);
      largest = std::max(largest, std::abs(logit));
      if (v == targets_.labels[t]) label_logit = logit;
    }
    const double lse = std::log(sum);
    const double loss = lse - label_logit + static_cast<double>(z_loss) * lse * lse;
    const double bound = 32 * std::exp2(-24) * (1 + largest + loss);
    EXPECT_NEAR(result.per_target.f32()[t], loss, bound);
    total += static_cast<double>(targets_.weights[t]) * loss;
    size += static_cast<double>(targets_.weights[t]) * bound;
  }
  EXPECT_NEAR(result.loss.value().f32()[0], total, size + std::exp2(-24) * total);
}

INSTANTIATE_TEST_SUITE_P(Cases, HeadLossTest,
                         testing::Values(HeadCase{7, 1, 0}, HeadCase{9, 0.5f, 0.01f},
                                         HeadCase{300, 1, 0.01f}));  // three chunks of 128

// Logits exist for 128 targets at a time, not for all of them.
TEST(HeadLossMemory, NoWholeLogitsMatrix) {
  Context c;
  constexpr int64_t kTargets = 1024, kVocabulary = 2000, kWidth = 8;
  const Weight head = Weight::FromF32(c, Tensor::Zeros({kVocabulary, kWidth}), DType::kF32);
  const Tensor h = Tensor::Zeros({kTargets, kWidth});
  Random random(2);
  const Targets t = MakeTargets(random, kTargets, kTargets, kVocabulary);
  ResetPeakMemory();
  const int64_t before =
      MemoryOf(MemoryTag::kWorkspace).live + MemoryOf(MemoryTag::kActivation).live;
  HeadCrossEntropy(c, h, &head, {}, t.rows, t.labels, t.weights, {});
  const int64_t peak =
      MemoryOf(MemoryTag::kWorkspace).peak + MemoryOf(MemoryTag::kActivation).peak - before;
  EXPECT_LT(peak, kTargets * kVocabulary * 4 / 3);
}

TEST(HeadLoss, NoTargetsGiveZero) {
  Context c;
  Random random(3);
  const Weight head = Weight::FromF32(c, RandomTensor(random, {4, 3}), DType::kF32);
  const HeadLoss result =
      HeadCrossEntropy(c, RandomTensor(random, {2, 3}), &head, {}, {}, {}, {}, {});
  EXPECT_EQ(result.loss.value().f32()[0], 0);
}

}  // namespace
}  // namespace permafrost
