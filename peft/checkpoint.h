// The state of a run on disk, OUT/checkpoint/state.safetensors: one file, replaced atomically.
#ifndef PERMAFROST_PEFT_CHECKPOINT_H_
#define PERMAFROST_PEFT_CHECKPOINT_H_

#include <optional>
#include <string>

#include "engine/optim/optimizer.h"
#include "peft/method.h"

namespace permafrost {

struct CheckpointState {
  int64_t step = 0;
  double last_loss = 0;
  std::optional<double> best_quality;
  int64_t evaluations_since_best = 0;
  bool stopped = false;  // by early stopping
};

absl::Status WriteCheckpoint(const std::string& out, const std::string& settings,
                             const Method& method, const Optimizer& optimizer,
                             const CheckpointState& state);

// Restores parameters, optimizer state and step. Errors: no checkpoint, a damaged one, or one
// written under other settings (names those that differ).
absl::StatusOr<CheckpointState> ReadCheckpoint(const std::string& out, const std::string& settings,
                                               Method& method, Optimizer& optimizer);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_CHECKPOINT_H_
