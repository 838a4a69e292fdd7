#include "peft/lora.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/regex.h"

namespace permafrost {
namespace {

constexpr int64_t kMostRank = 65536;

// PEFT's rank_pattern and alpha_pattern: keys are regular expressions matched as (.*\.)?(key)$.
template <class V>
absl::StatusOr<V> FromPattern(const std::vector<std::pair<std::string, V>>& pattern,
                              const std::string& module, V fallback) {
  for (const auto& [key, value] : pattern) {
    PERMAFROST_ASSIGN_OR_RETURN(const bool match,
                                FullMatch(absl::StrCat("(.*\\.)?(", key, ")"), module));
    if (match) return value;
  }
  return fallback;
}

}  // namespace

std::vector<std::string> DefaultLoraTargets(const std::string& model_type) {
  if (model_type == "t5") return {"q", "v"};
  if (model_type == "gpt2") return {"c_attn"};
  return {"q_proj", "v_proj"};
}

absl::StatusOr<std::unique_ptr<Lora>> Lora::Create(int task, const LoraConfig& config,
                                                   const Model& model, Random& random) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> targets, MatchTargets(config.targets, model));
  auto lora = std::unique_ptr<Lora>(new Lora(task, config.gate));
  lora->pairs_.resize(model.linears().size());
  for (int index : targets) {
    const LinearPlace& place = model.linears()[static_cast<size_t>(index)];
    PERMAFROST_ASSIGN_OR_RETURN(const int64_t rank,
                                FromPattern(config.rank_pattern, place.module, config.rank));
    PERMAFROST_ASSIGN_OR_RETURN(const double alpha,
                                FromPattern(config.alpha_pattern, place.module, config.alpha));
    if (rank < 1 || rank > kMostRank) {
      return absl::InvalidArgumentError(absl::StrCat(
          "LoRA rank of ", place.module, ": expected 1 to ", kMostRank, ", found ", rank));
    }
    const double bound = 1 / std::sqrt(static_cast<double>(place.inputs));
    Tensor a = UniformTensor({rank, place.inputs}, bound, random);
    Tensor b = Tensor::Zeros({place.outputs, rank});
    const double r = static_cast<double>(rank);
    Pair pair{.a = lora->parameters_.size(),
              .b = lora->parameters_.size() + 1,
              .options = {.scale = static_cast<float>(alpha / (config.rslora ? std::sqrt(r) : r)),
                          .dropout = static_cast<float>(config.dropout),
                          .place = static_cast<uint32_t>(index)}};
    const std::string name = absl::StrCat("base_model.model.", place.module);
    lora->parameters_.Add(name + ".lora_A.weight", std::move(a));
    lora->parameters_.Add(name + ".lora_B.weight", std::move(b));
    if (config.gate.constant()) pair.options.scale = static_cast<float>(config.gate.value);
    if (config.gate.trained()) {
      pair.options.scale = 1;
      const bool fused = place.site.projection == Projection::kFusedQueryKeyValue;
      pair.gate.emplace(lora->parameters_, name + ".lora_gate", place.inputs,
                        fused ? config.fused_parts : 1, config.gate.kind, random);
    }
    lora->pairs_[static_cast<size_t>(index)] = pair;
  }
  return lora;
}

Var Lora::OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
                   const PlaceRows& rows) {
  std::optional<Pair>& pair = pairs_[static_cast<size_t>(place.index)];
  const std::vector<TaskSpan> own = Own(rows.spans);
  if (!pair.has_value() || own.empty()) return y;
  const Var gate = pair->gate.has_value() ? pair->gate->Of(c, x, rows, task_) : Var();
  return AddLowRank(c, std::move(y), x, parameters_[pair->a].var(), parameters_[pair->b].var(),
                    pair->options, own, gate);
}

std::vector<GateMean> Lora::TakeGateMeans() {
  std::vector<GateMean> means;
  for (std::optional<Pair>& pair : pairs_) {
    if (!pair.has_value() || !pair->gate.has_value()) continue;
    const std::vector<GateMean> own = pair->gate->TakeMeans();
    means.insert(means.end(), own.begin(), own.end());
  }
  return means;
}

std::optional<float> Lora::ScaleOf(int linear) const {
  const std::optional<Pair>& pair = pairs_[static_cast<size_t>(linear)];
  return pair.has_value() ? std::optional(pair->options.scale) : std::nullopt;
}

void Lora::MergeInto(const Model& model, std::vector<Tensor>& values) const {
  for (const LinearPlace& place : model.linears()) {
    const std::optional<Pair>& pair = pairs_[static_cast<size_t>(place.index)];
    if (!pair.has_value()) continue;
    const Tensor& a = parameters_[pair->a].value();
    const Tensor& b = parameters_[pair->b].value();
    const Tensor& w = values[static_cast<size_t>(place.weight)];
    for (int64_t n = 0; n < w.rows(); ++n) {
      for (int64_t k = 0; k < w.columns(); ++k) {
        double sum = 0;
        for (int64_t r = 0; r < a.rows(); ++r) {
          sum += static_cast<double>(b.row(n)[r]) * a.row(r)[k];
        }
        w.row(n)[k] += pair->options.scale * static_cast<float>(sum);
      }
    }
  }
}

}  // namespace permafrost
