// c [m, n] with n <= 8: a vector of partial sums along k for every element of a small tile.
#include "kernels/cpu/matmul_dot.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_dot.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;

// b is [n, k] here whatever the caller's layout.
template <int kRows, int kCols>
HWY_INLINE void DotTile(const MatMulArgs& args, int64_t row, int64_t col) {
  const Tag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const float* a[kRows];
  const float* b[kCols];
  Vec acc[kRows][kCols];
#pragma GCC unroll 8
  for (int c = 0; c < kCols; ++c) b[c] = args.b + (col + c) * args.b_stride;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    a[r] = args.a + (row + r) * args.a_stride;
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) acc[r][c] = hn::Zero(d);
  }
  int64_t k = 0;
  for (; k + lanes <= args.k; k += lanes) {
    Vec x[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) x[r] = hn::LoadU(d, a[r] + k);
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      const Vec w = hn::LoadU(d, b[c] + k);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[r][c] = hn::MulAdd(x[r], w, acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    float* const out = args.c + (row + r) * args.c_stride + col;
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      float sum = hn::GetLane(hn::SumOfLanes(d, acc[r][c]));
      for (int64_t i = k; i < args.k; ++i) sum += a[r][i] * b[c][i];
      sum *= args.alpha;
      out[c] = args.write == Write::kAccumulate ? out[c] + sum : sum;
    }
  }
}

template <int kRows, int kCols>
void Rows(const MatMulArgs& args, int64_t begin, int64_t end, int64_t col) {
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) DotTile<kRows, kCols>(args, row, col);
  for (; row < end; ++row) DotTile<1, kCols>(args, row, col);
}

void DotRows(const MatMulArgs& args, int64_t begin, int64_t end) {
  int64_t col = 0;
#if HWY_TARGET == HWY_AVX3
  if (args.n - col >= 8) Rows<3, 8>(args, begin, end, col), col += 8;
  if (args.n - col >= 4) Rows<6, 4>(args, begin, end, col), col += 4;
#else
  for (; args.n - col >= 4; col += 4) Rows<3, 4>(args, begin, end, col);
#endif
  if (args.n - col >= 2) Rows<5, 2>(args, begin, end, col), col += 2;
  if (args.n - col >= 1) Rows<8, 1>(args, begin, end, col);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

namespace permafrost::kernels::cpu {
HWY_EXPORT(DotRows);

void MatMulDot(const MatMulArgs& args, const Parallel& parallel) {
  MatMulArgs dot = args;
  if (!args.transpose_b) {
    float* const b = static_cast<float*>(args.workspace);
    for (int64_t k = 0; k < args.k; ++k) {
      for (int64_t j = 0; j < args.n; ++j) b[j * args.k + k] = args.b[k * args.b_stride + j];
    }
    dot.b = b;
    dot.b_stride = args.k;
    dot.transpose_b = true;
  }
  constexpr int64_t kRows = 120;  // a multiple of the tile heights
  const auto rows = HWY_DYNAMIC_DISPATCH(DotRows);
  ParallelFor(parallel, (args.m + kRows - 1) / kRows, [&](int64_t block, int) {
    rows(dot, block * kRows, std::min(args.m, (block + 1) * kRows));
  });
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
