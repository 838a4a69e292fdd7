#include "peft/p_tuning.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "peft/prompt_tuning.h"

namespace permafrost {
namespace {

// Parameters in order: E, then weight and bias of each linear.
constexpr size_t kLinears = 3;

}  // namespace

PTuning::PTuning(int task, const PTuningConfig& config, int64_t width, Random& random)
    : Method(task), virtual_tokens_(config.virtual_tokens) {
  const int64_t h = config.encoder_width > 0 ? config.encoder_width : width;
  parameters_.Add("embedding.weight", NormalTensor({virtual_tokens_, width}, 1, random));
  const int64_t sizes[kLinears + 1] = {width, h, h, width};
  for (size_t i = 0; i < kLinears; ++i) {
    // PEFT counts the ReLUs between the linears too.
    const std::string name = absl::StrCat("mlp_head.", 2 * i);
    const double bound = 1 / std::sqrt(static_cast<double>(sizes[i]));
    parameters_.Add(name + ".weight", UniformTensor({sizes[i + 1], sizes[i]}, bound, random));
    parameters_.Add(name + ".bias", UniformTensor({1, sizes[i + 1]}, bound, random));
  }
}

int64_t PTuning::VirtualTokens(int task) const { return task == task_ ? virtual_tokens_ : 0; }

Var PTuning::Encode(Context& c) const {
  Var x = parameters_[0].var();
  for (size_t i = 0; i < kLinears; ++i) {
    const Var &weight = parameters_[1 + 2 * i].var(), &bias = parameters_[2 + 2 * i].var();
    x = AddBias(c, MatMulTransposed(c, x, weight), bias);
    if (i + 1 < kLinears) x = Activate(c, Activation::kRelu, std::move(x));
  }
  return x;
}

Var PTuning::OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) {
  const StackRows& rows = stack == Stack::kEncoder ? batch.encoder : batch.decoder;
  for (const VirtualRows& v : rows.virtual_rows) {
    if (v.task == task_) x = ReplaceRows(c, std::move(x), v.rows, Encode(c), v.tokens);
  }
  return x;
}

std::vector<FileTensor> PTuning::FileTensors() const {
  Context c;
  const Tensor prompt = Encode(c).value();
  return {{kPromptTensor, {prompt.rows(), prompt.columns()}, prompt}};
}

}  // namespace permafrost
