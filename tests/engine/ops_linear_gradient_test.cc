// Gradients of products and low-rank terms.
#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

TEST(LinearGradient, FrozenWeight) {
  for (const Shape w_shape : {Shape{5, 7}, Shape{61, 3}}) {
    Random random(1);
    Context c;
    const Tensor w = RandomTensor(random, w_shape);
    const Tensor bias = RandomTensor(random, {1, w_shape.rows});
    const Weight weight = Weight::FromF32(c, w, DType::kF32);
    for (const Tensor& b : {Tensor(), bias}) {
      CheckGradients(
          [&](Context& ctx, const std::vector<Var>& v) { return Linear(ctx, v[0], weight, b); },
          {RandomTensor(random, {4, w_shape.columns})});
    }
  }
}

TEST(LinearGradient, ForwardIsTheProduct) {
  Random random(2);
  Context c;
  const Tensor w = RandomTensor(random, {50, 9}), x = RandomTensor(random, {6, 9});
  const Tensor bias = RandomTensor(random, {1, 50});
  const Tensor y = Linear(c, x, Weight::FromF32(c, w, DType::kF32), bias).value();
  const Tensor plain = MatMulTransposed(c, x, w).value();
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 50; ++j) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < 9; ++k) {
        const double term = static_cast<double>(x.row(i)[k]) * static_cast<double>(w.row(j)[k]);
        sum += term;
        size += std::abs(term);
      }
      const double bound = 10 * std::exp2(-24) * (size + std::abs(bias.f32()[j]));
      EXPECT_NEAR(plain.row(i)[j], sum, bound);
      EXPECT_NEAR(y.row(i)[j], sum + bias.f32()[j], bound);
    }
  }
}

TEST(LinearGradient, TrainableWeight) {
  Random random(3);
  CheckGradients(
      [](Context& c, const std::vector<Var>& v) { return MatMulTransposed(c, v[0], v[1]); },
      {RandomTensor(random, {4, 5}), RandomTensor(random, {6, 5})});
}

TEST(LinearGradient, AddBias) {
  Random random(4);
  CheckGradients([](Context& c, const std::vector<Var>& v) { return AddBias(c, v[0], v[1]); },
                 {RandomTensor(random, {70, 3}), RandomTensor(random, {1, 3})});
}

// Two adapters' spans, rows between them untouched; the second term runs on the other span.
class LowRankGradient : public testing::TestWithParam<float> {};

TEST_P(LowRankGradient, TwoSpans) {
  Random random(5);
  const std::vector<TaskSpan> spans = {{1, 3, 0}, {5, 8, 0}};
  const LowRank options{
      .scale = 1.5f, .dropout = GetParam(), .mask = {.seed = 11, .step = 7, .place = 3}};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return AddLowRank(c, v[0], v[1], v[2], v[3], options, spans);
      },
      {RandomTensor(random, {9, 5}), RandomTensor(random, {9, 4}), RandomTensor(random, {2, 4}),
       RandomTensor(random, {5, 2})},
      {.configure = [](Context& c) { c.training = true; }});
}

TEST_P(LowRankGradient, Gated) {
  Random random(6);
  const std::vector<TaskSpan> spans = {{1, 3, 0}, {5, 8, 0}};
  const LowRank options{
      .scale = 0.75f, .dropout = GetParam(), .mask = {.seed = 12, .step = 3, .place = 2}};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return AddLowRank(c, v[0], v[1], v[2], v[3], options, spans, v[4]);
      },
      {RandomTensor(random, {9, 5}), RandomTensor(random, {9, 4}), RandomTensor(random, {2, 4}),
       RandomTensor(random, {5, 2}), RandomTensor(random, {9, 1})},
      {.configure = [](Context& c) { c.training = true; }});
}

INSTANTIATE_TEST_SUITE_P(Dropout, LowRankGradient, testing::Values(0.0f, 0.4f));

// y + scale * dropout(x) A^T B^T on the spans' rows, y elsewhere, with the mask of Dropout.
TEST(LowRank, ForwardActsOnItsSpansOnly) {
  Random random(6);
  Context c;
  c.training = true;
  const Tensor y = RandomTensor(random, {6, 3}), x = RandomTensor(random, {6, 4});
  const Tensor a = RandomTensor(random, {2, 4}), b = RandomTensor(random, {3, 2});
  const std::vector<TaskSpan> spans = {{1, 2, 0}, {3, 5, 0}};
  const DropoutMask mask{.seed = 0, .step = 0, .place = 9};
  const Tensor out =
      AddLowRank(c, y, x, a, b, {.scale = 0.5f, .dropout = 0.3f, .mask = mask}, spans).value();
  // The mask counts the rows of the spans.
  const Tensor dropped =
      PutRows(c, x, Dropout(c, TakeRows(c, x, spans), 0.3f, mask), spans).value();
  for (int64_t i = 0; i < 6; ++i) {
    const bool inside = i == 1 || i == 3 || i == 4;
    for (int64_t n = 0; n < 3; ++n) {
      double sum = 0, size = 0;
      for (int64_t r = 0; r < 2 && inside; ++r) {
        for (int64_t k = 0; k < 4; ++k) {
          const double term = 0.5 * static_cast<double>(dropped.row(i)[k]) *
                              static_cast<double>(a.row(r)[k]) * static_cast<double>(b.row(n)[r]);
          sum += term;
          size += std::abs(term);
        }
      }
      EXPECT_NEAR(out.row(i)[n], static_cast<double>(y.row(i)[n]) + sum,
                  inside ? 10 * std::exp2(-24) * (size + std::abs(y.row(i)[n])) : 0);
    }
  }
}

}  // namespace
}  // namespace permafrost
