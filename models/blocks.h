// Building blocks that both families share.
#ifndef PERMAFROST_MODELS_BLOCKS_H_
#define PERMAFROST_MODELS_BLOCKS_H_

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "models/model.h"

namespace permafrost {

// Everything a layer's forward needs beside its rows.
struct ForwardState {
  const Model& model;
  Hooks& hooks;
  const Batch& batch;
  Cache* cache;  // null unless generating
};

// y = linear(x) at place `index`, with what hooks do there.
Var ApplyLinear(Context& c, const ForwardState& state, int index, const Var& x,
                absl::Span<const TaskSpan> spans);

// The base vector or table `id`, or what a method has put in its place.
Var BaseVector(const ForwardState& state, TensorId id);

// Stores rows k, v at the cache's slots of `layer` and returns the cache's tensors.
std::pair<Var, Var> StoreKeyValue(Cache& cache, size_t layer, const Var& k, const Var& v);

// f(c, x); if `recompute`, what f keeps is computed again in the backward pass.
template <class F>
Var RecomputedIf(bool recompute, Context& c, const Var& x, F f) {
  return recompute ? Checkpoint(c, x, std::move(f)) : f(c, x);
}

// transformers' activation names: relu, gelu, gelu_new, gelu_pytorch_tanh, silu, swish, tanh.
absl::StatusOr<Activation> ParseActivation(const std::string& name, const std::string& where);

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_BLOCKS_H_
