// Softmax cross-entropy of rows of logits over V columns. The engine calls it on small chunks of
// rows, so that a training step never holds a whole [rows, V] matrix.
#ifndef PERMAFROST_KERNELS_CROSS_ENTROPY_H_
#define PERMAFROST_KERNELS_CROSS_ENTROPY_H_

#include "kernels/types.h"

namespace permafrost::kernels {

// loss[i] = lse(z_i) - z_i[label_i] + z_loss * lse(z_i)^2   (z-loss: Mesh TensorFlow / T5X)
// dlogits[i, c] = row_scale[i] * ((1 + 2 z_loss lse_i) softmax(z_i)[c] - [c == label_i])
template <class T>
struct CrossEntropyArgsOf {
  const T* logits;  // [rows, V]
  int64_t stride;   // of logits and dlogits
  const int32_t* labels;
  T* loss;             // [rows]
  const T* row_scale;  // [rows] or null (1)
  T* dlogits;          // [rows, V] or null; may be logits
  int64_t rows, vocabulary;
  T z_loss;
};
using CrossEntropyArgs = CrossEntropyArgsOf<float>;

namespace cpu {
void CrossEntropy(const CrossEntropyArgs& args, const Parallel& parallel);
}  // namespace cpu

}  // namespace permafrost::kernels

#endif  // PERMAFROST_KERNELS_CROSS_ENTROPY_H_
