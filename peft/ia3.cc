#include "peft/ia3.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/regex.h"

namespace permafrost {

std::vector<std::string> DefaultIa3Targets(const std::string& model_type) {
  if (model_type == "t5") return {"k", "v", "wo"};
  if (model_type == "gpt2") return {"c_attn", "mlp.c_proj"};
  if (model_type == "qwen2") return {"q_proj", "v_proj", "down_proj"};
  return {"k_proj", "v_proj", "down_proj"};
}

std::vector<std::string> DefaultIa3Feedforward(const std::string& model_type) {
  if (model_type == "t5") return {"wo"};
  if (model_type == "gpt2") return {"mlp.c_proj"};
  return {"down_proj"};
}

Ia3Config DefaultIa3Config(const std::string& model_type, std::vector<std::string> targets) {
  Ia3Config config;
  config.targets.modules = targets.empty() ? DefaultIa3Targets(model_type) : std::move(targets);
  const std::vector<std::string>& modules = config.targets.modules;
  for (const std::string& name : DefaultIa3Feedforward(model_type)) {
    const bool named = std::find(modules.begin(), modules.end(), name) != modules.end();
    if (named || modules[0] == "all-linear") config.feedforward.push_back(name);
  }
  return config;
}

absl::StatusOr<std::unique_ptr<Ia3>> Ia3::Create(int task, const Ia3Config& config,
                                                 const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> targets, MatchTargets(config.targets, model));
  auto ia3 = std::unique_ptr<Ia3>(new Ia3(task));
  ia3->scales_.resize(model.linears().size());
  for (int index : targets) {
    const LinearPlace& place = model.linears()[static_cast<size_t>(index)];
    bool input = false;
    for (const std::string& name : config.feedforward) {
      bool match = absl::EndsWith(place.module, name);  // at any place, as in PEFT
      if (config.feedforward_is_regex) {
        PERMAFROST_ASSIGN_OR_RETURN(match, FullMatch(name, place.module));
      }
      input = input || match;
    }
    ia3->scales_[static_cast<size_t>(index)] = Scale{ia3->parameters_.size(), input};
    const Tensor ones({1, input ? place.inputs : place.outputs});
    std::fill_n(ones.f32(), ones.count(), 1.0f);
    ia3->parameters_.Add(absl::StrCat("base_model.model.", place.module, ".ia3_l"), ones);
  }
  return ia3;
}

Var Ia3::OnLinearInput(Context& c, const LinearPlace& place, Var x, const PlaceRows& rows) {
  const std::optional<Scale>& scale = scales_[static_cast<size_t>(place.index)];
  if (!scale.has_value() || !scale->input) return x;
  return ScaleColumns(c, std::move(x), parameters_[scale->vector].var(), Own(rows.spans));
}

Var Ia3::OnLinear(Context& c, const LinearPlace& place, const Var&, Var y, const PlaceRows& rows) {
  const std::optional<Scale>& scale = scales_[static_cast<size_t>(place.index)];
  if (!scale.has_value() || scale->input) return y;
  return ScaleColumns(c, std::move(y), parameters_[scale->vector].var(), Own(rows.spans));
}

std::vector<int64_t> Ia3::FileShape(const Parameter& p) const {
  for (const std::optional<Scale>& scale : scales_) {
    if (scale.has_value() && &parameters_[scale->vector] == &p && !scale->input) {
      return {p.count(), 1};
    }
  }
  return {1, p.count()};
}

void Ia3::MergeInto(const Model& model, std::vector<Tensor>& values) const {
  for (const LinearPlace& place : model.linears()) {
    const std::optional<Scale>& scale = scales_[static_cast<size_t>(place.index)];
    if (!scale.has_value()) continue;
    const float* l = parameters_[scale->vector].value().f32();
    const Tensor& w = values[static_cast<size_t>(place.weight)];
    for (int64_t n = 0; n < w.rows(); ++n) {
      for (int64_t k = 0; k < w.columns(); ++k) w.row(n)[k] *= l[scale->input ? k : n];
    }
    if (scale->input || place.bias == kNoTensor) continue;
    const Tensor& bias = values[static_cast<size_t>(place.bias)];
    for (int64_t n = 0; n < bias.columns(); ++n) bias.f32()[n] *= l[n];
  }
}

}  // namespace permafrost
