#include "engine/random_tensor.h"

namespace permafrost {

Tensor UniformTensor(Shape shape, double range, Random& random) {
  Tensor t(shape);
  for (int64_t i = 0; i < t.count(); ++i) {
    t.f32()[i] = static_cast<float>((2 * random.Uniform() - 1) * range);
  }
  return t;
}

Tensor NormalTensor(Shape shape, double deviation, Random& random) {
  Tensor t(shape);
  for (int64_t i = 0; i < t.count(); ++i) {
    t.f32()[i] = static_cast<float>(random.Normal() * deviation);
  }
  return t;
}

}  // namespace permafrost
