// Matrix products: frozen packed weights (forward and gradient of the input) and plain f32
// matrices (low-rank parts, trainable weights).
//
// M rows, N outputs, K inputs. All matrices row-major; `stride` counts elements between rows.
// Non-goals: gradients of packed weights (they are frozen and have none), batched products.
#ifndef PERMAFROST_KERNELS_GEMM_H_
#define PERMAFROST_KERNELS_GEMM_H_

#include "kernels/types.h"

namespace permafrost::kernels {

// Outputs in one panel of a packed weight.
inline constexpr int64_t kPanelWidth = 48;

// A frozen weight W [outputs, inputs], packed once at load. Panel p holds outputs 48p .. 48p+47
// (zero-filled beyond `outputs`), the contracted index outermost:
//   f32:  data[(p * inputs + k) * 48 + j]                      = W[48p + j][k]
//   bf16: data[((p * pairs + k / 2) * 48 + j) * 2 + k % 2]     = W[48p + j][k], pairs = ceil(inputs
//   / 2)
// One copy serves both directions: the gradient of the input re-packs blocks of it on the fly.
struct PackedWeight {
  const void* data;
  DType dtype;  // kF32 or kBF16
  int64_t outputs;
  int64_t inputs;
};

inline int64_t PanelCount(int64_t outputs) { return (outputs + kPanelWidth - 1) / kPanelWidth; }
inline int64_t PackedBytes(DType dtype, int64_t outputs, int64_t inputs) {
  return dtype == DType::kF32 ? PanelCount(outputs) * inputs * kPanelWidth * 4
                              : PanelCount(outputs) * ((inputs + 1) / 2) * 2 * kPanelWidth * 2;
}

// Writes rows [output_begin, output_begin + rows) of W from row-major f32 `source`
// [rows, inputs] into packed `data`. `output_begin` must be a multiple of kPanelWidth; padding
// columns of the last panel are zeroed.
struct PackArgs {
  const float* source;
  int64_t source_stride;
  int64_t output_begin;
  int64_t rows;
  void* data;  // start of the whole packed weight
  DType dtype;
  int64_t outputs;
  int64_t inputs;
};

// Gathers rows of W: out[i, :] = W[ids[i], :] as f32. An embedding that shares the head's packing.
struct UnpackRowsArgs {
  PackedWeight weight;
  const int32_t* ids;
  int64_t count;
  float* out;  // [count, inputs]
  int64_t out_stride;
};

// y [M, N] (+)= x [M, K] W^T + bias. With bf16 weights x is rounded to bf16 (nearest even) and the
// sums are f32.
struct PackedForwardArgs {
  const float* x;
  int64_t x_stride;
  PackedWeight weight;
  const float* bias;  // [N] or null
  float* y;
  int64_t y_stride;
  int64_t rows;
  Write write;
  void* workspace;  // PackedForwardWorkspace(...) bytes, 64-byte aligned
};

// dx [M, K] (+)= dy [M, N] W. With bf16 weights dy is rounded to bf16, sums are f32.
struct PackedBackwardArgs {
  const float* dy;
  int64_t dy_stride;
  PackedWeight weight;
  float* dx;
  int64_t dx_stride;
  int64_t rows;
  Write write;
  void* workspace;  // PackedBackwardWorkspace(...) bytes, 64-byte aligned
};

// c [m, n] (+)= alpha op(a) op(b); op transposes when the flag is set. a is [m, k] ([k, m] if
// transposed), b is [k, n] ([n, k] if transposed). With write == kOverwrite c is not read.
template <class T>
struct MatMulArgsOf {
  const T* a;
  int64_t a_stride;
  bool transpose_a;
  const T* b;
  int64_t b_stride;
  bool transpose_b;
  T* c;
  int64_t c_stride;
  int64_t m, n, k;
  T alpha;
  Write write;
  void* workspace;  // MatMulWorkspace(...) bytes, 64-byte aligned; unused by the reference
};
using MatMulArgs = MatMulArgsOf<float>;

// Workspace functions return bytes that suffice at any SIMD level, also for fewer rows or workers.
// No result bit depends on the workers, nor on where a caller cuts the rows.
namespace cpu {
void PackWeight(const PackArgs& args, const Parallel& parallel);
void UnpackRows(const UnpackRowsArgs& args, const Parallel& parallel);

int64_t PackedForwardWorkspace(const PackedWeight& weight, int64_t rows, int workers);
void PackedForward(const PackedForwardArgs& args, const Parallel& parallel);

int64_t PackedBackwardWorkspace(const PackedWeight& weight, int64_t rows, int workers);
void PackedBackward(const PackedBackwardArgs& args, const Parallel& parallel);

int64_t MatMulWorkspace(int64_t m, int64_t n, int64_t k, int workers);
void MatMul(const MatMulArgs& args, const Parallel& parallel);
}  // namespace cpu

}  // namespace permafrost::kernels

#endif  // PERMAFROST_KERNELS_GEMM_H_
