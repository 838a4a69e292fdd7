#include "peft/prompt_tuning.h"

namespace permafrost {

PromptTuning::PromptTuning(int task, Tensor table, int64_t virtual_tokens,
                           std::string input_template)
    : Method(task), virtual_tokens_(virtual_tokens), input_template_(std::move(input_template)) {
  parameters_.Add(kPromptTensor, std::move(table));
}

int64_t PromptTuning::VirtualTokens(int task) const {
  return task == task_ && input_template_.empty() ? virtual_tokens_ : 0;
}

int64_t PromptTuning::AnchoredTokens(int task) const {
  return task == task_ && !input_template_.empty() ? virtual_tokens_ : 0;
}

Var PromptTuning::OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) {
  const StackRows& rows = stack == Stack::kEncoder ? batch.encoder : batch.decoder;
  for (const VirtualRows& v : rows.virtual_rows) {
    if (v.task == task_) x = ReplaceRows(c, std::move(x), v.rows, parameters_[0].var(), v.tokens);
  }
  return x;
}

}  // namespace permafrost
