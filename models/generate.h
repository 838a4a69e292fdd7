// Text generation in token ids: greedy search, sampling and beam search as transformers defines
// them (GenerationMixin of transformers 5, one line at a time).
//
// Non-goals: several lines at once, beam sampling, n-gram bans and other processors.
#ifndef PERMAFROST_MODELS_GENERATE_H_
#define PERMAFROST_MODELS_GENERATE_H_

#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "models/model.h"

namespace permafrost {

struct GenerateOptions {
  int64_t max_new_tokens = 20;
  double temperature = 0;         // 0: the likeliest token (the lowest id on ties), else sampling
  int64_t top_k = 0;              // sampling: 0 for all (transformers' default is 50)
  double top_p = 1;               // sampling, in (0, 1]
  double repetition_penalty = 1;  // of ids in the decoder's sequence, the prompt's included
  uint64_t seed = 0;              // sampling
  int beams = 1;                  // more than 1: beam search, temperature must be 0
  double length_penalty = 1;      // beam search: a sum of log-probabilities / length^length_penalty
  int prompt = 0;                 // of an adapter that has several
};

// The new token ids, the end token included if one was produced; ends at any of the model's end
// tokens. The rows of the prompt use the adapter of `task`. `on_token` may be null; greedy search
// and sampling call it with every new token and stop if it returns false, beam search does not call
// it. Temperature, top-k and top-p act only in sampling.
//
// InvalidArgument: an option out of range, an id that is not in the vocabulary (nor kVirtual, as
// often as the adapter has anchored virtual tokens), an empty prompt
// without virtual tokens, a prompt with its virtual and new tokens longer than the model's
// positions, logits that are not numbers.
absl::StatusOr<std::vector<int32_t>> Generate(Context& c, const Model& model, Hooks& hooks,
                                              int task, absl::Span<const int32_t> prompt_ids,
                                              const GenerateOptions& options,
                                              const std::function<bool(int32_t)>& on_token);

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_GENERATE_H_
