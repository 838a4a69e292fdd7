// Gradient checks of engine ops: the gradient under a random cotangent against central differences
// of the op itself. Ops run in f32, so the differences use a five-point stencil with a large step
// on values of order one, summed in f64.
//
// The bound for one element has two parts. Rounding: each output that moves carries at most `steps`
// roundings of 2^-24 times the largest output, and a stencil weighs it by 1.5 / h in total.
// Truncation: the stencil's error falls as h^4, so that the values for h and 2 h differ by 15 times
// the error of the former; the bound takes a quarter of that difference.
#ifndef PERMAFROST_TESTS_UTIL_GRADCHECK_H_
#define PERMAFROST_TESTS_UTIL_GRADCHECK_H_

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "engine/ops.h"
#include "engine/parameter.h"
#include "engine/random.h"
#include "gtest/gtest.h"

namespace permafrost {

// Normal values of deviation `scale`.
inline Tensor RandomTensor(Random& random, Shape shape, double scale = 1) {
  Tensor t(shape);
  for (int64_t i = 0; i < t.count(); ++i) t.f32()[i] = static_cast<float>(scale * random.Normal());
  return t;
}

using VarFunction = std::function<Var(Context&, const std::vector<Var>&)>;

struct GradCheckOptions {
  double steps = 8;  // roundings behind one output
  double h = 1.0 / 32;
  std::function<void(Context&)> configure =
      {};  // sets up every context (training, seed, precision)
};

class GradCheck {
 public:
  GradCheck(VarFunction f, std::vector<Tensor> inputs, GradCheckOptions options)
      : f_(std::move(f)), inputs_(std::move(inputs)), options_(std::move(options)) {}

  // All inputs needing gradients; each alone; and the function used twice on non-leaf inputs.
  void Run() {
    const Tensor y = Evaluate();
    Random random(99);
    cotangent_ = RandomTensor(random, y.shape());
    for (size_t i = 0; i < inputs_.size(); ++i) Differentiate(i, y);
    std::vector<bool> all(inputs_.size(), true);
    Compare(Gradients(all, 1), 1, "all inputs");
    Compare(Gradients(all, 2), 2, "used twice");
    for (size_t i = 0; inputs_.size() > 1 && i < inputs_.size(); ++i) {
      std::vector<bool> one(inputs_.size(), false);
      one[i] = true;
      Compare(Gradients(one, 1), 1, "one input alone");
    }
  }

 private:
  struct Numeric {
    std::vector<double> value, bound;
  };

  void Configure(Context& c) const {
    if (options_.configure) options_.configure(c);
  }
  Tensor Evaluate() const {
    Context c;
    Configure(c);
    return f_(c, {inputs_.begin(), inputs_.end()}).value();
  }
  static bool SmallerMagnitude(double a, double b) { return std::abs(a) < std::abs(b); }
  Tensor At(float& element, double offset) const {
    const float kept = element;
    element = static_cast<float>(static_cast<double>(kept) + offset);
    Tensor y = Evaluate();
    element = kept;
    return y;
  }
  // d<cotangent, f> / d element, and the sum of |cotangent| over the outputs that move.
  struct Slope {
    double value = 0, weight = 0;
  };
  Slope Stencil(float& element, double h) const {
    // Offsets as the f32 element really moves, so that the step has no error of its own.
    const double x = static_cast<double>(element);
    const auto moved = [&](double d) { return static_cast<double>(static_cast<float>(x + d)) - x; };
    const double step = (moved(h) - moved(-h)) / 2;
    const Tensor up = At(element, h), down = At(element, -h);
    const Tensor up2 = At(element, 2 * h), down2 = At(element, -2 * h);
    Slope slope;
    for (int64_t i = 0; i < up.count(); ++i) {
      const double near = static_cast<double>(up.f32()[i]) - static_cast<double>(down.f32()[i]);
      const double far = static_cast<double>(up2.f32()[i]) - static_cast<double>(down2.f32()[i]);
      const double weight = static_cast<double>(cotangent_.f32()[i]);
      slope.value += weight * (8 * near - far) / (12 * step);
      if (near != 0 || far != 0) slope.weight += std::abs(weight);
    }
    return slope;
  }
  void Differentiate(size_t input, const Tensor& y) {
    double largest = 0;
    for (const float v : y.values()) largest = std::max(largest, std::abs(static_cast<double>(v)));
    Numeric n;
    double norm = 0, bound_norm = 0;
    for (int64_t i = 0; i < inputs_[input].count(); ++i) {
      float& element = inputs_[input].f32()[i];
      const Slope fine = Stencil(element, options_.h), coarse = Stencil(element, 2 * options_.h);
      const double rounding =
          options_.steps * std::exp2(-24) * fine.weight * largest * 1.5 / options_.h;
      n.value.push_back(fine.value);
      n.bound.push_back(rounding + std::abs(coarse.value - fine.value) / 4);
      norm += fine.value * fine.value;
      bound_norm += n.bound.back() * n.bound.back();
    }
    // The gradient under test has roundings of its own.
    const double own =
        options_.steps * std::exp2(-24) *
        std::abs(*std::max_element(n.value.begin(), n.value.end(), SmallerMagnitude));
    for (double& bound : n.bound) bound += own;
    // Otherwise the check would have no power.
    EXPECT_LT(std::sqrt(bound_norm), 0.02 * std::sqrt(norm)) << "input " << input;
    numeric_.push_back(std::move(n));
  }

  // Gradients of the inputs that need one, with the function used `times` times.
  std::vector<Tensor> Gradients(const std::vector<bool>& needed, int times) const {
    Context c;
    Configure(c);
    c.tape.mode = TapeMode::kRecord;
    ParameterList parameters;
    std::vector<Tensor> before;
    std::vector<Var> vars;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      before.push_back(inputs_[i].Clone());
      Parameter& p = parameters.Add("p", inputs_[i].Clone());
      // A leaf when used once; a value with a slot of its own when used twice.
      const Var leaf = needed[i] ? p.var() : Var(p.value());
      vars.push_back(times == 1 ? leaf : Scale(c, leaf, 1));
    }
    Var y = f_(c, vars);
    for (int i = 1; i < times; ++i) y = Add(c, y, f_(c, vars));
    EXPECT_TRUE(y.needs_grad());
    Backward(c, y, cotangent_);
    EXPECT_TRUE(c.tape.nodes().empty());
    std::vector<Tensor> gradients;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      EXPECT_TRUE(std::equal(before[i].values().begin(), before[i].values().end(),
                             parameters[i].value().values().begin()))
          << "input " << i << " was overwritten";
      EXPECT_EQ(static_cast<bool>(parameters[i].gradient()), needed[i]) << "input " << i;
      gradients.push_back(parameters[i].gradient());
    }
    return gradients;
  }
  void Compare(const std::vector<Tensor>& gradients, int times, const char* what) const {
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i]) continue;
      ASSERT_EQ(gradients[i].shape(), inputs_[i].shape());
      for (int64_t j = 0; j < gradients[i].count(); ++j) {
        const double expected = numeric_[i].value[static_cast<size_t>(j)] * times;
        ASSERT_NEAR(gradients[i].f32()[j], expected,
                    numeric_[i].bound[static_cast<size_t>(j)] * times)
            << what << ", input " << i << ", element " << j;
      }
    }
  }

  VarFunction f_;
  std::vector<Tensor> inputs_;
  GradCheckOptions options_;
  Tensor cotangent_;
  std::vector<Numeric> numeric_;
};

inline void CheckGradients(VarFunction f, std::vector<Tensor> inputs,
                           GradCheckOptions options = {}) {
  GradCheck(std::move(f), std::move(inputs), std::move(options)).Run();
}

}  // namespace permafrost

#endif  // PERMAFROST_TESTS_UTIL_GRADCHECK_H_
