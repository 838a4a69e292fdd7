// Gradients of elementwise ops and norms.
#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

TEST(PointwiseGradient, Add) {
  Random random(1);
  CheckGradients([](Context& c, const std::vector<Var>& v) { return Add(c, v[0], v[1]); },
                 {RandomTensor(random, {3, 5}), RandomTensor(random, {3, 5})});
  // The same value on both sides: its slot gets two parts from one node.
  CheckGradients([](Context& c, const std::vector<Var>& v) { return Add(c, v[0], v[0]); },
                 {RandomTensor(random, {3, 5})});
}

TEST(PointwiseGradient, Scale) {
  Random random(2);
  CheckGradients([](Context& c, const std::vector<Var>& v) { return Scale(c, v[0], -1.75f); },
                 {RandomTensor(random, {3, 5})});
}

TEST(PointwiseGradient, RmsNorm) {
  Random random(3);
  CheckGradients(
      [](Context& c, const std::vector<Var>& v) { return RmsNorm(c, v[0], v[1], 1e-3f); },
      {RandomTensor(random, {5, 19}), RandomTensor(random, {1, 19})});
}

TEST(PointwiseGradient, RmsNormOverSeveralReductionChunks) {
  Random random(4);
  CheckGradients(
      [](Context& c, const std::vector<Var>& v) { return RmsNorm(c, v[0], v[1], 1e-3f); },
      {RandomTensor(random, {70, 5}, 2), RandomTensor(random, {1, 5})}, {.h = 1.0 / 64});
}

TEST(PointwiseGradient, LayerNorm) {
  Random random(5);
  CheckGradients(
      [](Context& c, const std::vector<Var>& v) { return LayerNorm(c, v[0], v[1], v[2], 1e-3f); },
      {RandomTensor(random, {5, 19}), RandomTensor(random, {1, 19}),
       RandomTensor(random, {1, 19})});
}

class ActivationGradient : public testing::TestWithParam<Activation> {};

TEST_P(ActivationGradient, Plain) {
  Random random(6);
  Tensor x = RandomTensor(random, {3, 37});
  // Away from relu's kink by more than the stencil's reach.
  for (int64_t i = 0; i < x.count(); ++i) x.f32()[i] += std::copysign(0.15f, x.f32()[i]);
  CheckGradients(
      [](Context& c, const std::vector<Var>& v) { return Activate(c, GetParam(), v[0]); }, {x});
}

TEST_P(ActivationGradient, Gated) {
  Random random(7);
  Tensor gate = RandomTensor(random, {3, 21});
  for (int64_t i = 0; i < gate.count(); ++i) gate.f32()[i] += std::copysign(0.15f, gate.f32()[i]);
  CheckGradients(
      [](Context& c, const std::vector<Var>& v) { return Gated(c, GetParam(), v[0], v[1]); },
      {gate, RandomTensor(random, {3, 21})});
}

// Known values (model-spec goldens of both gelus) that tell the two apart.
TEST(Activation, TheTwoGelus) {
  Context c;
  const Tensor x = Tensor::From({1, 4}, {-3, -1, 0.5f, 1});
  const Tensor tanh = Activate(c, Activation::kGeluTanh, x).value();
  const Tensor erf = Activate(c, Activation::kGeluErf, x).value();
  const double tanh_expected[] = {-0.00363739, -0.15880801, 0.34571401, 0.84119199};
  const double erf_expected[] = {-0.00404969, -0.15865525, 0.34573123, 0.84134475};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(tanh.f32()[i], tanh_expected[i], 5e-7);
    EXPECT_NEAR(erf.f32()[i], erf_expected[i], 5e-7);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ActivationGradient,
                         testing::Values(Activation::kRelu, Activation::kGeluErf,
                                         Activation::kGeluTanh, Activation::kSilu,
                                         Activation::kTanh));

TEST(PointwiseGradient, ScaleColumns) {
  Random random(9);
  // Rows 2 and 7, 8 keep their values.
  const std::vector<TaskSpan> spans = {{0, 2, 0}, {3, 7, 0}};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) { return ScaleColumns(c, v[0], v[1], spans); },
      {RandomTensor(random, {9, 5}), RandomTensor(random, {1, 5})});
}

void Train(Context& c) { c.training = true; }

TEST(PointwiseGradient, Dropout) {
  Random random(8);
  CheckGradients(
      [](Context& c, const std::vector<Var>& v) {
        return Dropout(c, v[0], 0.3f, {5, 2, 4});
      },
      {RandomTensor(random, {7, 9})}, {.configure = Train});
}

TEST(Dropout, ActsInTrainingOnlyAndKeepsTheMean) {
  Context c;
  const Tensor x = Tensor::From({1, 2}, {1, 2});
  const Tensor same = Dropout(c, x, 0.5f, {5, 2, 1}).value();
  EXPECT_EQ(same.f32()[0], 1);
  EXPECT_EQ(same.f32()[1], 2);
  Train(c);
  Tensor ones({100, 100});
  std::fill_n(ones.f32(), ones.count(), 1.0f);
  const Tensor y = Dropout(c, ones, 0.25f, {5, 2, 1}).value();
  double kept = 0;
  for (const float v : y.values()) {
    EXPECT_TRUE(v == 0 || v == 1 / 0.75f) << v;
    kept += v != 0;
  }
  // Five standard deviations of a binomial.
  EXPECT_NEAR(kept, 7500, 5 * std::sqrt(10000 * 0.25 * 0.75));
  const Tensor later = Dropout(c, ones, 0.25f, {5, 3, 1}).value();
  EXPECT_FALSE(std::equal(y.values().begin(), y.values().end(), later.values().begin()));
}

}  // namespace
}  // namespace permafrost
