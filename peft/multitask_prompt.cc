#include "peft/multitask_prompt.h"

#include "engine/check.h"
#include "peft/prompt_tuning.h"

namespace permafrost {

MultitaskPrompt::MultitaskPrompt(int task, const MultitaskPromptConfig& config, Tensor table,
                                 Random& random)
    : Method(task), config_(config) {
  constexpr double kDeviation = 0.02;
  const int64_t rows = table.rows(), width = table.columns();
  parameters_.Add(kPromptTensor, std::move(table));
  parameters_.Add("prefix_task_cols",
                  NormalTensor({config.tasks * rows, config.ranks}, kDeviation, random));
  parameters_.Add("prefix_task_rows",
                  NormalTensor({config.tasks * config.ranks, width}, kDeviation, random));
}

int64_t MultitaskPrompt::VirtualTokens(int task) const {
  return task == task_ ? config_.virtual_tokens : 0;
}

Var MultitaskPrompt::OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) {
  const StackRows& rows = stack == Stack::kEncoder ? batch.encoder : batch.decoder;
  const Var& table = parameters_[0].var();
  for (const VirtualRows& v : rows.virtual_rows) {
    if (v.task != task_) continue;
    PERMAFROST_CHECK(v.prompt >= 0 && v.prompt < config_.tasks)
        << "MultitaskPrompt: task " << v.prompt << " of " << config_.tasks;
    const Var prompt = ScaleByLowRank(c, table, parameters_[1].var(), parameters_[2].var(),
                                      {.rows = config_.virtual_tokens,
                                       .a_begin = v.prompt * table.rows(),
                                       .b_begin = v.prompt * config_.ranks});
    x = ReplaceRows(c, std::move(x), v.rows, prompt, v.tokens);
  }
  return x;
}

std::vector<int64_t> MultitaskPrompt::FileShape(const Parameter& p) const {
  const int64_t rows = p.value().rows(), columns = p.value().columns();
  if (&p == &parameters_[0]) return {rows, columns};
  return {config_.tasks, rows / config_.tasks, columns};
}

}  // namespace permafrost
