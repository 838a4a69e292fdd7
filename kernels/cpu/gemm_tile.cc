// Register tiles of the matrix products at every Highway target.
//
// A tile of rows x vectors holds its sums in registers: 8x3 of 32 registers with AVX-512, 6x2 of 16
// otherwise. bf16 weights are stored as pairs along the depth; a shift and a mask turn a vector of
// pairs into two vectors of f32, so the FMA loop runs at the speed of f32 weights.
#include "kernels/cpu/gemm_tile.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm_tile.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));

// Adds a row of tile sums to c. `c_step` is the distance of neighbours in the row.
void StoreEdge(const TileArgs& args, const float* sums, int64_t row, int64_t col, int64_t cols) {
  const int64_t c_row = args.transpose_c ? 1 : args.c_stride;
  const int64_t c_col = args.transpose_c ? args.c_stride : 1;
  float* c = args.c + row * c_row + col * c_col;
  for (int64_t j = 0; j < cols; ++j) {
    float value = sums[j] * args.alpha;
    if (args.bias != nullptr) value += args.bias[col + j];
    c[j * c_col] = args.accumulate ? c[j * c_col] + value : value;
  }
}

template <int kRows, int kVecs>
HWY_INLINE void StoreTile(const TileArgs& args, Vec (&acc)[kRows][kVecs], int64_t row,
                          int64_t col) {
  const Tag d;
  constexpr int kWidth = kVecs * kLanes;
  const int64_t cols = args.cols - col;
  if (cols < kWidth || args.transpose_c) {
    HWY_ALIGN float sums[kWidth];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) hn::Store(acc[r][v], d, sums + v * kLanes);
      StoreEdge(args, sums, row + r, col, cols < kWidth ? cols : kWidth);
    }
    return;
  }
  const Vec alpha = hn::Set(d, args.alpha);
  Vec bias[kVecs];
#pragma GCC unroll 3
  for (int v = 0; v < kVecs; ++v) {
    bias[v] = args.bias != nullptr ? hn::LoadU(d, args.bias + col + v * kLanes) : hn::Zero(d);
  }
  float* c = args.c + row * args.c_stride + col;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) {
      float* const to = c + r * args.c_stride + v * kLanes;
      Vec value = hn::Add(hn::Mul(acc[r][v], alpha), bias[v]);
      if (args.accumulate) value = hn::Add(hn::LoadU(d, to), value);
      hn::StoreU(value, d, to);
    }
  }
}

// Fetches the lines of c that the tile will write, so that they arrive while it multiplies.
template <int kRows, int kVecs>
HWY_INLINE void PrefetchTile(const TileArgs& args, int64_t row, int64_t col) {
  if (args.transpose_c) return;
  const float* c = args.c + row * args.c_stride + col;
  for (int r = 0; r < kRows; ++r, c += args.c_stride) {
    for (int v = 0; v < kVecs; ++v) hwy::Prefetch(c + v * kLanes);
  }
}

// One step of depth: acc += a column of `a` times a row of b.
template <int kRows, int kVecs>
HWY_INLINE void Step(Vec (&acc)[kRows][kVecs], const float* const (&a)[kRows], int64_t k,
                     const Vec (&b)[kVecs]) {
  const Tag d;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Vec x = hn::Set(d, a[r][k]);
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::MulAdd(x, b[v], acc[r][v]);
  }
}

template <bool kPairs, int kRows, int kVecs>
HWY_INLINE void Tile(const TileArgs& args, int64_t row, int64_t col) {
  const Tag d;
  const hn::RebindToUnsigned<Tag> du;
  PrefetchTile<kRows, kVecs>(args, row, col);
  Vec acc[kRows][kVecs];
  const float* a[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    a[r] = static_cast<const float*>(args.a) + (row + r) * args.a_stride;
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::Zero(d);
  }
  Vec b[kVecs];
  if constexpr (kPairs) {
    const uint32_t* words = static_cast<const uint32_t*>(args.b) + col;
    const auto upper = hn::Set(du, 0xffff0000u);
    for (int64_t k = 0; k < args.depth; ++k, words += kTileColumns) {
#pragma GCC unroll 3
      for (int v = 0; v < kVecs; ++v) {
        b[v] = hn::BitCast(d, hn::ShiftLeft<16>(hn::LoadU(du, words + v * kLanes)));
      }
      Step<kRows, kVecs>(acc, a, 2 * k, b);
#pragma GCC unroll 3
      for (int v = 0; v < kVecs; ++v) {
        b[v] = hn::BitCast(d, hn::And(hn::LoadU(du, words + v * kLanes), upper));
      }
      Step<kRows, kVecs>(acc, a, 2 * k + 1, b);
    }
  } else {
    const float* from = static_cast<const float*>(args.b) + col;
    for (int64_t k = 0; k < args.depth; ++k, from += args.b_stride) {
#pragma GCC unroll 3
      for (int v = 0; v < kVecs; ++v) b[v] = hn::LoadU(d, from + v * kLanes);
      Step<kRows, kVecs>(acc, a, k, b);
    }
  }
  StoreTile<kRows, kVecs>(args, acc, row, col);
}

// All rows of one group of kVecs vectors of columns.
template <bool kPairs, int kRows, int kVecs>
void Rows(const TileArgs& args, int64_t col) {
  int64_t row = 0;
  for (; row + kRows <= args.rows; row += kRows) Tile<kPairs, kRows, kVecs>(args, row, col);
  if constexpr (kRows > 8) {
    if (row + 8 <= args.rows) Tile<kPairs, 8, kVecs>(args, row, col), row += 8;
  }
  if constexpr (kRows > 4) {
    if (row + 4 <= args.rows) Tile<kPairs, 4, kVecs>(args, row, col), row += 4;
  }
  if (row + 2 <= args.rows) Tile<kPairs, 2, kVecs>(args, row, col), row += 2;
  if (row < args.rows) Tile<kPairs, 1, kVecs>(args, row, col);
}

template <bool kPairs>
void Columns(const TileArgs& args) {
#if HWY_TARGET == HWY_AVX3
  if (args.cols > 2 * kLanes) {
    Rows<kPairs, 8, 3>(args, 0);
  } else if (args.cols > kLanes) {
    Rows<kPairs, 10, 2>(args, 0);
  } else {
    Rows<kPairs, 10, 1>(args, 0);
  }
#else
  // Compilers need spare registers for pairs, or they spill sums.
  for (int64_t col = 0; col < args.cols; col += 2 * kLanes)
    Rows<kPairs, kPairs ? 5 : 6, 2>(args, col);
#endif
}

void TilesF32Here(const TileArgs& args) { Columns<false>(args); }
void TilesBf16FmaHere(const TileArgs& args) { Columns<true>(args); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace permafrost::kernels::cpu {
HWY_EXPORT(TilesF32Here);
HWY_EXPORT(TilesBf16FmaHere);
void TilesF32(const TileArgs& args) { HWY_DYNAMIC_DISPATCH(TilesF32Here)(args); }
void TilesBf16Fma(const TileArgs& args) { HWY_DYNAMIC_DISPATCH(TilesBf16FmaHere)(args); }
}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
