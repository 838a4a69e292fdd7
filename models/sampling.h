// From the logits of one position to the next token: what transformers calls logits processors, in
// its order (repetition penalty; when sampling temperature, top-k, top-p). V vocabulary.
#ifndef PERMAFROST_MODELS_SAMPLING_H_
#define PERMAFROST_MODELS_SAMPLING_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace permafrost {

// The largest score's index, the lowest on ties; -1 if a score is not a number.
int32_t ArgMax(absl::Span<const float> scores);

// The indices of the `count` largest scores (at most all), best first; equal scores by index. None
// may be NaN.
std::vector<int32_t> TopIndices(absl::Span<const float> scores, int64_t count);

// Divides positive and multiplies negative scores of every id in `ids` by `penalty`, each once
// however often it occurs (Keskar et al. 2019; transformers' RepetitionPenaltyLogitsProcessor).
void PenalizeRepetition(absl::Span<float> scores, absl::Span<const int32_t> ids, double penalty);

// scores := log_softmax(scores), sums in double.
void LogSoftmax(absl::Span<float> scores);

// Probabilities [V] that sum to 1: softmax(scores / temperature), of the top_k largest scores (0:
// all; ties with the last one stay), of those without the least likely ones that together have at
// most 1 - top_p. The best one always stays; of equal ones the lower id is the likelier. At least
// one score is finite, none NaN; temperature > 0.
std::vector<double> SamplingProbabilities(absl::Span<const float> scores, double temperature,
                                          int64_t top_k, double top_p);

// The token at `uniform` in [0, 1) of the cumulative distribution, in order of ids.
int32_t PickToken(absl::Span<const double> probabilities, double uniform);

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_SAMPLING_H_
