// Building blocks that both families share.
#ifndef PERMAFROST_MODELS_BLOCKS_H_
#define PERMAFROST_MODELS_BLOCKS_H_

#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "models/model.h"

namespace permafrost {

// Everything a layer's forward needs beside its rows.
struct ForwardState {
  const Model& model;
  Hooks& hooks;
  const Batch& batch;
  Cache* cache;  // null unless generating

  PlaceRows EncoderRows() const { return {batch.encoder, batch.encoder.spans, true, nullptr}; }
  PlaceRows DecoderRows() const { return {batch.decoder, batch.decoder.spans, false, cache}; }
  PlaceRows Rows(Stack stack) const {
    return stack == Stack::kEncoder ? EncoderRows() : DecoderRows();
  }
  // Above the decoder's last attention only the wanted rows are left, unless a method reads all.
  PlaceRows WantedRows() const { return {batch.decoder, batch.output_spans, false, cache}; }
};

// y = linear(x) at place `index`, with what hooks do there.
Var ApplyLinear(Context& c, const ForwardState& state, int index, const Var& x,
                const PlaceRows& rows);

// The base vector or table `id`, or what a method has put in its place for `task`.
Var BaseVector(const ForwardState& state, TensorId id, int task);

// Whether a method has put something in the place of one of `tensors` for some of the rows.
bool IsReplaced(const Hooks& hooks, std::initializer_list<TensorId> tensors,
                absl::Span<const TaskSpan> spans);

// f(c, rows of x, task) -> [rows, width] for the rows of each task, put together; for all rows at
// once where no method replaces one of the `tensors` that f reads.
template <class F>
Var ByTask(Context& c, const Hooks& hooks, std::initializer_list<TensorId> tensors, const Var& x,
           absl::Span<const TaskSpan> spans, int64_t width, F f) {
  if (!IsReplaced(hooks, tensors, spans)) return f(c, x, kNoTask);
  if (spans.size() == 1) return f(c, x, spans[0].task);
  Var y{Tensor({x.rows(), width})};
  for (const TaskSpan& span : spans) {
    y = PutRows(c, std::move(y), f(c, TakeRows(c, x, {span}), span.task), {span});
  }
  return y;
}

// x, the base's rows `ids` of a table, with the rows of tasks that replace the table from theirs.
// `ids` must outlive the tape.
Var ReplaceLookup(Context& c, const Hooks& hooks, TensorId table, Var x,
                  const std::vector<int32_t>& ids, absl::Span<const TaskSpan> spans);

// What methods put in front of the keys of the attention at `site` with normed inputs x.
std::vector<AttentionPrefix> Prefixes(Context& c, const ForwardState& state, const SiteId& site,
                                      const Var& x, const PlaceRows& rows);

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
