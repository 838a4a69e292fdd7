// DoRA's parts: norms of changed rows against the sum itself in f64, and the gradient of outputs
// set to a magnitude.
#include <cmath>
#include <cstring>

#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

struct Problem {
  Tensor w, a, b;
  float scale;
};

Problem MakeProblem(int64_t outputs, int64_t inputs, int64_t rank) {
  Random random(3);
  return {RandomTensor(random, {outputs, inputs}), RandomTensor(random, {rank, inputs}),
          RandomTensor(random, {outputs, rank}, 0.5), 0.75f};
}

double ExactNorm(const Problem& p, int64_t n) {
  double square = 0;
  for (int64_t k = 0; k < p.w.columns(); ++k) {
    double element = p.w.row(n)[k];
    for (int64_t r = 0; r < p.a.rows(); ++r) {
      element += static_cast<double>(p.scale) * p.b.row(n)[r] * p.a.row(r)[k];
    }
    square += element * element;
  }
  return std::sqrt(square);
}

Tensor Norms(const Problem& p, int threads = 1) {
  Context c(threads);
  const Weight w = Weight::FromF32(c, p.w, DType::kF32);
  return ChangedRowNorms(c, w, SquaredRowNorms(c, w), p.a, p.b, p.scale);
}

TEST(ChangedRowNorms, AreTheNormsOfTheSum) {
  for (const Shape shape : {Shape{5, 7}, Shape{300, 33}, Shape{1, 64}}) {
    for (const int64_t rank : {1, 3, 9}) {
      const Problem p = MakeProblem(shape.rows, shape.columns, rank);
      const Tensor norms = Norms(p), threaded = Norms(p, 3);
      for (int64_t n = 0; n < shape.rows; ++n) {
        EXPECT_NEAR(norms.f32()[n], ExactNorm(p, n), 1e-5 * ExactNorm(p, n)) << n;
        EXPECT_EQ(norms.f32()[n], threaded.f32()[n]) << n;
      }
    }
  }
}

// B A takes nearly all of row 1 away: the sum of large terms would leave roundings only.
TEST(ChangedRowNorms, WhereTheChangeCancelsTheWeight) {
  Problem p = MakeProblem(4, 17, 2);
  for (int64_t k = 0; k < 17; ++k) {
    p.w.row(1)[k] = -p.scale * (p.b.row(1)[0] * p.a.row(0)[k] + p.b.row(1)[1] * p.a.row(1)[k]) +
                    1e-5f * static_cast<float>(k + 1);
  }
  EXPECT_LT(ExactNorm(p, 1), 1e-3);
  EXPECT_NEAR(Norms(p).f32()[1], ExactNorm(p, 1), 1e-5 * ExactNorm(p, 1));
}

TEST(ChangedRowNorms, WithoutChangeTheyAreTheSquaresRoots) {
  Problem p = MakeProblem(6, 11, 2);
  p.b = Tensor::Zeros({6, 2});
  for (int64_t n = 0; n < 6; ++n) {
    EXPECT_NEAR(Norms(p).f32()[n], ExactNorm(p, n), std::exp2(-24) * ExactNorm(p, n));
  }
}

// The norms are constants; bf16 weights are what is packed.
TEST(ChangedRowNorms, OfAPackedWeight) {
  Problem p = MakeProblem(40, 21, 3);
  Context c(1, Precision::kBF16);
  const Weight w = Weight::FromF32(c, p.w, DType::kBF16);
  const Tensor norms = ChangedRowNorms(c, w, SquaredRowNorms(c, w), p.a, p.b, p.scale);
  p.w = w.ToF32(c);
  for (int64_t n = 0; n < 40; ++n) {
    // A is rounded to bf16 in one of three terms.
    EXPECT_NEAR(norms.f32()[n], ExactNorm(p, n), std::exp2(-8) * ExactNorm(p, n));
  }
}

TEST(SetMagnitudeGradient, TwoSpans) {
  Random random(5);
  const std::vector<TaskSpan> spans = {{1, 3, 0}, {5, 8, 0}};
  Tensor norms = RandomTensor(random, {1, 5});
  for (int64_t i = 0; i < 5; ++i) norms.f32()[i] = 0.5f + std::abs(norms.f32()[i]);
  const Tensor y = RandomTensor(random, {9, 5}), m = RandomTensor(random, {1, 5});
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return SetMagnitude(c, v[0], v[1], norms, v[2], spans);
      },
      {y, m, RandomTensor(random, {1, 5})});
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return SetMagnitude(c, v[0], v[1], norms, Var(), spans);
      },
      {y, m});
}

TEST(SetMagnitude, ActsOnItsSpansOnlyAndIsTheIdentityAtTheNorm) {
  Random random(6);
  Context c;
  const Tensor y = RandomTensor(random, {6, 3}), bias = RandomTensor(random, {1, 3});
  const Tensor m = Tensor::From({1, 3}, {2, 3, 0.5f}), norms = Tensor::From({1, 3}, {1, 3, 2});
  const std::vector<TaskSpan> spans = {{1, 2, 0}, {3, 5, 0}};
  const Tensor out = SetMagnitude(c, y.Clone(), m, norms, bias, spans).value();
  for (int64_t i = 0; i < 6; ++i) {
    const bool inside = i == 1 || i == 3 || i == 4;
    for (int64_t n = 0; n < 3; ++n) {
      const double g = inside ? static_cast<double>(m.f32()[n]) / norms.f32()[n] : 1;
      const double v = y.row(i)[n], b = bias.f32()[n];
      EXPECT_NEAR(out.row(i)[n], v + (g - 1) * (v - b),
                  g == 1 ? 0 : 4 * std::exp2(-24) * g * (std::abs(v) + std::abs(b)));
    }
  }
}

}  // namespace
}  // namespace permafrost
