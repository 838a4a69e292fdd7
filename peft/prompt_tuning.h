// Prompt tuning (Lester et al. 2021): P trainable rows in front of the text's embeddings, once for
// all examples of a step in a causal model, before each text in an encoder.
#ifndef PERMAFROST_PEFT_PROMPT_TUNING_H_
#define PERMAFROST_PEFT_PROMPT_TUNING_H_

#include "peft/method.h"

namespace permafrost {

inline constexpr char kPromptTensor[] = "prompt_embeddings";  // PEFT's name, [P, D]

struct PromptTuningConfig {
  int64_t virtual_tokens = 0;  // P
  // PEFT gives sequence-to-sequence prompts 2 P rows of which the last P are never read. They are
  // kept as they are when such a file is loaded; own prompts have P rows.
  int64_t submodules = 1;
};

class PromptTuning : public Method {
 public:
  // table [submodules * P, D], of which the first P rows are read.
  PromptTuning(int task, Tensor table, int64_t virtual_tokens);

  // The virtual tokens [P, D].
  Tensor prompt() const { return parameters_[0].value().RowRange(0, virtual_tokens_); }

  int64_t VirtualTokens(int task) const override;
  Var OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) override;

 private:
  int64_t virtual_tokens_;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_PROMPT_TUNING_H_
