// Tensors of random values: initial parameters, random weights.
#ifndef PERMAFROST_ENGINE_RANDOM_TENSOR_H_
#define PERMAFROST_ENGINE_RANDOM_TENSOR_H_

#include "engine/random.h"
#include "engine/tensor.h"

namespace permafrost {

// Uniform on [-range, range), row by row.
Tensor UniformTensor(Shape shape, double range, Random& random);
// N(0, deviation^2), row by row.
Tensor NormalTensor(Shape shape, double deviation, Random& random);

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_RANDOM_TENSOR_H_
