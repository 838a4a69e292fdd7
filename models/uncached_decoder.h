// A decoder that runs every text anew from its first token, for methods whose rows read later rows
// (Hooks::ReadsFuture): their keys and values change while the text grows. B beams, V vocabulary.
//
// Non-goals: speed; CachedDecoder is the decoder of everything else.
#ifndef PERMAFROST_MODELS_UNCACHED_DECODER_H_
#define PERMAFROST_MODELS_UNCACHED_DECODER_H_

#include <vector>

#include "models/model.h"

namespace permafrost {

class UncachedDecoder {
 public:
  // Everything named must outlive the decoder. `prompt` is TokenLine's.
  UncachedDecoder(Context& c, const Model& model, Hooks& hooks, int task, int beams,
                  int prompt = 0);

  // Logits [1, V] of the first new token. To be called once.
  Tensor Prefill(absl::Span<const int32_t> prompt_ids);

  // Beam b becomes what beam parents[b] was, then takes tokens[b]; logits [B, V] of what follows.
  // No parents: every beam goes on.
  Tensor Step(absl::Span<const int32_t> tokens, absl::Span<const int32_t> parents = {});

 private:
  // Logits of what follows the first `beams` beams.
  Tensor Run(size_t beams);

  Context& c_;
  const Model& model_;
  Hooks& hooks_;
  TokenLine prompt_;
  std::vector<std::vector<int32_t>> generated_;  // by beam
};

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_UNCACHED_DECODER_H_
