#include "models/blocks.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"

namespace permafrost {

Var ApplyLinear(Context& c, const ForwardState& state, int index, const Var& input,
                absl::Span<const TaskSpan> spans) {
  const LinearPlace& place = state.model.linears()[static_cast<size_t>(index)];
  const Var x = state.hooks.OnLinearInput(c, place, input, spans);
  const BaseTensor& weight = state.model.tensors()[static_cast<size_t>(place.weight)];
  const bool has_bias = place.bias != kNoTensor;
  const Var* trained = state.hooks.Replacement(place.weight);
  const Var* trained_bias = has_bias ? state.hooks.Replacement(place.bias) : nullptr;
  const Tensor bias =
      has_bias ? state.model.tensors()[static_cast<size_t>(place.bias)].vector : Tensor();
  Var y;
  if (trained == nullptr && trained_bias == nullptr) {
    y = Linear(c, x, *weight.weight, bias);
  } else {
    y = trained != nullptr ? MatMulTransposed(c, x, *trained) : Linear(c, x, *weight.weight);
    if (has_bias) y = AddBias(c, std::move(y), trained_bias != nullptr ? *trained_bias : Var(bias));
  }
  return state.hooks.OnLinear(c, place, x, std::move(y), spans);
}

Var BaseVector(const ForwardState& state, TensorId id) {
  const Var* trained = state.hooks.Replacement(id);
  return trained != nullptr ? *trained : Var(state.model.tensors()[static_cast<size_t>(id)].vector);
}

std::pair<Var, Var> StoreKeyValue(Cache& cache, size_t layer, const Var& k, const Var& v) {
  for (int64_t i = 0; i < k.rows(); ++i) {
    const int32_t slot = cache.slots[static_cast<size_t>(i)];
    std::copy_n(k.value().row(i), k.columns(), cache.keys[layer].row(slot));
    std::copy_n(v.value().row(i), v.columns(), cache.values[layer].row(slot));
  }
  return {Var(cache.keys[layer]), Var(cache.values[layer])};
}

absl::StatusOr<Activation> ParseActivation(const std::string& name, const std::string& where) {
  static const std::map<std::string, Activation> kNames = {
      {"relu", Activation::kRelu},         {"gelu", Activation::kGeluErf},
      {"gelu_new", Activation::kGeluTanh}, {"gelu_pytorch_tanh", Activation::kGeluTanh},
      {"silu", Activation::kSilu},         {"swish", Activation::kSilu},
      {"tanh", Activation::kTanh}};
  const auto it = kNames.find(name);
  if (it == kNames.end()) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": expected relu, gelu, gelu_new, gelu_pytorch_tanh, silu or tanh, found ", name));
  }
  return it->second;
}

}  // namespace permafrost
