// The innermost loops of all matrix products: one block of rows times one panel of 48 columns.
// Plain structs without other includes, because gemm_avx512bf16.cc shares them (see there).
//
// Every element of c has one accumulator that runs over the depth in order, whatever the tile
// height, so a result bit does not depend on how rows are split.
#ifndef PERMAFROST_KERNELS_CPU_GEMM_TILE_H_
#define PERMAFROST_KERNELS_CPU_GEMM_TILE_H_

#include <cstdint>

namespace permafrost::kernels::cpu {

inline constexpr int kTileColumns = 48;

// c [rows, cols] = or += alpha (a [rows, depth] b [depth, 48]) + bias.
struct TileArgs {
  int64_t rows;
  int64_t depth;     // contracted elements; bf16: pairs
  const void* a;     // row-major: f32, or bf16 pairs for TilesBf16Dot
  int64_t a_stride;  // elements of a between rows
  const void* b;     // f32 [depth][b_stride], or bf16 pairs [depth][48][2]
  int64_t b_stride;  // f32 only: elements between depth steps, 48 when packed
  float* c;
  int64_t c_stride;
  int64_t cols;       // 1..48 that exist in c; b is readable over kTileColumns
  bool accumulate;    // read c
  bool transpose_c;   // element (r, j) lies at c[j * c_stride + r]
  const float* bias;  // [cols] or null
  float alpha;
};
using TileFunction = void (*)(const TileArgs&);

// Highway, at the current level.
void TilesF32(const TileArgs& args);
void TilesBf16Fma(const TileArgs& args);  // a: f32 that hold bf16 values; [rows][2 * depth]

// AVX512-BF16; call only where UseAvx512Bf16(). a: bf16 [rows][2 * depth].
void TilesBf16Dot(const TileArgs& args);
// Rounds `count` f32 (nearest even) to bf16, and writes one zero behind them if `count` is odd.
void RoundRowAvx512Bf16(const float* from, int64_t count, uint16_t* to);
// `steps` of 16 independent dot products on registers, for the peak probe; returns their FLOPs.
double DotLoopAvx512Bf16(int64_t steps, float* out);

}  // namespace permafrost::kernels::cpu

#endif  // PERMAFROST_KERNELS_CPU_GEMM_TILE_H_
