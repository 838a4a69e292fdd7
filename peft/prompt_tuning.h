// Prompt tuning (Lester et al. 2021): P trainable rows in front of the text's embeddings, once for
// all examples of a step in a causal model, before each text in an encoder.
#ifndef PERMAFROST_PEFT_PROMPT_TUNING_H_
#define PERMAFROST_PEFT_PROMPT_TUNING_H_

#include "peft/method.h"

namespace permafrost {

inline constexpr char kPromptTensor[] = "prompt_embeddings";  // PEFT's name, [P, D]

class PromptTuning : public Method {
 public:
  // prompt [P, D], or [2 P, D] of which only the first P rows are read (PEFT's sequence-to-sequence
  // files).
  PromptTuning(int task, Tensor prompt, int64_t virtual_tokens);

  int64_t VirtualTokens(int task) const override;
  Var OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) override;

 private:
  int64_t virtual_tokens_;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_PROMPT_TUNING_H_
