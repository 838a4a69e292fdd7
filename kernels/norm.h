// RMSNorm (T5, Llama) and LayerNorm (GPT-2): R rows of width D.
// Outputs that are null are skipped: a frozen scale costs no gradient work.
#ifndef PERMAFROST_KERNELS_NORM_H_
#define PERMAFROST_KERNELS_NORM_H_

#include "kernels/types.h"

namespace permafrost::kernels {

// y = x * inv_rms * scale, inv_rms = (mean(x^2) + epsilon)^-1/2 (Zhang & Sennrich 2019).
template <class T>
struct RmsNormForwardArgsOf {
  const T* x;      // [R, D]
  const T* scale;  // [D]
  T* y;            // [R, D]
  T* inv_rms;      // [R]
  int64_t rows, width;
  T epsilon;
};

// With xhat = x * inv_rms and g = dy * scale:  dx = inv_rms * (g - xhat * mean(g * xhat)),
// dscale (+)= sum over rows of dy * xhat.
template <class T>
struct RmsNormBackwardArgsOf {
  const T* x;        // [R, D]
  const T* scale;    // [D]
  const T* inv_rms;  // [R]
  const T* dy;       // [R, D]
  T* dx;             // [R, D] or null
  Write write_dx;
  T* dscale;  // [D] or null, accumulated
  int64_t rows, width;
  T* workspace;  // NormBackwardWorkspace(...) elements if dscale is set, else null
};

// y = (x - mean) * inv_std * scale + bias, inv_std = (biased variance + epsilon)^-1/2.
template <class T>
struct LayerNormForwardArgsOf {
  const T* x;      // [R, D]
  const T* scale;  // [D]
  const T* bias;   // [D] or null
  T* y;            // [R, D]
  T* mean;         // [R]
  T* inv_std;      // [R]
  int64_t rows, width;
  T epsilon;
};

// With xhat = (x - mean) * inv_std and g = dy * scale:
// dx = inv_std * (g - mean(g) - xhat * mean(g * xhat)), dscale (+)= sum dy * xhat, dbias (+)= sum
// dy.
template <class T>
struct LayerNormBackwardArgsOf {
  const T* x;
  const T* scale;
  const T* mean;
  const T* inv_std;
  const T* dy;
  T* dx;  // [R, D] or null
  Write write_dx;
  T* dscale;  // [D] or null, accumulated
  T* dbias;   // [D] or null, accumulated
  int64_t rows, width;
  T* workspace;  // NormBackwardWorkspace(...) elements if dscale or dbias is set, else null
};

using RmsNormForwardArgs = RmsNormForwardArgsOf<float>;
using RmsNormBackwardArgs = RmsNormBackwardArgsOf<float>;
using LayerNormForwardArgs = LayerNormForwardArgsOf<float>;
using LayerNormBackwardArgs = LayerNormBackwardArgsOf<float>;

// Rows in one chunk of a reduction over rows; fixed, so that results do not depend on threads.
inline constexpr int64_t kReductionRows = 64;

// Elements of workspace: two [D] partial sums per chunk of rows.
inline int64_t NormBackwardWorkspace(int64_t rows, int64_t width) {
  return 2 * ((rows + kReductionRows - 1) / kReductionRows) * width;
}

namespace cpu {
void RmsNormForward(const RmsNormForwardArgs& args, const Parallel& parallel);
void RmsNormBackward(const RmsNormBackwardArgs& args, const Parallel& parallel);
void LayerNormForward(const LayerNormForwardArgs& args, const Parallel& parallel);
void LayerNormBackward(const LayerNormBackwardArgs& args, const Parallel& parallel);
}  // namespace cpu

}  // namespace permafrost::kernels

#endif  // PERMAFROST_KERNELS_NORM_H_
