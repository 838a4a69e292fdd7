// Initialisations of a soft prompt [P, D] (Lester et al. 2021, section 3.2, and PEFT). Random ones
// are UniformTensor on [-0.5, 0.5), the paper's, and NormalTensor of deviation 1, PEFT's.
#ifndef PERMAFROST_PEFT_PROMPT_INIT_H_
#define PERMAFROST_PEFT_PROMPT_INIT_H_

#include <string>
#include <vector>

#include "engine/random_tensor.h"
#include "peft/method.h"

namespace permafrost {

// Rows of the vocabulary. The first `most_common` ids (SentencePiece and BPE ids are ordered by
// frequency; Lester et al.: 5000), without replacement unless P is larger.
Tensor SampledVocabularyPrompt(Context& c, const Model& model, int64_t virtual_tokens,
                               int64_t most_common, Random& random);
// Row i is the mean of the embeddings of label i's pieces; rows beyond the labels are sampled.
Tensor LabelPrompt(Context& c, const Model& model, int64_t virtual_tokens,
                   const std::vector<std::vector<int>>& labels, int64_t most_common,
                   Random& random);
// Row i is the embedding of ids[i]; ids are tiled or truncated to P (PEFT's TEXT). ids must not be
// empty.
Tensor TextPrompt(Context& c, const Model& model, int64_t virtual_tokens,
                  const std::vector<int>& ids);

// A prompt from a file: .npy [P, D] (google-research/prompt-tuning), or an adapter folder (the
// first P rows). Errors: another width than the base's, values that are not finite.
absl::StatusOr<Tensor> ReadPromptFile(const std::string& path, Context& c, const Model& model);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_PROMPT_INIT_H_
