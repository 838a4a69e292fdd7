// Pointwise activations and their gated forms, over `count` contiguous elements.
#ifndef PERMAFROST_KERNELS_ACTIVATION_H_
#define PERMAFROST_KERNELS_ACTIVATION_H_

#include "kernels/types.h"

namespace permafrost::kernels {

// gelu_tanh is transformers' gelu_new / gelu_pytorch_tanh: 0.5 x (1 + tanh(sqrt(2/pi)(x + 0.044715
// x^3))).
enum class Activation : int32_t { kRelu, kGeluErf, kGeluTanh, kSilu, kTanh, kLeakyRelu };

// leaky_relu's slope below 0, torch's default.
inline constexpr double kLeakySlope = 0.01;

// y = act(x). x and y may be the same array.
template <class T>
struct ActivationForwardArgsOf {
  Activation activation;
  const T* x;
  T* y;
  int64_t count;
};

// dx = act'(x) * dy. dx may be dy.
template <class T>
struct ActivationBackwardArgsOf {
  Activation activation;
  const T* x;
  const T* dy;
  T* dx;
  int64_t count;
};

// y = act(gate) * up (SwiGLU, gated GELU; Shazeer 2020). y may be gate or up.
template <class T>
struct GatedForwardArgsOf {
  Activation activation;
  const T* gate;
  const T* up;
  T* y;
  int64_t count;
};

// dgate = act'(gate) * up * dy, dup = act(gate) * dy. Either output may be null.
template <class T>
struct GatedBackwardArgsOf {
  Activation activation;
  const T* gate;
  const T* up;
  const T* dy;
  T* dgate;
  T* dup;
  int64_t count;
};

using ActivationForwardArgs = ActivationForwardArgsOf<float>;
using ActivationBackwardArgs = ActivationBackwardArgsOf<float>;
using GatedForwardArgs = GatedForwardArgsOf<float>;
using GatedBackwardArgs = GatedBackwardArgsOf<float>;

// relu with its sign bits: bit i of mask (byte i / 8, bit i % 8) is x[i] > 0. All that the gradient
// of a frozen relu feed-forward needs.
struct ReluMaskForwardArgs {
  const float* x;
  float* y;       // may be x
  uint8_t* mask;  // ceil(count / 8) bytes
  int64_t count;
};
struct ReluMaskBackwardArgs {
  const uint8_t* mask;
  const float* dy;
  float* dx;  // may be dy
  int64_t count;
};

namespace cpu {
void ActivationForward(const ActivationForwardArgs& args, const Parallel& parallel);
void ActivationBackward(const ActivationBackwardArgs& args, const Parallel& parallel);
void GatedForward(const GatedForwardArgs& args, const Parallel& parallel);
void GatedBackward(const GatedBackwardArgs& args, const Parallel& parallel);
void ReluMaskForward(const ReluMaskForwardArgs& args, const Parallel& parallel);
void ReluMaskBackward(const ReluMaskBackwardArgs& args, const Parallel& parallel);
}  // namespace cpu

}  // namespace permafrost::kernels

#endif  // PERMAFROST_KERNELS_ACTIVATION_H_
