// Optimizer updates of one f32 parameter tensor. Formulas: model-spec of torch.optim.AdamW,
// transformers / T5X Adafactor (Shazeer & Stern 2018), SGD with momentum.
#ifndef PERMAFROST_KERNELS_OPTIMIZER_H_
#define PERMAFROST_KERNELS_OPTIMIZER_H_

#include "kernels/types.h"

namespace permafrost::kernels {

// torch.optim.AdamW: p *= 1 - lr wd; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
// p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps), t = step from 1. g is scaled by
// gradient_scale first (clipping).
template <class T>
struct AdamWArgsOf {
  T* parameter;
  const T* gradient;
  T* first_moment;
  T* second_moment;
  int64_t count;
  int64_t step;
  double gradient_scale;
  double learning_rate, beta1, beta2, epsilon, weight_decay;
};

// Adafactor without momentum. b = 1 - t^-0.8; S = g^2 + 1e-30. Factored (rows, columns > 0 and
// row_moment set): R = b R + (1-b) rowmean S, C likewise; u = g / sqrt(R_i C_j / mean(R)). Else
// V = b V + (1-b) S, u = g / sqrt(V). u /= max(1, RMS(u) / clip); a = lr, times max(1e-3, RMS(p))
// if scale_parameter (RMS before the update). Decay: T5X form p *= 1 - wd, or transformers' p -= wd
// a p.
enum class AdafactorDecay : int32_t { kT5X, kTransformers };
template <class T>
struct AdafactorArgsOf {
  T* parameter;  // [rows, columns]
  const T* gradient;
  T* row_moment;     // [rows] if factored, else null
  T* column_moment;  // [columns] if factored, else null
  T* second_moment;  // [rows, columns] if not factored, else null
  int64_t rows, columns;
  int64_t step;
  double gradient_scale;
  double learning_rate, weight_decay, clip_threshold;
  bool scale_parameter;
  AdafactorDecay decay;
};

// m = momentum m + g + wd p; p -= lr m (torch.optim.SGD; first_moment null: no momentum).
template <class T>
struct SgdArgsOf {
  T* parameter;
  const T* gradient;
  T* first_moment;
  int64_t count;
  double gradient_scale;
  double learning_rate, momentum, weight_decay;
};

using AdamWArgs = AdamWArgsOf<float>;
using AdafactorArgs = AdafactorArgsOf<float>;
using SgdArgs = SgdArgsOf<float>;

namespace cpu {
void AdamW(const AdamWArgs& args, const Parallel& parallel);
void Adafactor(const AdafactorArgs& args, const Parallel& parallel);
void Sgd(const SgdArgs& args, const Parallel& parallel);
}  // namespace cpu

}  // namespace permafrost::kernels

#endif  // PERMAFROST_KERNELS_OPTIMIZER_H_
