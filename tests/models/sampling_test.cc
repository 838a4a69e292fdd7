// The logits processors on hand-made scores.
#include "models/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/random.h"

namespace permafrost {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::FloatEq;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(SamplingTest, ArgMaxTakesTheLowestOfEqualIds) {
  EXPECT_EQ(ArgMax({1, 3, 2, 3}), 1);
  EXPECT_EQ(ArgMax({-kInfinity, -kInfinity}), 0);
  EXPECT_EQ(ArgMax({1, NAN, 2}), -1);
}

TEST(SamplingTest, TopIndicesOrderTiesById) {
  EXPECT_THAT(TopIndices({1, 3, 2, 3, 1}, 4), ElementsAre(1, 3, 2, 0));
  EXPECT_THAT(TopIndices({1, 2}, 5), ElementsAre(1, 0));
}

TEST(SamplingTest, RepetitionPenaltyActsOncePerId) {
  std::vector<float> scores = {4, -4, 4, -4, 0};
  PenalizeRepetition(absl::MakeSpan(scores), {0, 1, 0, 1, 4}, 2);
  EXPECT_THAT(scores, ElementsAre(2, -8, 4, -4, 0));
}

TEST(SamplingTest, LogSoftmaxOfLargeScores) {
  std::vector<float> scores = {1000, 1000, -kInfinity};
  LogSoftmax(absl::MakeSpan(scores));
  EXPECT_THAT(scores, ElementsAre(FloatEq(-std::log(2.0f)), FloatEq(-std::log(2.0f)), -kInfinity));
}

TEST(SamplingTest, TopKKeepsTiesAtItsEnd) {
  const std::vector<float> scores = {0, 2, 1, 1, -1};
  EXPECT_GT(SamplingProbabilities(scores, 1, 2, 1)[3], 0);
  EXPECT_EQ(SamplingProbabilities(scores, 1, 2, 1)[0], 0);
  EXPECT_EQ(SamplingProbabilities(scores, 1, 2, 1)[4], 0);
  EXPECT_THAT(SamplingProbabilities(scores, 1, 1, 1), ElementsAre(0, 1, 0, 0, 0));
  EXPECT_GT(SamplingProbabilities(scores, 1, 50, 1)[4], 0);
}

TEST(SamplingTest, TopPDropsTheLeastLikely) {
  std::vector<float> scores;
  for (const double p : {0.1, 0.4, 0.2, 0.3}) scores.push_back(static_cast<float>(std::log(p)));
  // Ascending sums 0.1, 0.3, 0.6, 1: those of at most 1 - p go.
  EXPECT_THAT(SamplingProbabilities(scores, 1, 0, 0.95),
              ElementsAre(DoubleNear(0.1, 1e-6), DoubleNear(0.4, 1e-6), DoubleNear(0.2, 1e-6),
                          DoubleNear(0.3, 1e-6)));
  EXPECT_THAT(SamplingProbabilities(scores, 1, 0, 0.65),
              ElementsAre(0, DoubleNear(4 / 7.0, 1e-6), 0, DoubleNear(3 / 7.0, 1e-6)));
  EXPECT_THAT(SamplingProbabilities(scores, 1, 0, 1e-6), ElementsAre(0, DoubleNear(1, 1e-6), 0, 0));
  // top_k acts first: top_p sees 4/7 and 3/7.
  EXPECT_THAT(SamplingProbabilities(scores, 1, 2, 0.5), ElementsAre(0, DoubleNear(1, 1e-6), 0, 0));
}

TEST(SamplingTest, TemperatureScalesBeforeTopP) {
  const std::vector<float> scores = {0, 1};
  const double expected = 1 / (1 + std::exp(-1 / 0.25));
  EXPECT_THAT(SamplingProbabilities(scores, 0.25, 0, 1)[1], DoubleNear(expected, 1e-12));
  EXPECT_THAT(SamplingProbabilities(scores, 0.25, 0, 0.97), ElementsAre(0, DoubleNear(1, 1e-12)));
  EXPECT_THAT(SamplingProbabilities(scores, 1e-310, 0, 1), ElementsAre(0, 1));
  EXPECT_THAT(SamplingProbabilities({-kInfinity, 1}, 2, 0, 1), ElementsAre(0, 1));
}

TEST(SamplingTest, PickTokenFollowsTheDistribution) {
  const std::vector<double> p = {0, 0.25, 0, 0.75, 0};
  EXPECT_EQ(PickToken(p, 0), 1);
  EXPECT_EQ(PickToken(p, 0.2499), 1);
  EXPECT_EQ(PickToken(p, 0.25), 3);
  EXPECT_EQ(PickToken({0.5, 0.4999, 0}, 0.99999), 1);
  Random random(1);
  constexpr int kDraws = 10000;
  int ones = 0;
  for (int i = 0; i < kDraws; ++i) ones += PickToken(p, random.Uniform()) == 1;
  // Five standard deviations of a binomial count.
  EXPECT_NEAR(ones, kDraws * 0.25, 5 * std::sqrt(kDraws * 0.25 * 0.75));
}

}  // namespace
}  // namespace permafrost
