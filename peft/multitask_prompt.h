// Multitask prompt tuning (Wang et al. 2023, as PEFT defines it): the prompt of task t is a shared
// table times a low-rank matrix of its own, elementwise: E * (C_t R_t), E [P, D], C_t [P, r], R_t
// [r, D]. Each line names its task (TokenLine::prompt); tasks mix in a batch.
//
// On a sequence-to-sequence base the prompt stands in front of the encoder's text alone, which is
// what PEFT's generate does. PEFT's training forward puts a second half of the table in front of
// the decoder too if num_transformer_submodules is 2, a prompt that its generate then leaves out;
// own files say 1, for which PEFT does the same in both.
#ifndef PERMAFROST_PEFT_MULTITASK_PROMPT_H_
#define PERMAFROST_PEFT_MULTITASK_PROMPT_H_

#include <vector>

#include "engine/random_tensor.h"
#include "peft/method.h"

namespace permafrost {

struct MultitaskPromptConfig {
  int64_t virtual_tokens = 20;  // P
  int64_t submodules = 1;       // as PromptTuningConfig's
  int64_t tasks = 1;
  int64_t ranks = 1;  // r
};

class MultitaskPrompt : public Method {
 public:
  // table [submodules * P, D] is E, of which the first P rows are read; C and R are N(0, 0.02^2).
  MultitaskPrompt(int task, const MultitaskPromptConfig& config, Tensor table, Random& random);

  int64_t VirtualTokens(int task) const override;
  int64_t Prompts() const override { return config_.tasks; }
  Var OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) override;

  // C is [tasks, submodules * P, r] and R [tasks, r, D] in the file.
  std::vector<int64_t> FileShape(const Parameter& p) const override;

 private:
  MultitaskPromptConfig config_;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_MULTITASK_PROMPT_H_
