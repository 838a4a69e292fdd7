// Decompositions against their definitions, and the signs of QR against values of torch.linalg.qr.
#include "peft/linear_algebra.h"

#include <algorithm>
#include <cmath>

#include "engine/random_tensor.h"
#include "gtest/gtest.h"

namespace permafrost {
namespace {

double Product(const Tensor& a, int64_t i, const Tensor& b, int64_t j) {  // columns
  double sum = 0;
  for (int64_t k = 0; k < a.rows(); ++k) sum += static_cast<double>(a.row(k)[i]) * b.row(k)[j];
  return sum;
}

void ExpectOrthonormalColumns(const Tensor& q) {
  for (int64_t i = 0; i < q.columns(); ++i) {
    for (int64_t j = 0; j < q.columns(); ++j) {
      EXPECT_NEAR(Product(q, i, q, j), i == j ? 1 : 0, 1e-6) << i << " " << j;
    }
  }
}

// ||w - u diag(s) v^T||
double Distance(const Tensor& w, const Svd& svd) {
  double sum = 0;
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t j = 0; j < w.columns(); ++j) {
      double value = w.row(i)[j];
      for (int64_t k = 0; k < svd.s.columns(); ++k) {
        value -= static_cast<double>(svd.u.row(i)[k]) * svd.s.f32()[k] * svd.v.row(j)[k];
      }
      sum += value * value;
    }
  }
  return std::sqrt(sum);
}

TEST(LinearAlgebra, SvdIsTheBestApproximationOfItsRank) {
  for (const Shape shape : {Shape{7, 5}, Shape{5, 7}, Shape{40, 33}, Shape{1, 6}}) {
    Random random(1);
    const Tensor w = NormalTensor(shape, 1, random);
    double norm = 0;
    for (const float v : w.values()) norm += static_cast<double>(v) * v;
    norm = std::sqrt(norm);
    for (const int64_t rank : {int64_t{1}, int64_t{3}, int64_t{100}}) {
      const Svd svd = TruncatedSvd(w, rank);
      const int64_t r = std::min({rank, shape.rows, shape.columns});
      ASSERT_EQ(svd.u.shape(), (Shape{shape.rows, r}));
      ASSERT_EQ(svd.s.shape(), (Shape{1, r}));
      ASSERT_EQ(svd.v.shape(), (Shape{shape.columns, r}));
      ExpectOrthonormalColumns(svd.u);
      ExpectOrthonormalColumns(svd.v);
      double kept = 0;
      for (int64_t k = 0; k < r; ++k) {
        kept += static_cast<double>(svd.s.f32()[k]) * svd.s.f32()[k];
        EXPECT_LE(svd.s.f32()[k], svd.s.f32()[std::max<int64_t>(k, 1) - 1]);
        // W v = s u: a singular pair, not just any factor of the right size.
        for (int64_t i = 0; i < w.rows(); ++i) {
          double wv = 0;
          for (int64_t j = 0; j < w.columns(); ++j) {
            wv += static_cast<double>(w.row(i)[j]) * svd.v.row(j)[k];
          }
          EXPECT_NEAR(wv, svd.s.f32()[k] * svd.u.row(i)[k], 1e-5 * norm);
        }
      }
      EXPECT_NEAR(svd.norm, norm, 1e-6 * norm);
      EXPECT_NEAR(svd.residual, std::sqrt(std::max(0.0, norm * norm - kept)), 2e-3 * norm);
      EXPECT_NEAR(Distance(w, svd), svd.residual, 1e-6 * norm);
    }
  }
}

TEST(LinearAlgebra, QrIsAFactorization) {
  for (const Shape shape : {Shape{7, 5}, Shape{5, 7}, Shape{33, 33}}) {
    Random random(2);
    const Tensor w = NormalTensor(shape, 1, random);
    const Qr qr = QrDecomposition(w);
    const int64_t k = std::min(shape.rows, shape.columns);
    ASSERT_EQ(qr.q.shape(), (Shape{shape.rows, k}));
    ASSERT_EQ(qr.r.shape(), (Shape{k, shape.columns}));
    ExpectOrthonormalColumns(qr.q);
    for (int64_t i = 0; i < shape.rows; ++i) {
      for (int64_t j = 0; j < shape.columns; ++j) {
        double sum = 0;
        for (int64_t l = 0; l < k; ++l) {
          sum += static_cast<double>(qr.q.row(i)[l]) * qr.r.row(l)[j];
          EXPECT_TRUE(l <= j || qr.r.row(l)[j] == 0);
        }
        EXPECT_NEAR(sum, w.row(i)[j], 1e-5);
      }
    }
  }
}

TEST(LinearAlgebra, QrHasTorchsSigns) {
  const Tensor w = Tensor::From({3, 2}, {1, 2, -3, 4, 5, -6});
  const Qr qr = QrDecomposition(w);
  // torch.linalg.qr(torch.tensor([[1., 2.], [-3., 4.], [5., -6.]])) of torch 2.15.0
  const std::vector<float> q = {-0.1690309f, -0.9799579f, 0.5070926f,
                                -0.1781741f, -0.8451543f, 0.08908701f};
  const std::vector<float> r = {-5.91608f, 6.761235f, 0, -3.207134f};
  for (size_t i = 0; i < q.size(); ++i) EXPECT_NEAR(qr.q.values()[i], q[i], 1e-6);
  for (size_t i = 0; i < r.size(); ++i) EXPECT_NEAR(qr.r.values()[i], r[i], 1e-5);
}

}  // namespace
}  // namespace permafrost
