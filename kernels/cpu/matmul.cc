// Plain f32 products. Low-rank factors make them thin, so the shape picks the roles:
//   - few columns, a row-major (x A^T of LoRA): dot products along k, nothing copied
//   (matmul_dot.cc);
//   - few columns, a transposed (dB = dY^T s): computed as c^T = op(b)^T a, which reads a in place;
//   - else the general product; b is copied to panels unless only a few rows would use the copy.
// The choices that change the order of a sum depend on n, k and the transposes only.
#include <algorithm>

#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/gemm_product.h"
#include "kernels/cpu/matmul_dot.h"
#include "kernels/gemm.h"

namespace permafrost::kernels::cpu {
namespace {

constexpr int64_t kRowsWithoutPacking = 16;
// Up to here scattering c^T costs less than transposing a.
constexpr int64_t kMaxSwappedColumns = 64;

// `args` must outlive the product.
Product General(const MatMulArgs& args) {
  Product p = {};
  p.rows = args.m;
  p.cols = args.n;
  p.depth = args.k;
  p.a = args.a;
  p.a_stride = args.a_stride;
  p.transpose_a = args.transpose_a;
  if (!args.transpose_b && args.m <= kRowsWithoutPacking) {
    p.b = args.b;
    p.panel_bytes = kPanelWidth * static_cast<int64_t>(sizeof(float));
    p.b_stride = args.b_stride;
  }
  p.pack = [](const void* context, int64_t panel, int64_t begin, int64_t end, void* to) {
    PackColumns(*static_cast<const MatMulArgs*>(context), panel, begin, end,
                static_cast<float*>(to));
  };
  p.pack_context = &args;
  p.c = args.c;
  p.c_stride = args.c_stride;
  p.alpha = args.alpha;
  p.write = args.write;
  return p;
}

// The same product for c^T.
MatMulArgs Swapped(const MatMulArgs& args) {
  MatMulArgs swapped = args;
  swapped.a = args.b;
  swapped.a_stride = args.b_stride;
  swapped.transpose_a = !args.transpose_b;
  swapped.b = args.a;
  swapped.b_stride = args.a_stride;
  swapped.transpose_b = !args.transpose_a;
  swapped.m = args.n;
  swapped.n = args.m;
  return swapped;
}

}  // namespace

int64_t MatMulWorkspace(int64_t m, int64_t n, int64_t k, int workers) {
  MatMulArgs args = {};
  args.m = m;
  args.n = n;
  args.k = k;
  args.transpose_a = args.transpose_b = true;  // the case with most copies
  const int64_t general = ProductWorkspace(General(args), workers);
  args.transpose_b = false;
  MatMulArgs swapped = Swapped(args);
  swapped.transpose_b = true;
  const int64_t dot = n <= kMaxDotColumns ? n * k * static_cast<int64_t>(sizeof(float)) : 0;
  return std::max({general, ProductWorkspace(General(swapped), workers), dot});
}

void MatMul(const MatMulArgs& args, const Parallel& parallel) {
  if (args.m <= 0 || args.n <= 0) return;
  if (args.n <= kMaxDotColumns && !args.transpose_a) {
    MatMulDot(args, parallel);
  } else if (args.n <= kMaxSwappedColumns && args.transpose_a && args.m > args.n) {
    const MatMulArgs swapped = Swapped(args);
    Product p = General(swapped);
    p.transpose_c = true;
    RunProduct(p, args.workspace, parallel);
  } else {
    RunProduct(General(args), args.workspace, parallel);
  }
}

}  // namespace permafrost::kernels::cpu
