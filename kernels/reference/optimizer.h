// The definition of the optimizer updates (kernels/optimizer.h).
#ifndef PERMAFROST_KERNELS_REFERENCE_OPTIMIZER_H_
#define PERMAFROST_KERNELS_REFERENCE_OPTIMIZER_H_

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/optimizer.h"

namespace permafrost::kernels::reference {

template <class T>
void AdamW(const AdamWArgsOf<T>& a) {
  const double step = static_cast<double>(a.step);
  const T decay = static_cast<T>(1.0 - a.learning_rate * a.weight_decay);
  const T step_size = static_cast<T>(a.learning_rate / (1.0 - std::pow(a.beta1, step)));
  const T correction = static_cast<T>(std::sqrt(1.0 - std::pow(a.beta2, step)));
  for (int64_t i = 0; i < a.count; ++i) {
    const T g = static_cast<T>(a.gradient_scale) * a.gradient[i];
    T& m = a.first_moment[i];
    T& v = a.second_moment[i];
    m += static_cast<T>(1.0 - a.beta1) * (g - m);
    v = static_cast<T>(a.beta2) * v + static_cast<T>(1.0 - a.beta2) * g * g;
    a.parameter[i] = a.parameter[i] * decay -
                     step_size * m / (std::sqrt(v) / correction + static_cast<T>(a.epsilon));
  }
}

template <class T>
void Adafactor(const AdafactorArgsOf<T>& a) {
  const double beta = 1.0 - std::pow(static_cast<double>(a.step), -0.8);
  const T b = static_cast<T>(beta), one_minus_b = static_cast<T>(1.0 - beta);
  const int64_t count = a.rows * a.columns;
  const bool factored = a.row_moment != nullptr;
  std::vector<T> update(count), square(count);
  for (int64_t i = 0; i < count; ++i) {
    update[i] = static_cast<T>(a.gradient_scale) * a.gradient[i];
    square[i] = update[i] * update[i] + static_cast<T>(1e-30);
  }
  if (factored) {
    T mean_row = 0;
    for (int64_t i = 0; i < a.rows; ++i) {
      T sum = 0;
      for (int64_t c = 0; c < a.columns; ++c) sum += square[i * a.columns + c];
      a.row_moment[i] = b * a.row_moment[i] + one_minus_b * sum / static_cast<T>(a.columns);
      mean_row += a.row_moment[i] / static_cast<T>(a.rows);
    }
    for (int64_t c = 0; c < a.columns; ++c) {
      T sum = 0;
      for (int64_t i = 0; i < a.rows; ++i) sum += square[i * a.columns + c];
      a.column_moment[c] = b * a.column_moment[c] + one_minus_b * sum / static_cast<T>(a.rows);
    }
    for (int64_t i = 0; i < count; ++i) {
      update[i] /= std::sqrt(a.row_moment[i / a.columns] / mean_row) *
                   std::sqrt(a.column_moment[i % a.columns]);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      a.second_moment[i] = b * a.second_moment[i] + one_minus_b * square[i];
      update[i] /= std::sqrt(a.second_moment[i]);
    }
  }
  double update_squares = 0, parameter_squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    update_squares += static_cast<double>(update[i]) * update[i];
    parameter_squares += static_cast<double>(a.parameter[i]) * a.parameter[i];
  }
  const double size = static_cast<double>(count);
  double rate = a.learning_rate;
  if (a.scale_parameter) rate *= std::max(1e-3, std::sqrt(parameter_squares / size));
  const double clip = std::max(1.0, std::sqrt(update_squares / size) / a.clip_threshold);
  const double decay = a.weight_decay * (a.decay == AdafactorDecay::kT5X ? 1.0 : rate);
  for (int64_t i = 0; i < count; ++i) {
    a.parameter[i] =
        a.parameter[i] * static_cast<T>(1.0 - decay) - static_cast<T>(rate / clip) * update[i];
  }
}

template <class T>
void Sgd(const SgdArgsOf<T>& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    T g = static_cast<T>(a.gradient_scale) * a.gradient[i] +
          static_cast<T>(a.weight_decay) * a.parameter[i];
    if (a.first_moment != nullptr) {
      g += static_cast<T>(a.momentum) * a.first_moment[i];
      a.first_moment[i] = g;
    }
    a.parameter[i] -= static_cast<T>(a.learning_rate) * g;
  }
}

}  // namespace permafrost::kernels::reference

#endif  // PERMAFROST_KERNELS_REFERENCE_OPTIMIZER_H_
