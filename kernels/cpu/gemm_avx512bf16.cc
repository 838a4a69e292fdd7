// The bf16 product with AVX512-BF16 dot products, which Highway 1.0.3 lacks.
//
// This file alone is compiled with AVX-512 flags, and is called only where the CPU has them. It
// includes nothing but intrinsics and plain structs: an inline function of any other header would
// be compiled with AVX-512 here, and the linker might keep that copy for all CPUs.
#include "kernels/cpu/gemm_tile.h"

#ifdef __AVX512BF16__

#include <immintrin.h>

namespace permafrost::kernels::cpu {
namespace {

inline __m512bh LoadPairs(const uint32_t* from) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
}

// The first `lanes` of a vector; all beyond 15, none below 1.
inline __mmask16 FirstLanes(int64_t lanes) {
  if (lanes >= 16) return 0xffff;
  return lanes <= 0 ? 0 : static_cast<__mmask16>((1u << lanes) - 1);
}

// Unlike the Highway tiles this one has real masked loads and stores for the edge columns.
template <int kRows, int kVecs>
inline __attribute__((always_inline)) void Tile(const TileArgs& args, int64_t row) {
  // The lines of c that the tile will write arrive while it multiplies.
  for (int r = 0; r < kRows; ++r) {
    const float* const c = args.c + (row + r) * args.c_stride;
    for (int v = 0; v < kVecs; ++v) _mm_prefetch(c + 16 * v, _MM_HINT_T0);
  }
  __m512 acc[kRows][kVecs];
  const uint32_t* a[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    a[r] = reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(args.a) +
                                             (row + r) * args.a_stride);
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) acc[r][v] = _mm512_setzero_ps();
  }
  const uint32_t* words = static_cast<const uint32_t*>(args.b);
  for (int64_t k = 0; k < args.depth; ++k, words += kTileColumns) {
    __m512bh b[kVecs];
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) b[v] = LoadPairs(words + 16 * v);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[r][k])));
#pragma GCC unroll 3
      for (int v = 0; v < kVecs; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], x, b[v]);
    }
  }
  const __m512 alpha = _mm512_set1_ps(args.alpha);
#pragma GCC unroll 3
  for (int v = 0; v < kVecs; ++v) {
    const __mmask16 mask = FirstLanes(args.cols - 16 * v);
    const __m512 bias = args.bias != nullptr ? _mm512_maskz_loadu_ps(mask, args.bias + 16 * v)
                                             : _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      float* const to = args.c + (row + r) * args.c_stride + 16 * v;
      __m512 value = _mm512_add_ps(_mm512_mul_ps(acc[r][v], alpha), bias);
      if (args.accumulate) value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), value);
      _mm512_mask_storeu_ps(to, mask, value);
    }
  }
}

template <int kRows, int kVecs>
void Rows(const TileArgs& args) {
  int64_t row = 0;
  for (; row + kRows <= args.rows; row += kRows) Tile<kRows, kVecs>(args, row);
  if constexpr (kRows > 8) {
    if (row + 8 <= args.rows) Tile<8, kVecs>(args, row), row += 8;
  }
  if (row + 4 <= args.rows) Tile<4, kVecs>(args, row), row += 4;
  if (row + 2 <= args.rows) Tile<2, kVecs>(args, row), row += 2;
  if (row < args.rows) Tile<1, kVecs>(args, row);
}

}  // namespace

void TilesBf16Dot(const TileArgs& args) {
  if (args.cols > 32) {
    Rows<8, 3>(args);
  } else if (args.cols > 16) {
    Rows<10, 2>(args);
  } else {
    Rows<10, 1>(args);
  }
}

// The conversion instruction flushes denormals; bf16 has the exponents of f32, so that changes
// values below 2^-126 only, which the dot product takes as zero anyway.
void RoundRowAvx512Bf16(const float* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m512 low = _mm512_loadu_ps(from + i), high = _mm512_loadu_ps(from + i + 16);
    _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
  for (; i < count; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(FirstLanes(count - i), from + i);
    // One lane more than `count` when it is odd: the zero behind it.
    _mm256_mask_storeu_epi16(to + i, FirstLanes((count - i + 1) / 2 * 2),
                             reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  }
}

double DotLoopAvx512Bf16(int64_t steps, float* out) {
  constexpr int kChains = 16;
  __m512 x[kChains];
  const __m512bh half = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(0x3f003f00)));
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) x[i] = _mm512_set1_ps(out[0] + static_cast<float>(i));
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) x[i] = _mm512_dpbf16_ps(x[i], half, half);
  }
  __m512 sum = x[0];
#pragma GCC unroll 16
  for (int i = 1; i < kChains; ++i) sum = _mm512_add_ps(sum, x[i]);
  out[0] = _mm512_cvtss_f32(sum) * 1e-9f;
  return 4.0 * kChains * 16 * static_cast<double>(steps);
}

}  // namespace permafrost::kernels::cpu

#else  // a compiler or machine without it: UseAvx512Bf16() is false and nothing calls these

namespace permafrost::kernels::cpu {
void TilesBf16Dot(const TileArgs& args) { TilesBf16Fma(args); }
void RoundRowAvx512Bf16(const float*, int64_t, uint16_t*) {}
double DotLoopAvx512Bf16(int64_t, float*) { return 0; }
}  // namespace permafrost::kernels::cpu

#endif  // __AVX512BF16__
