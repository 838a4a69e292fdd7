// Prompt tuning (Lester et al. 2021): P trainable rows in front of the text's embeddings, once for
// all examples of a step in a causal model, before each text in an encoder. With an input template
// they are anchored instead (P-tuning, Liu et al. 2021): they stand among the text's own tokens,
// where the template puts them.
#ifndef PERMAFROST_PEFT_PROMPT_TUNING_H_
#define PERMAFROST_PEFT_PROMPT_TUNING_H_

#include <string>

#include "peft/method.h"

namespace permafrost {

inline constexpr char kPromptTensor[] = "prompt_embeddings";  // PEFT's name, [P, D]

struct PromptTuningConfig {
  int64_t virtual_tokens = 0;  // P
  // PEFT gives sequence-to-sequence prompts 2 P rows of which the last P are never read. They are
  // kept as they are when such a file is loaded; own prompts have P rows.
  int64_t submodules = 1;
  // "{v*3} {subject} {v*3} is {v*2}": where the P virtual tokens stand. Empty: in front.
  std::string input_template = {};
};

class PromptTuning : public Method {
 public:
  // table [submodules * P, D], of which the first P rows are read.
  PromptTuning(int task, Tensor table, int64_t virtual_tokens, std::string input_template = "");

  // The virtual tokens [P, D].
  Tensor prompt() const { return parameters_[0].value().RowRange(0, virtual_tokens_); }

  int64_t VirtualTokens(int task) const override;
  int64_t AnchoredTokens(int task) const override;
  std::string InputTemplate() const override { return input_template_; }
  Var OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) override;

 private:
  int64_t virtual_tokens_;
  std::string input_template_;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_PROMPT_TUNING_H_
