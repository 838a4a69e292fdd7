#include "models/blocks.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"

namespace permafrost {

namespace {

// The linear at `place` with the base's weights, or those of `task`.
Var LinearOf(Context& c, const ForwardState& state, const LinearPlace& place, const Var& x,
             int task) {
  const BaseTensor& weight = state.model.tensors()[static_cast<size_t>(place.weight)];
  const bool has_bias = place.bias != kNoTensor;
  const Var* trained = state.hooks.Replacement(place.weight, task);
  const Var* trained_bias = has_bias ? state.hooks.Replacement(place.bias, task) : nullptr;
  const Tensor bias =
      has_bias ? state.model.tensors()[static_cast<size_t>(place.bias)].vector : Tensor();
  if (trained == nullptr && trained_bias == nullptr) return Linear(c, x, *weight.weight, bias);
  Var y = trained != nullptr ? MatMulTransposed(c, x, *trained) : Linear(c, x, *weight.weight);
  if (!has_bias) return y;
  return AddBias(c, std::move(y), trained_bias != nullptr ? *trained_bias : Var(bias));
}

}  // namespace

Var ApplyLinear(Context& c, const ForwardState& state, int index, const Var& input,
                const PlaceRows& rows) {
  const LinearPlace& place = state.model.linears()[static_cast<size_t>(index)];
  const Var x = state.hooks.OnLinearInput(c, place, input, rows);
  Var y = ByTask(c, state.hooks, {place.weight, place.bias}, x, rows.spans, place.outputs,
                 [&](Context& ctx, const Var& part, int task) {
                   return LinearOf(ctx, state, place, part, task);
                 });
  return state.hooks.OnLinear(c, place, x, std::move(y), rows);
}

Var BaseVector(const ForwardState& state, TensorId id, int task) {
  const Var* trained = state.hooks.Replacement(id, task);
  return trained != nullptr ? *trained : Var(state.model.tensors()[static_cast<size_t>(id)].vector);
}

bool IsReplaced(const Hooks& hooks, std::initializer_list<TensorId> tensors,
                absl::Span<const TaskSpan> spans) {
  return std::any_of(spans.begin(), spans.end(), [&](const TaskSpan& span) {
    return std::any_of(tensors.begin(), tensors.end(), [&](TensorId tensor) {
      return tensor != kNoTensor && hooks.Replacement(tensor, span.task) != nullptr;
    });
  });
}

Var ReplaceLookup(Context& c, const Hooks& hooks, TensorId table, Var x,
                  const std::vector<int32_t>& ids, absl::Span<const TaskSpan> spans) {
  for (const TaskSpan& span : spans) {
    const Var* trained = hooks.Replacement(table, span.task);
    if (trained == nullptr) continue;
    const Var rows = TakeRows(c, GatherRows(c, *trained, ids), {span});
    x = PutRows(c, std::move(x), rows, {span});
  }
  return x;
}

std::vector<AttentionPrefix> Prefixes(Context& c, const ForwardState& state, const SiteId& site,
                                      const Var& x, const PlaceRows& rows) {
  std::vector<Prefix> prefixes;
  state.hooks.OnAttention(c, site, x, rows, prefixes);
  std::vector<AttentionPrefix> result;
  for (const Prefix& p : prefixes) {
    AttentionPrefix prefix{p.keys, p.values, p.gate, p.biased, p.position, {}};
    // Without a bias positions do not matter, and the rows of a task are one piece of work.
    if (p.biased) {
      for (const Segment& s : rows.stack.rows.segments) {
        if (s.task == p.task && s.length > 0) {
          prefix.segments.push_back({s.begin, s.length, s.position});
        }
      }
    } else {
      for (const TaskSpan& s : rows.spans) {
        if (s.task == p.task) prefix.segments.push_back({s.begin, s.end - s.begin, 0});
      }
    }
    if (!prefix.segments.empty()) result.push_back(std::move(prefix));
  }
  return result;
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
