// Copies of matrices into the layouts that the product tiles read. Each function does one block on
// the calling thread.
#ifndef PERMAFROST_KERNELS_CPU_GEMM_PACK_H_
#define PERMAFROST_KERNELS_CPU_GEMM_PACK_H_

#include <cstdint>

#include "kernels/gemm.h"

namespace permafrost::kernels::cpu {

// to[c][r] = from[r][c] for rows x cols 32-bit words.
void TransposeWords(const void* from, int64_t from_stride, int64_t rows, int64_t cols, void* to,
                    int64_t to_stride);

// to[r][c] = from[r][c] rounded to bf16 but kept as f32; one zero behind each row if cols is odd.
void RoundRowsToF32(const float* from, int64_t from_stride, int64_t rows, int64_t cols, float* to,
                    int64_t to_stride);

// The block of W whose rows (outputs) are [begin, end) and whose columns are the 48 inputs of
// column panel `panel`, in the layout of the other direction: f32 to[n - begin][48], bf16
// to[(n - begin) / 2][48][2]. `begin` must be even. Inputs and outputs that do not exist are zero.
void RepackBlock(const PackedWeight& weight, int64_t panel, int64_t begin, int64_t end, void* to);

// Columns [48 panel, ...) and depth [begin, end) of op(b) in panel layout to[k - begin][48].
void PackColumns(const MatMulArgs& args, int64_t panel, int64_t begin, int64_t end, float* to);

}  // namespace permafrost::kernels::cpu

#endif  // PERMAFROST_KERNELS_CPU_GEMM_PACK_H_
