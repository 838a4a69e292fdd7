// Trainable f32 tensors. Only PEFT methods create them; the base has none.
#ifndef PERMAFROST_ENGINE_PARAMETER_H_
#define PERMAFROST_ENGINE_PARAMETER_H_

#include <deque>
#include <string>

#include "engine/autograd.h"

namespace permafrost {

// A leaf of the graph; its memory counts as weight. `name` is the tensor's name in the adapter
// file. Copies share value and gradient.
class Parameter {
 public:
  Parameter(std::string name, Tensor value);

  const std::string& name() const { return name_; }
  const Var& var() const { return var_; }
  const Tensor& value() const { return var_.value(); }
  // The accumulated gradient; empty if nothing has flowed in since ZeroGradient.
  const Tensor& gradient() const { return var_.slot()->grad; }
  void ZeroGradient() { var_.slot()->grad = Tensor(); }
  int64_t count() const { return value().count(); }
  // What the optimizer multiplies its rate by for this parameter.
  double rate_factor() const { return rate_factor_; }
  void set_rate_factor(double factor) { rate_factor_ = factor; }

 private:
  double rate_factor_ = 1;
  std::string name_;
  Var var_;
};

// Parameters in a fixed order, with stable addresses.
class ParameterList {
 public:
  Parameter& Add(std::string name, Tensor value) {
    return parameters_.emplace_back(std::move(name), std::move(value));
  }
  // Adds a handle of another list's parameter: value and gradient are shared.
  Parameter& Share(const Parameter& parameter) { return parameters_.emplace_back(parameter); }
  auto begin() { return parameters_.begin(); }
  auto end() { return parameters_.end(); }
  auto begin() const { return parameters_.begin(); }
  auto end() const { return parameters_.end(); }
  size_t size() const { return parameters_.size(); }
  Parameter& operator[](size_t i) { return parameters_[i]; }
  const Parameter& operator[](size_t i) const { return parameters_[i]; }
  int64_t count() const;  // elements of all parameters
  void ZeroGradients();

 private:
  std::deque<Parameter> parameters_;
};

// sqrt of the sum of squares of all gradients, f64, in list order.
double GradientNorm(const ParameterList& parameters);

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_PARAMETER_H_
