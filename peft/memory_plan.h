// What a training step keeps for its backward pass, estimated before there is one: the formulas of
// docs/architecture.md, "What a step keeps", for a base and an adapter's config. R rows of a stack,
// D width, F feed-forward width, H heads, G key heads, K head size, T targets, P virtual tokens,
// r rank, b bottleneck.
//
// Non-goals: bookkeeping of a few bytes a place, tensors that live a moment (gradients of
// activations, workspaces), weights, parameters and optimizer state.
#ifndef PERMAFROST_PEFT_MEMORY_PLAN_H_
#define PERMAFROST_PEFT_MEMORY_PLAN_H_

#include <optional>

#include "peft/adapter_file.h"

namespace permafrost {

// The rows of a step, virtual ones included.
struct StepRows {
  int64_t encoder = 0, decoder = 0;
  int64_t outputs = 0;  // decoder rows that predict something
  int64_t targets = 0;  // T
};

struct StepMemory {
  int64_t kept = 0;        // from the forward to the backward pass
  int64_t recomputed = 0;  // beside that, while the largest part is computed again
};

// Null: no formula for this config (copies of base tensors beside a LoRA). Error: a target that
// matches nothing.
absl::StatusOr<std::optional<StepMemory>> EstimateStepMemory(const AdapterConfig& config,
                                                             const Model& model,
                                                             const StepRows& rows,
                                                             Precision precision,
                                                             Recompute recompute);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_MEMORY_PLAN_H_
