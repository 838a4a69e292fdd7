// Rotary position embedding, half layout (transformers' Llama): for j < K/2
//   y_j = x_j cos - x_{j+K/2} sin,  y_{j+K/2} = x_{j+K/2} cos + x_j sin.
// The gradient is the inverse rotation, so one kernel serves both directions and saves nothing.
#ifndef PERMAFROST_KERNELS_ROPE_H_
#define PERMAFROST_KERNELS_ROPE_H_

#include "kernels/types.h"

namespace permafrost::kernels {

enum class Rotation : int32_t { kForward, kInverse };

template <class T>
struct RopeArgsOf {
  const T* x;                // [R, heads * K]
  T* y;                      // [R, heads * K]; may be x
  const int32_t* positions;  // [R], each < the number of table rows
  const T* cos;              // [positions, K / 2]
  const T* sin;              // [positions, K / 2]
  int64_t rows, heads, head_size;
  Rotation rotation;
};
using RopeArgs = RopeArgsOf<float>;

namespace cpu {
void Rope(const RopeArgs& args, const Parallel& parallel);
}  // namespace cpu

}  // namespace permafrost::kernels

#endif  // PERMAFROST_KERNELS_ROPE_H_
