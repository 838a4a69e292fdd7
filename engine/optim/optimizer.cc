#include "engine/optim/optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/optimizer.h"

namespace permafrost {
namespace {

constexpr double kPi = 3.14159265358979323846;

}  // namespace

Optimizer::Optimizer(const OptimizerConfig& config, ParameterList& parameters)
    : config_(config), parameters_(parameters) {
  for (const Parameter& p : parameters) {
    Moments m;
    const Shape shape = p.value().shape();
    const auto zeros = [](Shape s) { return Tensor::Zeros(s, MemoryTag::kOptimizer); };
    switch (config.kind) {
      case OptimizerKind::kAdamW:
        m.first = zeros(shape);
        m.second = zeros(shape);
        break;
      case OptimizerKind::kAdafactor:
        if (config.factored && shape.rows > 1) {
          m.row = zeros({1, shape.rows});
          m.column = zeros({1, shape.columns});
        } else {
          m.second = zeros(shape);
        }
        break;
      case OptimizerKind::kSgd:
        if (config.beta1 != 0) m.first = zeros(shape);
        break;
    }
    moments_.push_back(std::move(m));
  }
}

double Optimizer::Step(Context& c, double multiplier) {
  const double norm = GradientNorm(parameters_);
  const double scale = config_.clip > 0 ? std::min(1.0, config_.clip / (norm + 1e-6)) : 1.0;
  ++steps_;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& p = parameters_[i];
    Moments& m = moments_[i];
    const double rate = config_.learning_rate * multiplier * p.rate_factor();
    const Tensor gradient =
        p.gradient() ? p.gradient() : Tensor::Zeros(p.value().shape(), MemoryTag::kWorkspace);
    switch (config_.kind) {
      case OptimizerKind::kAdamW:
        kernels::cpu::AdamW({.parameter = p.value().f32(),
                             .gradient = gradient.f32(),
                             .first_moment = m.first.f32(),
                             .second_moment = m.second.f32(),
                             .count = p.count(),
                             .step = steps_,
                             .gradient_scale = scale,
                             .learning_rate = rate,
                             .beta1 = config_.beta1,
                             .beta2 = config_.beta2,
                             .epsilon = config_.epsilon,
                             .weight_decay = config_.weight_decay},
                            c.parallel());
        break;
      case OptimizerKind::kAdafactor:
        kernels::cpu::Adafactor({.parameter = p.value().f32(),
                                 .gradient = gradient.f32(),
                                 .row_moment = m.row ? m.row.f32() : nullptr,
                                 .column_moment = m.column ? m.column.f32() : nullptr,
                                 .second_moment = m.second ? m.second.f32() : nullptr,
                                 .rows = p.value().rows(),
                                 .columns = p.value().columns(),
                                 .step = steps_,
                                 .gradient_scale = scale,
                                 .learning_rate = rate,
                                 .weight_decay = config_.weight_decay,
                                 .clip_threshold = 1.0,
                                 .scale_parameter = config_.scale_parameter,
                                 .decay = kernels::AdafactorDecay::kT5X},
                                c.parallel());
        break;
      case OptimizerKind::kSgd:
        kernels::cpu::Sgd({.parameter = p.value().f32(),
                           .gradient = gradient.f32(),
                           .first_moment = m.first ? m.first.f32() : nullptr,
                           .count = p.count(),
                           .gradient_scale = scale,
                           .learning_rate = rate,
                           .momentum = config_.beta1,
                           .weight_decay = config_.weight_decay},
                          c.parallel());
        break;
    }
    p.ZeroGradient();
  }
  return norm;
}

std::vector<std::pair<std::string, Tensor>> Optimizer::State() const {
  std::vector<std::pair<std::string, Tensor>> state;
  for (size_t i = 0; i < moments_.size(); ++i) {
    const std::string& name = parameters_[i].name();
    const Moments& m = moments_[i];
    if (m.first) state.emplace_back("first_moment." + name, m.first);
    if (m.second) state.emplace_back("second_moment." + name, m.second);
    if (m.row) state.emplace_back("row_moment." + name, m.row);
    if (m.column) state.emplace_back("column_moment." + name, m.column);
  }
  return state;
}

double Schedule::Multiplier(int64_t step) const {
  const double s = static_cast<double>(step), w = static_cast<double>(warmup),
               t = static_cast<double>(total);
  if (step < warmup) return s / std::max(1.0, w);
  switch (kind) {
    case ScheduleKind::kConstant:
      return 1;
    case ScheduleKind::kLinear:
      return std::max(0.0, (t - s) / std::max(1.0, t - w));
    case ScheduleKind::kCosine:
      return std::max(0.0, 0.5 * (1 + std::cos(kPi * (s - w) / std::max(1.0, t - w))));
    case ScheduleKind::kInverseSqrt: {
      const double timescale = warmup > 0 ? w : 10000;
      return 1 / std::sqrt((s + timescale - w) / timescale);
    }
  }
  return 1;
}

}  // namespace permafrost
