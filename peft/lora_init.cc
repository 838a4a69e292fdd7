#include "peft/lora_init.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "engine/ops.h"

namespace permafrost {
namespace {

double Dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// Makes the rows of x orthonormal, twice over as rounding asks for (modified Gram-Schmidt). A row
// that depends on those before it becomes zero.
void OrthonormalizeRows(const Tensor& x) {
  const int64_t n = x.columns();
  for (int64_t i = 0; i < x.rows(); ++i) {
    const double before = std::sqrt(Dot(x.row(i), x.row(i), n));
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < i; ++j) {
        const double along = Dot(x.row(i), x.row(j), n);
        for (int64_t k = 0; k < n; ++k) {
          x.row(i)[k] = static_cast<float>(x.row(i)[k] - along * x.row(j)[k]);
        }
      }
    }
    const double norm = std::sqrt(Dot(x.row(i), x.row(i), n));
    const double factor = norm > 1e-6 * before ? 1 / norm : 0;
    for (int64_t k = 0; k < n; ++k) x.row(i)[k] = static_cast<float>(factor * x.row(i)[k]);
  }
}

// Eigenvalues of a symmetric matrix on its diagonal, eigenvectors in the columns of the result
// (cyclic Jacobi rotations; Golub and Van Loan, 8.5).
std::vector<std::vector<double>> Diagonalize(std::vector<std::vector<double>>& g) {
  const size_t n = g.size();
  std::vector<std::vector<double>> v(n, std::vector<double>(n));
  for (size_t i = 0; i < n; ++i) v[i][i] = 1;
  constexpr int kMostSweeps = 30;
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    double off = 0, diagonal = 0;
    for (size_t i = 0; i < n; ++i) {
      diagonal += g[i][i] * g[i][i];
      for (size_t j = 0; j < i; ++j) off += g[i][j] * g[i][j];
    }
    if (off <= 1e-28 * diagonal) break;
    for (size_t p = 0; p < n; ++p) {
      for (size_t q = p + 1; q < n; ++q) {
        if (g[p][q] == 0) continue;
        const double theta = (g[q][q] - g[p][p]) / (2 * g[p][q]);
        const double t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double cosine = 1 / std::sqrt(t * t + 1), sine = t * cosine;
        const auto rotate = [&](double& x, double& y) {
          const double old = x;
          x = cosine * old - sine * y;
          y = sine * old + cosine * y;
        };
        for (size_t k = 0; k < n; ++k) rotate(g[k][p], g[k][q]);
        for (size_t k = 0; k < n; ++k) rotate(g[p][k], g[q][k]);
        for (size_t k = 0; k < n; ++k) rotate(v[k][p], v[k][q]);
      }
    }
  }
  return v;
}

std::vector<std::vector<double>> Gram(const Tensor& x) {
  const size_t n = static_cast<size_t>(x.rows());
  std::vector<std::vector<double>> g(n, std::vector<double>(n));
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      g[i][j] = g[j][i] =
          Dot(x.row(static_cast<int64_t>(i)), x.row(static_cast<int64_t>(j)), x.columns());
    }
  }
  return g;
}

Tensor TransposedOf(const Tensor& x) {
  Tensor t({x.columns(), x.rows()});
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < x.columns(); ++j) t.row(j)[i] = x.row(i)[j];
  }
  return t;
}

}  // namespace

LowRankPair PissaPair(Context& c, const Weight& w, int64_t rank, double scale, Random& random) {
  // More directions than are wanted and many rounds: the wanted ones converge although singular
  // values lie close together.
  constexpr int64_t kMoreDirections = 12;
  constexpr int kMostRounds = 100;
  const Tensor plain = w.ToF32(c), transposed = TransposedOf(plain);
  const int64_t directions = std::min({rank + kMoreDirections, w.outputs(), w.inputs()});
  Tensor right = NormalTensor({directions, w.inputs()}, 1, random);  // rows of V^T
  OrthonormalizeRows(right);
  Tensor image;  // V^T W^T [directions, N]
  double captured = 0;
  for (int round = 0; round < kMostRounds; ++round) {
    image = MatMulTransposed(c, right, plain).value();
    const double norm = Dot(image.f32(), image.f32(), image.count());
    if (norm <= captured * (1 + 1e-9)) break;
    captured = norm;
    OrthonormalizeRows(image);
    right = MatMulTransposed(c, image, transposed).value();
    OrthonormalizeRows(right);
  }
  image = MatMulTransposed(c, right, plain).value();
  std::vector<std::vector<double>> gram = Gram(image);
  const std::vector<std::vector<double>> vectors = Diagonalize(gram);
  std::vector<size_t> order(gram.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t i, size_t j) { return gram[i][i] > gram[j][j]; });

  LowRankPair pair{Tensor::Zeros({rank, w.inputs()}), Tensor::Zeros({w.outputs(), rank})};
  for (int64_t r = 0; r < rank; ++r) {
    const size_t column = order[static_cast<size_t>(r)];
    const double singular = std::sqrt(std::max(0.0, gram[column][column]));
    if (singular == 0) continue;  // W has a smaller rank
    const double for_a = std::sqrt(singular / scale), for_b = 1 / std::sqrt(singular * scale);
    for (int64_t i = 0; i < directions; ++i) {
      const double weight = vectors[static_cast<size_t>(i)][column];
      for (int64_t k = 0; k < w.inputs(); ++k) {
        pair.a.row(r)[k] += static_cast<float>(for_a * weight * right.row(i)[k]);
      }
      for (int64_t n = 0; n < w.outputs(); ++n) {
        pair.b.row(n)[r] += static_cast<float>(for_b * weight * image.row(i)[n]);
      }
    }
  }
  return pair;
}

LowRankPair OloraPair(Context& c, const Weight& w, int64_t rank) {
  const Tensor plain = w.ToF32(c);
  Tensor q({rank, w.outputs()});  // rows: the first columns of W
  for (int64_t r = 0; r < rank; ++r) {
    for (int64_t n = 0; n < w.outputs(); ++n) q.row(r)[n] = plain.row(n)[r];
  }
  OrthonormalizeRows(q);
  return {MatMulTransposed(c, q, TransposedOf(plain)).value(), TransposedOf(q)};
}

Tensor StackedRows(const Tensor& x, const Tensor& y) {
  Tensor out({x.rows() + y.rows(), x.columns()});
  std::copy_n(x.f32(), x.count(), out.f32());
  std::copy_n(y.f32(), y.count(), out.row(x.rows()));
  return out;
}

Tensor WithNegatedColumns(const Tensor& x, const Tensor& y) {
  Tensor out({x.rows(), x.columns() + y.columns()});
  for (int64_t i = 0; i < x.rows(); ++i) {
    std::copy_n(x.row(i), x.columns(), out.row(i));
    for (int64_t j = 0; j < y.columns(); ++j) out.row(i)[x.columns() + j] = -y.row(i)[j];
  }
  return out;
}

}  // namespace permafrost
