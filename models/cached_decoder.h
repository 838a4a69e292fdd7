// A decoder that remembers keys and values: the prompt's rows once, shared by all beams, and one
// row a beam and step after that. N prompt rows, virtual tokens included (T5: the start token's
// row), B beams, V vocabulary, G K width of keys.
//
// Cache rows: 0 .. N - 1 hold the prompt, the regions of the beams follow, `stride_` rows each.
// Beams are children of the prompt: each reads the prompt's rows and its own region.
#ifndef PERMAFROST_MODELS_CACHED_DECODER_H_
#define PERMAFROST_MODELS_CACHED_DECODER_H_

#include <vector>

#include "models/model.h"

namespace permafrost {

class CachedDecoder {
 public:
  // Everything named must outlive the decoder. The prompt, with its virtual tokens, is not empty.
  CachedDecoder(Context& c, const Model& model, Hooks& hooks, int task, int beams, int prompt = 0);

  // Runs the prompt; logits [1, V] of the first new token. To be called once.
  Tensor Prefill(absl::Span<const int32_t> prompt_ids);

  // Beam b becomes what beam parents[b] was, then takes tokens[b]; logits [B, V] of what follows.
  // No parents: every beam goes on.
  Tensor Step(absl::Span<const int32_t> tokens, absl::Span<const int32_t> parents = {});

 private:
  int64_t RegionBegin(int64_t beam) const { return prompt_rows_ + beam * stride_; }
  std::vector<Tensor*> Tables();
  void Reserve(int64_t stride);
  void Reorder(absl::Span<const int32_t> parents);
  Batch StepBatch(absl::Span<const int32_t> tokens) const;

  Context& c_;
  const Model& model_;
  Hooks& hooks_;
  int task_;
  int which_prompt_;
  int64_t beams_;
  int64_t prompt_rows_ = 0;
  int64_t first_position_ = 0;  // of the prompt's first row
  int64_t steps_ = 0;           // rows in each region
  int64_t stride_ = 0;          // rows a region has room for
  Cache cache_;
  Batch prompt_;  // T5: later steps refer to its encoder rows
  Var encoded_;
};

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_CACHED_DECODER_H_
