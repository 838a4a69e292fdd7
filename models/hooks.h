// Where a method acts on a forward pass. The defaults do nothing: a forward with plain Hooks is the
// base, bit for bit. A place's rows say which of them use which adapter; a method changes the rows
// of its own task only.
#ifndef PERMAFROST_MODELS_HOOKS_H_
#define PERMAFROST_MODELS_HOOKS_H_

#include <vector>

#include "engine/ops.h"
#include "models/batch.h"
#include "models/cache.h"
#include "models/sites.h"

namespace permafrost {

// The rows that a place works on.
struct PlaceRows {
  const StackRows& stack;
  // Runs of equal task. They are of all rows of the stack, or of batch.outputs above the decoder's
  // last attention (unless ReadsAllRows).
  absl::Span<const TaskSpan> spans;
  bool bidirectional = false;  // the encoder's rows: every row sees its whole text
  Cache* cache = nullptr;      // while generating, for decoder rows
};

// Trained keys and values [P, G K] of one task at an attention.
struct Prefix {
  int task = kNoTask;
  Var keys, values;
  Var gate;  // [R, 1], [R, 2] or empty (AttentionPrefix)
  // Whether the base's relative position bias takes the slots for the positions from `position` on;
  // otherwise they have none.
  bool biased = false;
  int64_t position = 0;
};

class Hooks {
 public:
  virtual ~Hooks() = default;

  // Rows that lines of `task` carry in front of their text, filled by OnEmbedding.
  virtual int64_t VirtualTokens(int /*task*/) const { return 0; }

  // Virtual tokens that each line of `task` holds among its own ids instead, as kVirtual.
  virtual int64_t AnchoredTokens(int /*task*/) const { return 0; }

  // Position of the first row of a decoder-only base's text, where rotary or learned positions
  // count on from a prefix.
  virtual int64_t FirstPosition(int /*task*/) const { return 0; }

  // By how much later than they are a text's keys count in T5's relative position bias.
  virtual int64_t BiasShift(int /*task*/, Stack) const { return 0; }

  // Whether a place above the decoder's last attention must see all rows, wanted or not.
  virtual bool ReadsAllRows() const { return false; }

  // Whether rows of `task` in a causal stack depend on later rows of their text, so that nothing of
  // them can be kept while the text grows or be shared by its continuations.
  virtual bool ReadsFuture(int /*task*/) const { return false; }

  // A trainable tensor that stands in for a base tensor in the rows of `task` (full fine-tuning,
  // BitFit), or null. In the shape of the engine: linears [outputs, inputs], vectors [1, n].
  virtual const Var* Replacement(TensorId /*tensor*/, int /*task*/) const { return nullptr; }

  // The same for the head of a base whose head is its embedding: a method may train one of the two
  // and leave the other.
  virtual const Var* TiedHeadReplacement(TensorId embedding, int task) const {
    return Replacement(embedding, task);
  }

  // The embedded rows x [R, D] of a stack: add or replace rows.
  virtual Var OnEmbedding(Context&, Stack, const Batch&, Var x) { return x; }

  // The prefixes of an attention; x [R, D] are its normed inputs, queries' side.
  virtual void OnAttention(Context&, const SiteId&, const Var& /*x*/, const PlaceRows&,
                           std::vector<Prefix>&) {}

  // The rows x [R, D] that a linear is about to read; other linears that read the same rows do not
  // see the change.
  virtual Var OnLinearInput(Context&, const LinearPlace&, Var x, const PlaceRows&) { return x; }

  // After y [R, N] = linear(x [R, D]), x as OnLinearInput left it.
  virtual Var OnLinear(Context&, const LinearPlace&, const Var& /*x*/, Var y, const PlaceRows&) {
    return y;
  }

  // A sublayer's output y before the residual add; x_in is the residual stream that the sublayer
  // read.
  virtual Var OnSublayerOutput(Context&, const SiteId&, const Var& /*x_in*/, Var y,
                               const PlaceRows&) {
    return y;
  }
};

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_HOOKS_H_
