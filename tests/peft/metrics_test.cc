// Golden values of the long cases come from scikit-learn 1.9.1 / numpy 2.4.6:
//   r = np.random.RandomState(7)
//   for n, c in ((20, 2), (24, 3)):
//       t = r.randint(0, c, n); p = np.where(r.rand(n) < .6, t, r.randint(0, c, n))
//       accuracy_score(t, p), f1_score(t, p), matthews_corrcoef(t, p),
//       f1_score(t, p, labels=range(c), average='macro', zero_division=0)
//       p[:3] = -1  # again; binary F1 of np.where((p != 0) & (p != 1), 1 - t, p)

#include "peft/metrics.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace permafrost {
namespace {

constexpr double kTolerance = 1e-15;

const std::vector<int> kLabels2 = {1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0};
const std::vector<int> kPredicted2 = {0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0};
const std::vector<int> kLabels3 = {1, 1, 0, 1, 2, 1, 1, 1, 1, 1, 2, 2,
                                   2, 1, 2, 0, 0, 1, 1, 1, 0, 2, 2, 0};
const std::vector<int> kPredicted3 = {1, 0, 0, 0, 2, 2, 1, 1, 1, 1, 2, 2,
                                      2, 1, 1, 0, 0, 1, 1, 0, 2, 2, 2, 1};

std::vector<int> WithInvalid(std::vector<int> predictions) {
  for (int i = 0; i < 3; ++i) predictions[i] = -1;
  return predictions;
}

TEST(Metrics, TwoClassesEqualScikitLearn) {
  EXPECT_NEAR(Accuracy(kPredicted2, kLabels2), 0.7, kTolerance);
  EXPECT_NEAR(BinaryF1(kPredicted2, kLabels2), 0.7, kTolerance);
  EXPECT_NEAR(MacroF1(kPredicted2, kLabels2, 2), 0.7, kTolerance);
  EXPECT_NEAR(Matthews(kPredicted2, kLabels2), 0.4, kTolerance);
}

TEST(Metrics, ThreeClassesEqualScikitLearn) {
  EXPECT_NEAR(Accuracy(kPredicted3, kLabels3), 0.7083333333333334, kTolerance);
  EXPECT_NEAR(MacroF1(kPredicted3, kLabels3, 3), 0.6909090909090909, kTolerance);
  EXPECT_NEAR(Matthews(kPredicted3, kLabels3), 0.5505742979199203, kTolerance);
}

TEST(Metrics, AClassThatNeverOccursCountsAsZero) {
  EXPECT_NEAR(MacroF1(kPredicted3, kLabels3, 4), 0.5181818181818182, kTolerance);
}

TEST(Metrics, InvalidPredictionsAreWrong) {
  const std::vector<int> two = WithInvalid(kPredicted2);
  EXPECT_NEAR(BinaryF1(two, kLabels2), 0.631578947368421, kTolerance);
  EXPECT_NEAR(Accuracy(two, kLabels2), 0.65, kTolerance);
  EXPECT_NEAR(MacroF1(two, kLabels2, 2), 0.7017543859649122, kTolerance);
  EXPECT_NEAR(Matthews(two, kLabels2), 0.40575133560034454, kTolerance);
  const std::vector<int> three = WithInvalid(kPredicted3);
  EXPECT_NEAR(Accuracy(three, kLabels3), 0.625, kTolerance);
  EXPECT_NEAR(MacroF1(three, kLabels3, 3), 0.6370370370370371, kTolerance);
  EXPECT_NEAR(Matthews(three, kLabels3), 0.46164500165038014, kTolerance);
}

TEST(Metrics, HandComputedBinaryF1) {
  // TP 2, FP 1, FN 1: 4 / 6. The positive class is 1, not the larger one.
  EXPECT_DOUBLE_EQ(BinaryF1({1, 1, 1, 0, 0}, {1, 1, 0, 1, 0}), 4.0 / 6.0);
  EXPECT_EQ(BinaryF1({0, 0}, {0, 0}), 0.0);  // No positive anywhere: undefined, so 0.
  EXPECT_EQ(BinaryF1({0, 0}, {1, 0}), 0.0);
}

TEST(Metrics, MatthewsEqualsTheTwoByTwoFormula) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<int> predictions, labels;
    double tp = 0, tn = 0, fp = 0, fn = 0;
    const int size = 1 + random() % 30;
    for (int i = 0; i < size; ++i) {
      predictions.push_back(random() % 2);
      labels.push_back(random() % 2);
      (labels[i] ? (predictions[i] ? tp : fn) : (predictions[i] ? fp : tn)) += 1;
    }
    const double square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn);
    const double expected = square == 0 ? 0 : (tp * tn - fp * fn) / std::sqrt(square);
    EXPECT_NEAR(Matthews(predictions, labels), expected, 1e-14);
  }
}

TEST(Metrics, MatthewsOfConstantsIsZero) {
  EXPECT_EQ(Matthews({1, 1}, {1, 1}), 0.0);
  EXPECT_EQ(Matthews({0, 0, 0}, {0, 1, 1}), 0.0);
}

TEST(Metrics, MatthewsOfPerfectAndInvertedPredictions) {
  EXPECT_DOUBLE_EQ(Matthews({0, 1, 2, 1}, {0, 1, 2, 1}), 1.0);
  EXPECT_DOUBLE_EQ(Matthews({1, 0, 1, 0}, {0, 1, 0, 1}), -1.0);
}

TEST(Metrics, WithoutExamplesIsNaN) {
  for (const std::string& name : MetricNames()) {
    const absl::StatusOr<double> value = ComputeMetric(name, {}, {}, 2);
    ASSERT_TRUE(value.ok());
    EXPECT_TRUE(std::isnan(*value)) << name;
  }
}

TEST(Metrics, ByName) {
  EXPECT_EQ(*ComputeMetric("accuracy", kPredicted2, kLabels2, 2), Accuracy(kPredicted2, kLabels2));
  EXPECT_EQ(*ComputeMetric("f1", kPredicted2, kLabels2, 2), BinaryF1(kPredicted2, kLabels2));
  EXPECT_EQ(*ComputeMetric("macro_f1", kPredicted3, kLabels3, 3),
            MacroF1(kPredicted3, kLabels3, 3));
  EXPECT_EQ(*ComputeMetric("matthews", kPredicted3, kLabels3, 3), Matthews(kPredicted3, kLabels3));
  EXPECT_EQ(ComputeMetric("bleu", {0}, {0}, 2).status().message(),
            "unknown metric 'bleu'; expected one of accuracy, f1, macro_f1, matthews");
  EXPECT_EQ(ComputeMetric("f1", {0}, {0}, 3).status().message(),
            "metric f1: expected 2 label words, found 3; use macro_f1");
}

TEST(MetricsDeathTest, UnequalSizesAbort) {
  EXPECT_DEATH(Accuracy({1}, {1, 0}), "one prediction a label");
}

}  // namespace
}  // namespace permafrost
