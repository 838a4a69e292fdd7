// Optimizers over a ParameterList, and learning-rate schedules. State is f32, tagged kOptimizer,
// and exists for trainable tensors only.
#ifndef PERMAFROST_ENGINE_OPTIM_OPTIMIZER_H_
#define PERMAFROST_ENGINE_OPTIM_OPTIMIZER_H_

#include <string>
#include <utility>
#include <vector>

#include "engine/context.h"
#include "engine/parameter.h"

namespace permafrost {

enum class OptimizerKind { kAdamW, kAdafactor, kSgd };

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;  // AdamW; beta1 is SGD's momentum
  double weight_decay = 0.01;
  double clip = 0;  // largest global gradient norm; 0 = off
  // Adafactor: T5X decays by (1 - weight_decay), not times the rate; prompts are not factored.
  bool factored = false;
  bool scale_parameter = false;
};

class Optimizer {
 public:
  Optimizer(const OptimizerConfig& config, ParameterList& parameters);

  // One update with rate config.learning_rate * multiplier * the parameter's rate_factor; clears
  // the gradients. Returns the
  // global gradient norm before clipping. Parameters without a gradient are treated as having a
  // zero one.
  double Step(Context& c, double multiplier);

  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  // Named state tensors, for checkpoints.
  std::vector<std::pair<std::string, Tensor>> State() const;

 private:
  struct Moments {
    Tensor first, second, row, column;
  };

  OptimizerConfig config_;
  ParameterList& parameters_;
  std::vector<Moments> moments_;
  int64_t steps_ = 0;
};

enum class ScheduleKind { kConstant, kLinear, kCosine, kInverseSqrt };

struct Schedule {
  ScheduleKind kind = ScheduleKind::kConstant;
  int64_t warmup = 0;
  int64_t total = 0;
  // transformers' get_*_schedule_with_warmup at 0-based step: the first warm-up step has rate 0.
  double Multiplier(int64_t step) const;
};

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_OPTIM_OPTIMIZER_H_
