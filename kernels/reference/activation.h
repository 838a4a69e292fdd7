// The definition of the activations and their gated forms (kernels/activation.h).
//
// Each is written in the form that keeps its relative accuracy for large negative x: a gelu is
// x times a cumulative distribution, never x (1 + almost -1) / 2.
#ifndef PERMAFROST_KERNELS_REFERENCE_ACTIVATION_H_
#define PERMAFROST_KERNELS_REFERENCE_ACTIVATION_H_

#include <cmath>

#include "kernels/activation.h"

namespace permafrost::kernels::reference {

// 1 / (1 + e^-x).
template <class T>
T Sigmoid(T x) {
  const T e = std::exp(-std::abs(x));
  return x >= T(0) ? T(1) / (T(1) + e) : e / (T(1) + e);
}

// The standard normal distribution, (1 + erf(x / sqrt 2)) / 2, and its density.
template <class T>
T NormalCdf(T x) {
  return T(0.5) * std::erfc(-x * T(0.70710678118654752440));
}
template <class T>
T NormalDensity(T x) {
  return T(0.39894228040143267794) * std::exp(T(-0.5) * x * x);
}

// sqrt(2 / pi) and the cubic coefficient of gelu_tanh (Hendrycks & Gimpel 2016).
inline constexpr double kGeluTanhScale = 0.79788456080286535588;
inline constexpr double kGeluTanhCubic = 0.044715;

template <class T>
T Activate(Activation activation, T x) {
  switch (activation) {
    case Activation::kRelu:
      return x < T(0) ? T(0) : x;
    case Activation::kGeluErf:
      return x * NormalCdf(x);
    case Activation::kGeluTanh:
      // (1 + tanh u) / 2 = sigmoid(2 u).
      return x * Sigmoid(T(2 * kGeluTanhScale) * x * (T(1) + T(kGeluTanhCubic) * x * x));
    case Activation::kSilu:
      return x * Sigmoid(x);
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kLeakyRelu:
      return x < T(0) ? T(kLeakySlope) * x : x;
  }
  return T(0);
}

// act'(x). The gradient of relu at 0 is 0, that of leaky_relu its slope below 0.
template <class T>
T ActivationDerivative(Activation activation, T x) {
  switch (activation) {
    case Activation::kRelu:
      return x > T(0) ? T(1) : T(0);
    case Activation::kGeluErf:
      return NormalCdf(x) + x * NormalDensity(x);
    case Activation::kGeluTanh: {
      const T s = Sigmoid(T(2 * kGeluTanhScale) * x * (T(1) + T(kGeluTanhCubic) * x * x));
      const T slope = T(2 * kGeluTanhScale) * (T(1) + T(3 * kGeluTanhCubic) * x * x);
      // s (1 - s) is 0 long before the slope overflows.
      return std::abs(x) > T(100) ? s : s + x * s * (T(1) - s) * slope;
    }
    case Activation::kSilu: {
      const T s = Sigmoid(x);
      return s * (T(1) + x * (T(1) - s));
    }
    case Activation::kLeakyRelu:
      return x > T(0) ? T(1) : T(kLeakySlope);
    case Activation::kTanh: {
      // 1 - tanh^2 without its cancellation: 4 e / (1 + e)^2, e = exp(-2 |x|).
      const T e = std::exp(T(-2) * std::abs(x));
      return T(4) * e / ((T(1) + e) * (T(1) + e));
    }
  }
  return T(0);
}

template <class T>
void ActivationForward(const ActivationForwardArgsOf<T>& a) {
  for (int64_t i = 0; i < a.count; ++i) a.y[i] = Activate(a.activation, a.x[i]);
}

template <class T>
void ActivationBackward(const ActivationBackwardArgsOf<T>& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    a.dx[i] = ActivationDerivative(a.activation, a.x[i]) * a.dy[i];
  }
}

template <class T>
void GatedForward(const GatedForwardArgsOf<T>& a) {
  for (int64_t i = 0; i < a.count; ++i) a.y[i] = Activate(a.activation, a.gate[i]) * a.up[i];
}

template <class T>
void GatedBackward(const GatedBackwardArgsOf<T>& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    const T gate = a.gate[i], up = a.up[i], dy = a.dy[i];
    if (a.dgate != nullptr) a.dgate[i] = ActivationDerivative(a.activation, gate) * up * dy;
    if (a.dup != nullptr) a.dup[i] = Activate(a.activation, gate) * dy;
  }
}

inline void ReluMaskForward(const ReluMaskForwardArgs& a) {
  for (int64_t i = 0; i < (a.count + 7) / 8; ++i) a.mask[i] = 0;
  for (int64_t i = 0; i < a.count; ++i) {
    if (a.x[i] > 0.0f) a.mask[i / 8] |= static_cast<uint8_t>(1 << (i % 8));
    a.y[i] = a.x[i] < 0.0f ? 0.0f : a.x[i];
  }
}

inline void ReluMaskBackward(const ReluMaskBackwardArgs& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    a.dx[i] = (a.mask[i / 8] >> (i % 8) & 1) != 0 ? a.dy[i] : 0.0f;
  }
}

}  // namespace permafrost::kernels::reference

#endif  // PERMAFROST_KERNELS_REFERENCE_ACTIVATION_H_
