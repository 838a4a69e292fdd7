// Beam search as transformers 5 does it (GenerationMixin._beam_search, early_stopping = false), for
// one line. B beams, V vocabulary.
#ifndef PERMAFROST_MODELS_BEAM_SEARCH_H_
#define PERMAFROST_MODELS_BEAM_SEARCH_H_

#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tensor.h"

namespace permafrost {

struct BeamSearchOptions {
  int beams = 4;
  int64_t max_new_tokens = 20;
  double length_penalty = 1;
  double repetition_penalty = 1;
  absl::Span<const int32_t> end_tokens;
  absl::Span<const int32_t> prompt_ids;  // for the repetition penalty
};

// Logits [B, V] after beam b has become what beam parents[b] was and has taken tokens[b].
using BeamStep =
    std::function<Tensor(absl::Span<const int32_t> tokens, absl::Span<const int32_t> parents)>;

// The new tokens of the best finished beam; the end token, if any, included. `first` [1, V]: the
// logits after the prompt. InvalidArgument: logits that are not numbers, too few tokens for so many
// end tokens.
absl::StatusOr<std::vector<int32_t>> BeamSearch(const Tensor& first,
                                                const BeamSearchOptions& options,
                                                const BeamStep& step);

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_BEAM_SEARCH_H_
