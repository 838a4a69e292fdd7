// The definition of the rotary embedding (kernels/rope.h). R rows, H heads of size K.
#ifndef PERMAFROST_KERNELS_REFERENCE_ROPE_H_
#define PERMAFROST_KERNELS_REFERENCE_ROPE_H_

#include "kernels/rope.h"

namespace permafrost::kernels::reference {

template <class T>
void Rope(const RopeArgsOf<T>& a) {
  const int64_t half = a.head_size / 2;
  for (int64_t i = 0; i < a.rows; ++i) {
    const T* cos = a.cos + a.positions[i] * half;
    const T* sin = a.sin + a.positions[i] * half;
    for (int64_t h = 0; h < a.heads; ++h) {
      const T* x = a.x + (i * a.heads + h) * a.head_size;
      T* y = a.y + (i * a.heads + h) * a.head_size;
      for (int64_t j = 0; j < half; ++j) {
        const T s = a.rotation == Rotation::kForward ? sin[j] : -sin[j];
        const T low = x[j], high = x[j + half];
        y[j] = low * cos[j] - high * s;
        y[j + half] = high * cos[j] + low * s;
      }
    }
  }
}

}  // namespace permafrost::kernels::reference

#endif  // PERMAFROST_KERNELS_REFERENCE_ROPE_H_
