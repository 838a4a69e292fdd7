// Optimizer over a ParameterList. Expected values: torch 2.15.0 in f64 (AdamW, SGD, clipping), and
// for Adafactor the T5X update of Shazeer & Stern 2018 evaluated in f64.
#include <cmath>

#include "engine/optim/optimizer.h"
#include "gtest/gtest.h"

namespace permafrost {
namespace {

void SetGradient(Parameter& p, std::vector<float> values) {
  p.var().slot()->grad = Tensor::From(p.value().shape(), values, MemoryTag::kGradient);
}

// f32 state: some ten roundings of values of order one.
constexpr double kBound = 10 * 5.96e-8 * 4;

void ExpectValues(const Parameter& p, std::vector<double> expected) {
  ASSERT_EQ(p.count(), static_cast<int64_t>(expected.size()));
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(p.value().f32()[i], expected[i], kBound) << p.name() << " element " << i;
  }
}

TEST(Optimizer, AdamWIsTorchs) {
  Context c;
  ParameterList list;
  Parameter& p = list.Add("p", Tensor::From({1, 1}, {1}));
  Optimizer optimizer({.learning_rate = 0.1, .weight_decay = 0.01}, list);
  SetGradient(p, {0.5f});
  EXPECT_EQ(optimizer.Step(c, 1), 0.5);
  ExpectValues(p, {0.899000002});
  EXPECT_FALSE(p.gradient());
  SetGradient(p, {-0.25f});
  optimizer.Step(c, 1);
  ExpectValues(p, {0.8714672987});
  EXPECT_EQ(optimizer.steps(), 2);
}

TEST(Optimizer, ClippingIsByTheGlobalNorm) {
  Context c;
  ParameterList list;
  Parameter& p = list.Add("p", Tensor::From({1, 2}, {1, -2}));
  Parameter& q = list.Add("q", Tensor::From({1, 1}, {0.5f}));
  Optimizer optimizer({.learning_rate = 0.1, .weight_decay = 0.01, .clip = 1}, list);
  SetGradient(p, {3, 4});
  SetGradient(q, {12});
  EXPECT_EQ(optimizer.Step(c, 1), 13);  // before clipping
  ExpectValues(p, {0.899000004333, -2.09799999675});
  ExpectValues(q, {0.399500001083});
  SetGradient(p, {0.1f, -0.2f});
  SetGradient(q, {0.3f});
  EXPECT_NEAR(optimizer.Step(c, 1), 0.374165738677, 1e-7);  // below the limit: not scaled
  ExpectValues(p, {0.807024404006, -2.11150539737});
  ExpectValues(q, {0.31236808389});
}

TEST(Optimizer, SgdIsTorchs) {
  Context c;
  ParameterList list;
  Parameter& p = list.Add("p", Tensor::From({1, 2}, {1, -2}));
  Optimizer optimizer(
      {.kind = OptimizerKind::kSgd, .learning_rate = 0.1, .beta1 = 0.9, .weight_decay = 0.01},
      list);
  const std::vector<std::vector<float>> gradients = {{0.5f, 1}, {-0.25f, 0.5f}, {1, 0}};
  const std::vector<std::vector<double>> expected = {
      {0.949, -2.098}, {0.927151, -2.234102}, {0.806559749, -2.354359698}};
  for (size_t i = 0; i < gradients.size(); ++i) {
    SetGradient(p, gradients[i]);
    optimizer.Step(c, 1);
    ExpectValues(p, expected[i]);
  }
}

TEST(Optimizer, AdafactorFactored) {
  Context c;
  ParameterList list;
  Parameter& p = list.Add("p", Tensor::From({2, 3}, {1, -2, 3, 0.5f, 0.25f, -1}));
  Optimizer optimizer({.kind = OptimizerKind::kAdafactor,
                       .learning_rate = 0.3,
                       .weight_decay = 1e-5,
                       .factored = true},
                      list);
  SetGradient(p, {0.1f, -0.2f, 0.3f, 0.4f, 0.5f, -0.6f});
  optimizer.Step(c, 1);
  ExpectValues(p, {0.8144859, -1.7159208, 2.6579174, 0.1835982, -0.0528107, -0.7082865});
  SetGradient(p, {-0.3f, 0.1f, 0.2f, 0.2f, -0.1f, 0.4f});
  optimizer.Step(c, 1);
  ExpectValues(p, {1.2956545, -1.8833335, 2.4356841, 0.0043453, 0.040748, -0.9566131});
}

// The prompt's rule: V of every element. At step 1 V = g^2, so u = sign(g) and p = p (1 - wd) - lr
// sign(g).
TEST(Optimizer, AdafactorUnfactored) {
  Context c;
  ParameterList list;
  Parameter& p = list.Add("p", Tensor::From({1, 2}, {1, -2}));
  Optimizer optimizer(
      {.kind = OptimizerKind::kAdafactor, .learning_rate = 0.3, .weight_decay = 1e-5}, list);
  SetGradient(p, {0.1f, -5});
  optimizer.Step(c, 0.5);
  ExpectValues(p, {1 - 1e-5 - 0.15, -2 * (1 - 1e-5) + 0.15});
  // Step 2: b = 1 - 2^-0.8; u = g / sqrt(b V + (1 - b) g^2), at most RMS 1.
  SetGradient(p, {-0.2f, 1});
  const double b = 1 - std::pow(2, -0.8);
  double u[2] = {-0.2 / std::sqrt(b * 0.01 + (1 - b) * 0.04), 1 / std::sqrt(b * 25 + (1 - b))};
  const double clip = std::max(1.0, std::sqrt((u[0] * u[0] + u[1] * u[1]) / 2));
  const double before[2] = {p.value().f32()[0], p.value().f32()[1]};
  optimizer.Step(c, 1);
  ExpectValues(
      p, {before[0] * (1 - 1e-5) - 0.3 * u[0] / clip, before[1] * (1 - 1e-5) - 0.3 * u[1] / clip});
}

// PEFT's unread tensors still decay: no gradient is a zero gradient.
TEST(Optimizer, AParameterWithoutGradientDecays) {
  Context c;
  ParameterList list;
  Parameter& p = list.Add("p", Tensor::From({1, 1}, {2}));
  Optimizer optimizer({.learning_rate = 0.1, .weight_decay = 0.01}, list);
  EXPECT_EQ(optimizer.Step(c, 1), 0);
  ExpectValues(p, {2 * (1 - 0.1 * 0.01)});
}

TEST(Optimizer, StateBytesFollowFromTheParameters) {
  struct Case {
    OptimizerConfig config;
    int64_t floats;
  };
  const std::vector<Case> cases = {
      {{.kind = OptimizerKind::kAdamW}, 2 * (12 + 5)},
      {{.kind = OptimizerKind::kSgd, .beta1 = 0.9}, 12 + 5},
      {{.kind = OptimizerKind::kSgd, .beta1 = 0}, 0},
      {{.kind = OptimizerKind::kAdafactor}, 12 + 5},
      {{.kind = OptimizerKind::kAdafactor, .factored = true}, (3 + 4) + 5},
  };
  for (const Case& test : cases) {
    const int64_t before = MemoryOf(MemoryTag::kOptimizer).live;
    ParameterList list;
    list.Add("matrix", Tensor::Zeros({3, 4}));
    list.Add("vector", Tensor::Zeros({1, 5}));
    const Optimizer optimizer(test.config, list);
    EXPECT_EQ(MemoryOf(MemoryTag::kOptimizer).live - before, test.floats * 4);
    int64_t named = 0;
    for (const auto& [name, tensor] : optimizer.State()) named += tensor.count();
    EXPECT_EQ(named, test.floats);
  }
}

// State() and steps() are all that an exact resume needs.
TEST(Optimizer, ResumesToTheSameBits) {
  Context c;
  const std::vector<float> gradient = {0.3f, -0.7f};
  ParameterList one, two;
  one.Add("p", Tensor::From({1, 2}, {1, -2}));
  Optimizer first({}, one);
  for (int i = 0; i < 3; ++i) {
    SetGradient(one[0], gradient);
    first.Step(c, 1);
  }
  two.Add("p", one[0].value().Clone());
  Optimizer second({}, two);
  const auto from = first.State(), to = second.State();
  ASSERT_EQ(from.size(), to.size());
  for (size_t i = 0; i < from.size(); ++i) {
    ASSERT_EQ(from[i].first, to[i].first);
    std::copy_n(from[i].second.f32(), from[i].second.count(), to[i].second.f32());
  }
  second.set_steps(first.steps());
  SetGradient(one[0], gradient);
  SetGradient(two[0], gradient);
  first.Step(c, 0.5);
  second.Step(c, 0.5);
  EXPECT_EQ(one[0].value().f32()[0], two[0].value().f32()[0]);
  EXPECT_EQ(one[0].value().f32()[1], two[0].value().f32()[1]);
}

}  // namespace
}  // namespace permafrost
