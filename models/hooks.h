// Where a method acts on a forward pass. The defaults do nothing: a forward with plain Hooks is the
// base, bit for bit. `spans` says which rows use which adapter; a method changes the rows of its
// own task only.
#ifndef PERMAFROST_MODELS_HOOKS_H_
#define PERMAFROST_MODELS_HOOKS_H_

#include "engine/ops.h"
#include "models/batch.h"
#include "models/sites.h"

namespace permafrost {

class Hooks {
 public:
  virtual ~Hooks() = default;

  // Rows that lines of `task` carry in front of their text, filled by OnEmbedding.
  virtual int64_t VirtualTokens(int /*task*/) const { return 0; }

  // Virtual tokens that each line of `task` holds among its own ids instead, as kVirtual.
  virtual int64_t AnchoredTokens(int /*task*/) const { return 0; }

  // A trainable tensor that stands in for a base tensor (full fine-tuning, norm tuning), or null.
  // In the shape of the engine: linears [outputs, inputs], vectors [1, n].
  virtual const Var* Replacement(TensorId /*tensor*/) const { return nullptr; }

  // The embedded rows x [R, D] of a stack: add or replace rows.
  virtual Var OnEmbedding(Context&, Stack, const Batch&, Var x) { return x; }

  // The rows x [R, D] that a linear is about to read; other linears that read the same rows do not
  // see the change.
  virtual Var OnLinearInput(Context&, const LinearPlace&, Var x, absl::Span<const TaskSpan>) {
    return x;
  }

  // After y [R, N] = linear(x [R, D]), x as OnLinearInput left it.
  virtual Var OnLinear(Context&, const LinearPlace&, const Var& /*x*/, Var y,
                       absl::Span<const TaskSpan>) {
    return y;
  }

  // A sublayer's output y before the residual add; x_in is the residual stream that the sublayer
  // read.
  virtual Var OnSublayerOutput(Context&, const SiteId&, const Var& /*x_in*/, Var y,
                               absl::Span<const TaskSpan>) {
    return y;
  }
};

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_HOOKS_H_
