// The loops around the product tiles, shared by all products: blocks of rows and depth that fit the
// caches, copies of operands where their layout needs it, and the split over workers.
//
// Result bits depend on depth (it is cut into blocks of a size that depends on it alone), on the
// operands' format and on the SIMD level; not on workers, on where rows or columns are cut, or on
// which copies are made.
#ifndef PERMAFROST_KERNELS_CPU_GEMM_PRODUCT_H_
#define PERMAFROST_KERNELS_CPU_GEMM_PRODUCT_H_

#include "kernels/types.h"

namespace permafrost::kernels::cpu {

// c [rows, cols] (+)= alpha a [rows, depth] b [depth, cols] + bias.
struct Product {
  int64_t rows;
  int64_t cols;
  int64_t depth;
  bool bf16;  // b holds bf16 pairs, a is rounded

  const float* a;
  int64_t a_stride;
  bool transpose_a;  // a is [depth, rows]; f32 only

  // Where a panel of 48 columns is read in place: at b + panel * panel_bytes, one depth step (a
  // pair if bf16) after the other, b_stride words apart. The last panel is read in place only if it
  // is zero-filled to 48 columns.
  const void* b;
  int64_t panel_bytes;
  int64_t b_stride;
  bool b_padded;
  // Where it is not, or if b is null: writes depth [begin, end) of a panel to `to`, packed.
  void (*pack)(const void* context, int64_t panel, int64_t begin, int64_t end, void* to);
  const void* pack_context;

  float* c;
  int64_t c_stride;
  bool transpose_c;  // c is [cols, rows]
  const float* bias;
  float alpha;
  Write write;
};

// Bytes that suffice at any SIMD level, also for fewer rows or workers. Reads the shape and which
// operands are copied, no data.
int64_t ProductWorkspace(const Product& product, int workers);
void RunProduct(const Product& product, void* workspace, const Parallel& parallel);

}  // namespace permafrost::kernels::cpu

#endif  // PERMAFROST_KERNELS_CPU_GEMM_PRODUCT_H_
