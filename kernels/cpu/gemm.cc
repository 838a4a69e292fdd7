// Products with packed weights: the forward reads the packed panels in place, the backward re-packs
// blocks of them for the other direction.
#include "kernels/gemm.h"

#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/gemm_product.h"

namespace permafrost::kernels::cpu {
namespace {

Product Forward(const PackedForwardArgs& args) {
  const PackedWeight& w = args.weight;
  Product p = {};
  p.rows = args.rows;
  p.cols = w.outputs;
  p.depth = w.inputs;
  p.bf16 = w.dtype == DType::kBF16;
  p.a = args.x;
  p.a_stride = args.x_stride;
  p.b = w.data;
  p.panel_bytes = PackedBytes(w.dtype, kPanelWidth, w.inputs);
  p.b_stride = kPanelWidth;
  p.b_padded = true;
  p.c = args.y;
  p.c_stride = args.y_stride;
  p.bias = args.bias;
  p.alpha = 1.0f;
  p.write = args.write;
  return p;
}

Product Backward(const PackedBackwardArgs& args) {
  const PackedWeight& w = args.weight;
  Product p = {};
  p.rows = args.rows;
  p.cols = w.inputs;
  p.depth = w.outputs;
  p.bf16 = w.dtype == DType::kBF16;
  p.a = args.dy;
  p.a_stride = args.dy_stride;
  p.pack = [](const void* context, int64_t panel, int64_t begin, int64_t end, void* to) {
    RepackBlock(*static_cast<const PackedWeight*>(context), panel, begin, end, to);
  };
  p.pack_context = &args.weight;
  p.c = args.dx;
  p.c_stride = args.dx_stride;
  p.alpha = 1.0f;
  p.write = args.write;
  return p;
}

}  // namespace

int64_t PackedForwardWorkspace(const PackedWeight& weight, int64_t rows, int workers) {
  PackedForwardArgs args = {};
  args.weight = weight;
  args.rows = rows;
  return ProductWorkspace(Forward(args), workers);
}

void PackedForward(const PackedForwardArgs& args, const Parallel& parallel) {
  RunProduct(Forward(args), args.workspace, parallel);
}

int64_t PackedBackwardWorkspace(const PackedWeight& weight, int64_t rows, int workers) {
  PackedBackwardArgs args = {};
  args.weight = weight;
  args.rows = rows;
  return ProductWorkspace(Backward(args), workers);
}

void PackedBackward(const PackedBackwardArgs& args, const Parallel& parallel) {
  RunProduct(Backward(args), args.workspace, parallel);
}

}  // namespace permafrost::kernels::cpu
