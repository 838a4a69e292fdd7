#include "peft/bitfit.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/match.h"
#include "engine/check.h"
#include "peft/full.h"

namespace permafrost {

absl::StatusOr<std::unique_ptr<BitFit>> BitFit::Create(int task, const BitFitConfig& config,
                                                       const Model& model) {
  auto method = std::unique_ptr<BitFit>(new BitFit(task));
  method->new_bias_.assign(model.linears().size(), -1);
  const auto train = [&](TensorId id) {
    const std::string& name = model.tensors()[static_cast<size_t>(id)].name;
    method->copies_.AddVector(id, name, model, method->parameters_);
  };

  std::vector<int> linears(model.linears().size());
  std::iota(linears.begin(), linears.end(), 0);
  const bool named = !config.targets.modules.empty();
  if (named) {
    PERMAFROST_ASSIGN_OR_RETURN(linears, MatchTargets(config.targets, model));
  }
  for (const int index : linears) {
    const LinearPlace& place = model.linears()[static_cast<size_t>(index)];
    if (place.bias != kNoTensor) train(place.bias);
  }
  if (!named) {
    for (const TensorId id : NormTensors(model)) {
      if (absl::EndsWith(model.tensors()[static_cast<size_t>(id)].name, ".bias")) train(id);
    }
  }
  if (!named && method->parameters_.size() > 0) return method;
  for (const int index : linears) {
    const LinearPlace& place = model.linears()[static_cast<size_t>(index)];
    if (place.bias != kNoTensor) continue;
    method->new_bias_[static_cast<size_t>(index)] = static_cast<int>(method->parameters_.size());
    method->parameters_.Add(place.module + ".bias", Tensor::Zeros({1, place.outputs}));
    ++method->added_;
  }
  return method;
}

const Var* BitFit::Replacement(TensorId tensor, int task) const {
  return task == task_ ? copies_.Find(tensor) : nullptr;
}

Var BitFit::OnLinear(Context& c, const LinearPlace& place, const Var&, Var y,
                     const PlaceRows& rows) {
  const int index = new_bias_[static_cast<size_t>(place.index)];
  if (index < 0) return y;
  return AddSpanBias(c, std::move(y), parameters_[static_cast<size_t>(index)].var(), 1,
                     Own(rows.spans));
}

void BitFit::MergeInto(const Model&, std::vector<Tensor>& values) const {
  copies_.MergeInto(values);
}

}  // namespace permafrost
