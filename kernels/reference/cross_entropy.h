// The definition of softmax cross-entropy with z-loss (kernels/cross_entropy.h). V columns.
#ifndef PERMAFROST_KERNELS_REFERENCE_CROSS_ENTROPY_H_
#define PERMAFROST_KERNELS_REFERENCE_CROSS_ENTROPY_H_

#include <cmath>

#include "kernels/cross_entropy.h"

namespace permafrost::kernels::reference {

template <class T>
void CrossEntropy(const CrossEntropyArgsOf<T>& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    const T* z = a.logits + i * a.stride;
    T max = z[0];
    for (int64_t c = 1; c < a.vocabulary; ++c) max = z[c] > max ? z[c] : max;
    T sum = 0;
    for (int64_t c = 0; c < a.vocabulary; ++c) sum += std::exp(z[c] - max);
    const T lse = max + std::log(sum);
    a.loss[i] = lse - z[a.labels[i]] + a.z_loss * lse * lse;
    if (a.dlogits == nullptr) continue;
    const T row_scale = a.row_scale != nullptr ? a.row_scale[i] : T(1);
    for (int64_t c = 0; c < a.vocabulary; ++c) {
      const T softmax = std::exp(z[c] - max) / sum;
      const T target = c == a.labels[i] ? T(1) : T(0);
      a.dlogits[i * a.stride + c] = row_scale * ((T(1) + T(2) * a.z_loss * lse) * softmax - target);
    }
  }
}

}  // namespace permafrost::kernels::reference

#endif  // PERMAFROST_KERNELS_REFERENCE_CROSS_ENTROPY_H_
