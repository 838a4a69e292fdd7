// Gradients and values of LoRA's smaller parts: a bias on spans, rows scaled one by one, a low-rank
// change of an embedding.
#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

const std::vector<TaskSpan> kSpans = {{1, 3, 0}, {5, 8, 0}};

TEST(LowRankParts, SpanBiasGradient) {
  Random random(1);
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return AddSpanBias(c, v[0], v[1], 1.5f, kSpans);
      },
      {RandomTensor(random, {9, 5}), RandomTensor(random, {1, 5})});
}

TEST(LowRankParts, SpanBiasActsOnItsSpansOnly) {
  Random random(2);
  Context c;
  const Tensor y = RandomTensor(random, {9, 5}), bias = RandomTensor(random, {1, 5});
  const Tensor out = AddSpanBias(c, y.Clone(), bias, 1.5f, kSpans).value();
  for (int64_t i = 0; i < 9; ++i) {
    const bool inside = (i >= 1 && i < 3) || (i >= 5 && i < 8);
    for (int64_t j = 0; j < 5; ++j) {
      EXPECT_NEAR(out.row(i)[j], y.row(i)[j] + (inside ? 1.5f * bias.f32()[j] : 0),
                  inside ? 1e-6 : 0);
    }
  }
}

// Ids repeat within and across spans; one stands outside them.
TEST(LowRankParts, EmbeddingGradient) {
  Random random(4);
  const std::vector<int32_t> ids = {5, 2, 2, 0, 4, 2, 1, 3, 5};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return AddEmbeddingLowRank(c, v[0], v[1], v[2], 0.5f, ids, kSpans);
      },
      {RandomTensor(random, {9, 4}), RandomTensor(random, {2, 6}), RandomTensor(random, {4, 2})});
}

TEST(LowRankParts, EmbeddingAddsTheColumnOfItsId) {
  Random random(5);
  Context c;
  const std::vector<int32_t> ids = {5, 2, 2, 0, 4, 2, 1, 3, 5};
  const Tensor x = RandomTensor(random, {9, 4}), a = RandomTensor(random, {2, 6});
  const Tensor b = RandomTensor(random, {4, 2});
  const Tensor out = AddEmbeddingLowRank(c, x.Clone(), a, b, 0.5f, ids, kSpans).value();
  for (int64_t i = 0; i < 9; ++i) {
    const bool inside = (i >= 1 && i < 3) || (i >= 5 && i < 8);
    for (int64_t k = 0; k < 4; ++k) {
      double change = 0;
      for (int64_t r = 0; r < 2 && inside; ++r) {
        change += 0.5 * static_cast<double>(b.row(k)[r]) * a.row(r)[ids[static_cast<size_t>(i)]];
      }
      EXPECT_NEAR(out.row(i)[k], static_cast<double>(x.row(i)[k]) + change, inside ? 2e-6 : 0);
    }
  }
}

}  // namespace
}  // namespace permafrost
