// The definition of RMSNorm and LayerNorm (kernels/norm.h), one row at a time.
// R rows, D width. Non-goals: speed.
#ifndef PERMAFROST_KERNELS_REFERENCE_NORM_H_
#define PERMAFROST_KERNELS_REFERENCE_NORM_H_

#include <cmath>

#include "kernels/norm.h"

namespace permafrost::kernels::reference {

template <class T>
void RmsNormForward(const RmsNormForwardArgsOf<T>& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    const T* x = a.x + i * a.width;
    T sum = 0;
    for (int64_t c = 0; c < a.width; ++c) sum += x[c] * x[c];
    const T inv_rms = T(1) / std::sqrt(sum / static_cast<T>(a.width) + a.epsilon);
    for (int64_t c = 0; c < a.width; ++c) a.y[i * a.width + c] = x[c] * inv_rms * a.scale[c];
    a.inv_rms[i] = inv_rms;
  }
}

template <class T>
void RmsNormBackward(const RmsNormBackwardArgsOf<T>& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    const T* x = a.x + i * a.width;
    const T* dy = a.dy + i * a.width;
    const T inv_rms = a.inv_rms[i];
    T dot = 0;
    for (int64_t c = 0; c < a.width; ++c) dot += dy[c] * a.scale[c] * x[c] * inv_rms;
    const T mean_gx = dot / static_cast<T>(a.width);
    for (int64_t c = 0; c < a.width; ++c) {
      const T xhat = x[c] * inv_rms;
      if (a.dx != nullptr) {
        T* dx = a.dx + i * a.width + c;
        const T d = inv_rms * (dy[c] * a.scale[c] - xhat * mean_gx);
        *dx = a.write_dx == Write::kAccumulate ? *dx + d : d;
      }
      if (a.dscale != nullptr) a.dscale[c] += dy[c] * xhat;
    }
  }
}

template <class T>
void LayerNormForward(const LayerNormForwardArgsOf<T>& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    const T* x = a.x + i * a.width;
    T sum = 0;
    for (int64_t c = 0; c < a.width; ++c) sum += x[c];
    const T mean = sum / static_cast<T>(a.width);
    T squares = 0;
    for (int64_t c = 0; c < a.width; ++c) squares += (x[c] - mean) * (x[c] - mean);
    const T inv_std = T(1) / std::sqrt(squares / static_cast<T>(a.width) + a.epsilon);
    for (int64_t c = 0; c < a.width; ++c) {
      const T bias = a.bias != nullptr ? a.bias[c] : T(0);
      a.y[i * a.width + c] = (x[c] - mean) * inv_std * a.scale[c] + bias;
    }
    a.mean[i] = mean;
    a.inv_std[i] = inv_std;
  }
}

template <class T>
void LayerNormBackward(const LayerNormBackwardArgsOf<T>& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    const T* x = a.x + i * a.width;
    const T* dy = a.dy + i * a.width;
    const T mean = a.mean[i], inv_std = a.inv_std[i];
    T sum_g = 0, sum_gx = 0;
    for (int64_t c = 0; c < a.width; ++c) {
      const T g = dy[c] * a.scale[c];
      sum_g += g;
      sum_gx += g * (x[c] - mean) * inv_std;
    }
    const T mean_g = sum_g / static_cast<T>(a.width);
    const T mean_gx = sum_gx / static_cast<T>(a.width);
    for (int64_t c = 0; c < a.width; ++c) {
      const T xhat = (x[c] - mean) * inv_std;
      if (a.dx != nullptr) {
        T* dx = a.dx + i * a.width + c;
        const T d = inv_std * (dy[c] * a.scale[c] - mean_g - xhat * mean_gx);
        *dx = a.write_dx == Write::kAccumulate ? *dx + d : d;
      }
      if (a.dscale != nullptr) a.dscale[c] += dy[c] * xhat;
      if (a.dbias != nullptr) a.dbias[c] += dy[c];
    }
  }
}

}  // namespace permafrost::kernels::reference

#endif  // PERMAFROST_KERNELS_REFERENCE_NORM_H_
