#include "engine/parameter.h"

#include <cmath>

#include "kernels/elementwise.h"

namespace permafrost {

Parameter::Parameter(std::string name, Tensor value) : name_(std::move(name)) {
  value.Retag(MemoryTag::kWeight);
  auto slot = std::make_shared<GradSlot>();
  slot->shape = value.shape();
  slot->leaf = true;
  var_ = Var(std::move(value), std::move(slot));
}

int64_t ParameterList::count() const {
  int64_t total = 0;
  for (const Parameter& p : parameters_) total += p.count();
  return total;
}

void ParameterList::ZeroGradients() {
  for (Parameter& p : parameters_) p.ZeroGradient();
}

double GradientNorm(const ParameterList& parameters) {
  double sum = 0;
  for (const Parameter& p : parameters) {
    if (p.gradient()) sum += kernels::cpu::SumOfSquares(p.gradient().f32(), p.gradient().count());
  }
  return std::sqrt(sum);
}

}  // namespace permafrost
