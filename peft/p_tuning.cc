#include "peft/p_tuning.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "peft/prompt_tuning.h"

namespace permafrost {
namespace {

// [part_0; part_1; ...] w^T with the parts side by side.
Var Product(Context& c, const std::vector<Var>& parts, const Var& w) {
  if (parts.size() == 1) return MatMulTransposed(c, parts[0], w);
  Var sum;
  int64_t begin = 0;
  for (const Var& part : parts) {
    Var term = MatMulTransposed(c, part, Columns(c, w, begin, part.columns()));
    sum = sum ? Add(c, std::move(sum), term) : std::move(term);
    begin += part.columns();
  }
  return sum;
}

}  // namespace

PTuning::PTuning(int task, const PTuningConfig& config, int64_t width, Random& random)
    : Method(task),
      virtual_tokens_(config.virtual_tokens),
      input_template_(config.input_template),
      lstm_layers_(config.encoder == PromptEncoder::kLstm ? config.encoder_layers : 0) {
  const int64_t h = config.encoder_width > 0 ? config.encoder_width : width;
  parameters_.Add("embedding.weight", NormalTensor({virtual_tokens_, width}, 1, random));
  if (lstm_layers_ > 0) AddLstm(width, h, random);
  const std::vector<int64_t> sizes = lstm_layers_ > 0 ? std::vector<int64_t>{2 * h, 2 * h, width}
                                                      : std::vector<int64_t>{width, h, h, width};
  for (size_t i = 0; i + 1 < sizes.size(); ++i) {
    // PEFT counts the ReLUs between the linears too.
    AddLinear(absl::StrCat("mlp_head.", 2 * i), sizes[i], sizes[i + 1],
              1 / std::sqrt(static_cast<double>(sizes[i])), random);
  }
}

void PTuning::AddLinear(const std::string& name, int64_t inputs, int64_t outputs, double bound,
                        Random& random) {
  parameters_.Add(name + ".weight", UniformTensor({outputs, inputs}, bound, random));
  parameters_.Add(name + ".bias", UniformTensor({1, outputs}, bound, random));
}

void PTuning::AddLstm(int64_t width, int64_t h, Random& random) {
  const double bound = 1 / std::sqrt(static_cast<double>(h));
  for (int64_t layer = 0; layer < lstm_layers_; ++layer) {
    const int64_t inputs = layer == 0 ? width : 2 * h;
    for (const char* direction : {"", "_reverse"}) {
      const auto add = [&](const char* name, Shape shape) {
        parameters_.Add(absl::StrCat("lstm_head.", name, "_l", layer, direction),
                        UniformTensor(shape, bound, random));
      };
      add("weight_ih", {4 * h, inputs});
      add("weight_hh", {4 * h, h});
      add("bias_ih", {1, 4 * h});
      add("bias_hh", {1, 4 * h});
    }
  }
}

std::vector<Var> PTuning::RunLstm(Context& c, size_t& next) const {
  std::vector<Var> x = {parameters_[0].var()};
  for (int64_t layer = 0; layer < lstm_layers_; ++layer) {
    std::vector<Var> outputs;
    for (const bool reverse : {false, true}) {
      Var gates = Product(c, x, parameters_[next].var());
      gates = AddBias(c, std::move(gates), parameters_[next + 2].var());
      gates = AddBias(c, std::move(gates), parameters_[next + 3].var());
      outputs.push_back(Lstm(c, gates, parameters_[next + 1].var(), reverse));
      next += 4;
    }
    x = std::move(outputs);
  }
  return x;
}

Var PTuning::Encode(Context& c) const {
  size_t next = 1;
  std::vector<Var> x = {parameters_[0].var()};
  if (lstm_layers_ > 0) x = RunLstm(c, next);
  for (; next < parameters_.size(); next += 2) {
    Var y = AddBias(c, Product(c, x, parameters_[next].var()), parameters_[next + 1].var());
    const bool last = next + 2 == parameters_.size();
    x = {last ? std::move(y) : Activate(c, Activation::kRelu, std::move(y))};
  }
  return x[0];
}

int64_t PTuning::VirtualTokens(int task) const {
  return task == task_ && input_template_.empty() ? virtual_tokens_ : 0;
}

int64_t PTuning::AnchoredTokens(int task) const {
  return task == task_ && !input_template_.empty() ? virtual_tokens_ : 0;
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
