// Products with very few columns as dot products along k.
#ifndef PERMAFROST_KERNELS_CPU_MATMUL_DOT_H_
#define PERMAFROST_KERNELS_CPU_MATMUL_DOT_H_

#include "kernels/gemm.h"

namespace permafrost::kernels::cpu {

inline constexpr int64_t kMaxDotColumns = 8;

// MatMul for n <= kMaxDotColumns and a not transposed. The workspace holds [n, k] f32.
void MatMulDot(const MatMulArgs& args, const Parallel& parallel);

}  // namespace permafrost::kernels::cpu

#endif  // PERMAFROST_KERNELS_CPU_MATMUL_DOT_H_
