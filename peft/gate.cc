#include "peft/gate.h"

#include "absl/strings/str_cat.h"
#include "engine/random_tensor.h"

namespace permafrost {

Gate::Gate(ParameterList& list, const std::string& name, int64_t width, int64_t outputs,
           GateConfig::Kind kind, Random& random)
    : list_(&list),
      weight_(list.size()),
      kind_(kind),
      name_(name),
      sums_(static_cast<size_t>(outputs)) {
  constexpr double kDeviation = 0.02;
  list.Add(name + ".weight", NormalTensor({outputs, width}, kDeviation, random));
  list.Add(name + ".bias", Tensor::Zeros({1, outputs}));
}

Var Gate::Of(Context& c, const Var& x, const PlaceRows& rows, int task) {
  const Var logits =
      AddBias(c, MatMulTransposed(c, x, (*list_)[weight_].var()), (*list_)[weight_ + 1].var());
  const bool whole = rows.bidirectional || kind_ == GateConfig::Kind::kWhole;
  Var gates;
  if (rows.cache != nullptr && !whole) {
    Tensor& table = rows.cache->sums[&(*list_)[weight_]];
    if (!table) table = Tensor({rows.cache->keys[0].rows(), 1 + logits.columns()});
    const RunningSums earlier{table, rows.cache->slots, rows.cache->previous};
    gates = PooledGate(c, logits, rows.stack.pooling, MeanOver::kRunning, &earlier);
  } else {
    gates =
        PooledGate(c, logits, rows.stack.pooling, whole ? MeanOver::kWhole : MeanOver::kRunning);
  }
  if (c.training) return gates;
  for (const TaskSpan& span : rows.spans) {
    if (span.task != task) continue;
    for (int64_t i = span.begin; i < span.end; ++i) {
      for (size_t j = 0; j < sums_.size(); ++j) {
        sums_[j] += static_cast<double>(gates.value().row(i)[j]);
      }
    }
    rows_ += span.end - span.begin;
  }
  return gates;
}

void Gate::TakeMeans(std::vector<GateMean>& means) {
  for (size_t j = 0; j < sums_.size() && rows_ > 0; ++j) {
    const std::string name = sums_.size() == 1 ? name_ : absl::StrCat(name_, ".", j);
    means.push_back({name, sums_[j] / static_cast<double>(rows_)});
    sums_[j] = 0;
  }
  rows_ = 0;
}

}  // namespace permafrost
