// Common answers of ensembles, the choice of shots, and the nearest pieces of a prompt.
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "gmock/gmock.h"
#include "peft/evaluate.h"
#include "peft/neighbors.h"
#include "peft/shots.h"
#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

using Members = std::vector<std::vector<double>>;

TEST(CombineMembers, MeanAndVoteDiffer) {
  const Members members = {{.6, .4}, {.6, .4}, {.1, .9}};
  const EnsembleAnswer mean = CombineMembers(members, Ensemble::kMean);
  EXPECT_THAT(mean.mean, testing::ElementsAre(testing::DoubleNear(1.3 / 3, 1e-15),
                                              testing::DoubleNear(1.7 / 3, 1e-15)));
  EXPECT_EQ(mean.votes, (std::vector<int>{2, 1}));
  EXPECT_EQ(mean.choice, 1);
  EXPECT_EQ(CombineMembers(members, Ensemble::kVote).choice, 0);
}

TEST(CombineMembers, TiesGoToTheHigherMean) {
  // One vote each for 0 and 2; candidate 1 has the highest mean and no vote.
  const Members members = {{.45, .44, .11}, {.05, .44, .51}};
  EXPECT_EQ(CombineMembers(members, Ensemble::kVote).choice, 2);
  EXPECT_EQ(CombineMembers(members, Ensemble::kMean).choice, 1);
  EXPECT_EQ(CombineMembers(Members{{.5, .5}}, Ensemble::kVote).choice, 0);  // the first of equals
  EXPECT_EQ(CombineMembers(Members{{.2, .8}}, Ensemble::kVote).choice, 1);
}

TEST(ChooseShots, IsBalanced) {
  std::vector<int> labels(40, 0);
  for (size_t i : {3, 7, 11, 19, 30}) labels[i] = 1;
  for (size_t i : {4, 20}) labels[i] = 2;
  std::set<std::vector<size_t>> choices;
  std::map<int, int> extra;  // which class gets the tenth
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Random random(seed), again(seed);
    const std::vector<size_t> chosen = ChooseShots(labels, 9, random);
    EXPECT_EQ(chosen, ChooseShots(labels, 9, again));
    ASSERT_EQ(chosen.size(), 9u);
    EXPECT_EQ(std::set<size_t>(chosen.begin(), chosen.end()).size(), 9u);
    std::vector<int> counts(3);
    for (const size_t i : chosen) ++counts[static_cast<size_t>(labels[i])];
    EXPECT_EQ(counts[2], 2);  // all there are
    EXPECT_EQ(counts[0] + counts[1], 7);
    EXPECT_LE(std::abs(counts[0] - counts[1]), 1);
    ++extra[counts[0] > counts[1]];
    choices.insert(chosen);
  }
  EXPECT_EQ(choices.size(), 60u);
  EXPECT_EQ(extra.size(), 2u);
}

TEST(ChooseShots, WithoutClassesOrEnough) {
  Random random(1);
  const std::vector<int> none(6, -1);
  EXPECT_EQ(ChooseShots(none, 4, random).size(), 4u);
  EXPECT_EQ(ChooseShots(none, 9, random).size(), 6u);
  EXPECT_TRUE(ChooseShots(none, 0, random).empty());
  EXPECT_TRUE(ChooseShots({}, 3, random).empty());
}

// Against a plain search in f64, and the discrete prompt is its own nearest piece.
TEST(Neighbors, AreThoseOfAPlainSearch) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    GoldenWorld w = OpenGoldenWorld("gpt2-1", precision);
    Context& c = *w.context;
    Random random(3);
    const Tensor prompt = NormalTensor({4, w.model->info().width}, 1, random);
    std::vector<int32_t> all(static_cast<size_t>(w.model->info().vocabulary));
    std::iota(all.begin(), all.end(), 0);
    const Tensor rows = w.model->embedding().Rows(c, all);
    std::vector<int32_t> by_cosine, by_distance;
    for (int64_t p = 0; p < prompt.rows(); ++p) {
      double best_cosine = -2, best_distance = 1e300;
      int32_t cosine_id = -1, distance_id = -1;
      for (int32_t v : all) {
        double dot = 0, a = 0, b = 0, distance = 0;
        for (int64_t d = 0; d < prompt.columns(); ++d) {
          const double x = prompt.row(p)[d], y = rows.row(v)[d];
          dot += x * y;
          a += x * x;
          b += y * y;
          distance += (x - y) * (x - y);
        }
        const double cosine = dot / std::sqrt(a * b);
        if (cosine > best_cosine) best_cosine = cosine, cosine_id = v;
        if (distance < best_distance) best_distance = distance, distance_id = v;
      }
      by_cosine.push_back(cosine_id);
      by_distance.push_back(distance_id);
    }
    const auto found = FindNeighbors(c, *w.model, prompt, 2);
    EXPECT_EQ(NearestIds(found, Nearness::kCosine), by_cosine);
    EXPECT_EQ(NearestIds(found, Nearness::kEuclidean), by_distance);
    const Tensor discrete = w.model->embedding().Rows(c, by_distance);
    EXPECT_EQ(NearestIds(FindNeighbors(c, *w.model, discrete, 1), Nearness::kEuclidean),
              by_distance);
  }
}

}  // namespace
}  // namespace permafrost
