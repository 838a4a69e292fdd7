#include "peft/adapterhub_methods.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/check.h"

namespace permafrost {
namespace {

constexpr char kPrefix[] = "base_model.model.";

constexpr std::pair<const char*, Activation> kActivations[] = {
    {"relu", Activation::kRelu},           {"gelu", Activation::kGeluErf},
    {"gelu_new", Activation::kGeluTanh},   {"gelu_pytorch_tanh", Activation::kGeluTanh},
    {"swish", Activation::kSilu},          {"silu", Activation::kSilu},
    {"tanh", Activation::kTanh},           {"leakyrelu", Activation::kLeakyRelu},
    {"leaky_relu", Activation::kLeakyRelu}};

std::vector<int> LinearsOf(const std::vector<HubTensor>& tensors, size_t part) {
  std::vector<int> linears;
  for (const HubTensor& t : tensors) {
    if (t.part == part && t.role == HubRole::kLoraB) linears.push_back(t.linear);
  }
  return linears;
}

// Targets that match just these linears: the ends of their names where that is possible, as PEFT's
// users write them, else their whole names.
absl::StatusOr<Targets> TargetsOf(const std::vector<int>& linears, const Model& model) {
  Targets targets;
  for (const size_t kept : {1, 2}) {
    std::set<std::string> ends;
    for (const int i : linears) {
      const std::vector<std::string> words =
          absl::StrSplit(model.linears()[static_cast<size_t>(i)].module, '.');
      const size_t from = words.size() - std::min(kept, words.size());
      ends.insert(
          absl::StrJoin(words.begin() + static_cast<std::ptrdiff_t>(from), words.end(), "."));
    }
    targets.modules.assign(ends.begin(), ends.end());
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> matched, MatchTargets(targets, model));
    if (matched == linears) return targets;
  }
  targets.modules.clear();
  for (const int i : linears) {
    targets.modules.push_back(model.linears()[static_cast<size_t>(i)].module);
  }
  return targets;
}

bool IsFused(const LinearPlace& place) {
  return place.site.projection == Projection::kFusedQueryKeyValue;
}

// The library pools a gate over the whole text, what a causal row does not see yet included.
GateConfig GateOf(bool gated) {
  GateConfig gate;
  if (gated) gate.kind = GateConfig::Kind::kWhole;
  return gate;
}

using Part = absl::StatusOr<PartConfig>;

Part MethodOf(const HubLora& hub, const std::vector<int>& linears, const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(Targets targets, TargetsOf(linears, model));
  if (hub.rescale) {
    Ia3Config ia3;
    ia3.targets = std::move(targets);
    return ia3;
  }
  LoraConfig lora;
  lora.targets = std::move(targets);
  lora.rank = hub.rank;
  lora.alpha = hub.alpha;
  lora.dropout = hub.dropout;
  lora.gate = GateOf(hub.gated);
  const auto fused = [&](int i) { return IsFused(model.linears()[static_cast<size_t>(i)]); };
  const auto parts = static_cast<int64_t>(HubThirds(hub).size());
  if (std::all_of(linears.begin(), linears.end(), fused)) {
    lora.rank *= parts;
    lora.alpha *= static_cast<double>(parts);
    lora.thirds = HubThirds(hub);
  } else if (std::any_of(linears.begin(), linears.end(), fused)) {
    lora.rank_pattern = {{"c_attn", hub.rank * parts}};
    lora.alpha_pattern = {{"c_attn", hub.alpha * static_cast<double>(parts)}};
    lora.thirds = HubThirds(hub);
  }
  return lora;
}

std::vector<int> Layers(const std::set<int64_t>& numbers) {
  std::vector<int> layers;
  for (const int64_t n : numbers) {
    if (n >= 0 && n <= std::numeric_limits<int>::max()) layers.push_back(static_cast<int>(n));
  }
  return layers;
}

Part MethodOf(const HubBottleneck& hub, const std::vector<int>&, const Model& model) {
  const int64_t width = model.info().width;
  BottleneckConfig b;
  b.width = hub.reduction.otherwise.has_value()
                ? HubBottleneckWidth(width, *hub.reduction.otherwise)
                : 1;  // of no layer
  for (const auto& [layer, factor] : hub.reduction.layers) {
    if (layer > std::numeric_limits<int>::max()) continue;
    b.layer_widths[static_cast<int>(layer)] = HubBottleneckWidth(width, factor);
  }
  b.after_attention = hub.self_attention;
  b.after_cross = hub.cross_attention;
  b.after_feed_forward = hub.feed_forward;
  b.parallel = hub.parallel;
  PERMAFROST_ASSIGN_OR_RETURN(b.activation, HubActivation(hub.activation));
  switch (hub.scaling) {
    case HubBottleneck::Scaling::kFixed:
      b.scale = hub.scale;
      break;
    case HubBottleneck::Scaling::kLearned:
      b.scaling = BottleneckConfig::Scaling::kLearned;
      break;
    case HubBottleneck::Scaling::kChannel:
      b.scaling = BottleneckConfig::Scaling::kChannel;
      break;
  }
  b.original_ln_before = hub.original_before;
  b.original_ln_after = hub.original_after;
  b.residual_before_ln = hub.residual_before_norm;
  b.adapter_residual_before_ln = hub.adapter_residual_before_norm;
  b.ln_before = hub.norm_before;
  b.ln_after = hub.norm_after;
  b.dropout = hub.dropout;
  b.gate = GateOf(hub.gated);
  b.leave_out = Layers(hub.leave_out);
  b.init = hub.init == "mam_adapter" ? BottleneckConfig::Init::kMam
           : hub.init == "houlsby"   ? BottleneckConfig::Init::kHoulsby
                                     : BottleneckConfig::Init::kBert;
  return b;
}

Part MethodOf(const HubPrefix& hub, const std::vector<int>&, const Model& model) {
  const ModelInfo& info = model.info();
  const bool t5 = info.encoder_decoder;
  for (const int64_t layer : hub.leave_out) {
    if (!t5 || layer < 0 || layer >= info.layers + info.decoder_layers) continue;
    // There the position bias is handed on from layer to layer: one of another key length loses it.
    return absl::InvalidArgumentError(absl::StrCat(
        "config: leave_out: expected no layer in a prefix of T5, found ", layer,
        "; without it the library drops T5's position bias in the layers behind it, which is not "
        "implemented"));
  }
  PrefixTuningConfig p;
  p.virtual_tokens = hub.length;
  p.encoder = t5 && hub.encoder;
  p.decoder = true;
  p.cross = t5 && hub.cross;
  p.projection = !hub.flat;
  p.projection_width = hub.bottleneck;
  p.embedding_width = info.width;
  if (!hub.flat) {
    PERMAFROST_ASSIGN_OR_RETURN(p.projection_activation, HubActivation(hub.activation));
  }
  p.dropout = hub.dropout;
  p.peft_layout = false;
  p.positions = t5 ? PrefixTuningConfig::Positions::kShifted : PrefixTuningConfig::Positions::kNone;
  p.text_after_prefix = false;
  p.gate = GateOf(hub.gated);
  p.gate.shared = hub.shared_gate;
  p.leave_out = Layers(hub.leave_out);
  return p;
}

class Layouts {
 public:
  Layouts(const AdapterHubConfig& config, const Method& method, const Model& model)
      : config_(config), method_(method), model_(model) {
    for (size_t i = 0; i < method.parameters().size(); ++i) {
      index_[method.parameters()[i].name()] = i;
    }
  }

  FileLayout Of(const HubTensor& t) const {
    FileLayout layout{t.name, t.shape, {}};
    const HubPart& part = config_.parts[t.part];
    if (const auto* lora = std::get_if<HubLora>(&part)) {
      OfLora(t, *lora, layout.parts);
    } else if (std::holds_alternative<HubBottleneck>(part)) {
      layout.parts.push_back(
          Whole(Index(absl::StrCat(SublayerName(t.site), ".", BottleneckTensor(t.role)))));
    } else {
      layout.parts.push_back(Whole(Index(PrefixTensor(t))));
    }
    int64_t count = 1, held = 0;
    for (const int64_t n : t.shape) count *= n;
    for (const FilePart& part : layout.parts) held += part.rows * part.columns;
    PERMAFROST_CHECK(held == count)
        << "HubLayout: " << t.name << " has " << count << " elements, its parameters " << held;
    return layout;
  }

 private:
  size_t Index(const std::string& name) const {
    const auto found = index_.find(name);
    PERMAFROST_CHECK(found != index_.end()) << "HubLayout: no parameter " << name;
    return found->second;
  }
  FilePart Whole(size_t parameter) const {
    const Tensor& value = method_.parameters()[parameter].value();
    return {parameter, 0, 0, value.rows(), value.columns()};
  }

  static const char* BottleneckTensor(HubRole role) {
    switch (role) {
      case HubRole::kDownWeight:
        return "adapter_down.weight";
      case HubRole::kDownBias:
        return "adapter_down.bias";
      case HubRole::kUpWeight:
        return "adapter_up.weight";
      case HubRole::kUpBias:
        return "adapter_up.bias";
      case HubRole::kNormBeforeWeight:
        return "adapter_norm_before.weight";
      case HubRole::kNormBeforeBias:
        return "adapter_norm_before.bias";
      case HubRole::kNormAfterWeight:
        return "adapter_norm_after.weight";
      case HubRole::kNormAfterBias:
        return "adapter_norm_after.bias";
      case HubRole::kScaling:
        return "scaling";
      case HubRole::kGateWeight:
        return "gate.weight";
      default:
        return "gate.bias";
    }
  }

  static std::string PrefixTensor(const HubTensor& t) {
    const char* group = t.site.sublayer == Sublayer::kCrossAttention ? "cross_prefix"
                        : t.site.stack == Stack::kEncoder            ? "encoder_prefix"
                                                                     : "self_prefix";
    switch (t.role) {
      case HubRole::kPrefixFlat:
        return group;
      case HubRole::kPrefixEmbedding:
        return absl::StrCat(group, ".embedding.weight");
      case HubRole::kPrefixHiddenWeight:
        return absl::StrCat(group, ".transform.0.weight");
      case HubRole::kPrefixHiddenBias:
        return absl::StrCat(group, ".transform.0.bias");
      case HubRole::kPrefixOutputWeight:
        return absl::StrCat(group, ".transform.2.weight");
      case HubRole::kPrefixOutputBias:
        return absl::StrCat(group, ".transform.2.bias");
      case HubRole::kGateWeight:
        return absl::StrCat(group, ".", t.site.layer, ".gate.weight");
      default:
        return absl::StrCat(group, ".", t.site.layer, ".gate.bias");
    }
  }

  void OfLora(const HubTensor& t, const HubLora& lora, std::vector<FilePart>& parts) const {
    const LinearPlace& place = model_.linears()[static_cast<size_t>(t.linear)];
    const std::string name = kPrefix + place.module;
    const std::vector<int> thirds = IsFused(place) ? HubThirds(lora) : std::vector<int>();
    const int64_t width = place.outputs / 3;  // of a third
    if (lora.rescale) {
      const size_t l = Index(name + ".ia3_l");
      if (thirds.empty()) parts.push_back(Whole(l));
      for (const int third : thirds) parts.push_back({l, 0, third * width, 1, width});
      return;
    }
    if (t.role == HubRole::kGateWeight || t.role == HubRole::kGateBias) {
      const bool weight = t.role == HubRole::kGateWeight;
      parts.push_back(Whole(Index(name + (weight ? ".lora_gate.weight" : ".lora_gate.bias"))));
      return;
    }
    const size_t a = Index(name + ".lora_A.weight"), b = Index(name + ".lora_B.weight");
    const int64_t rank = method_.parameters()[a].value().rows();
    // A LoRA over all of c_attn is three that repeat its A.
    const bool repeated = thirds.size() > 1 && rank == lora.rank;
    if (t.role == HubRole::kLoraA) {
      parts.assign(repeated ? thirds.size() : 1, Whole(a));
    } else if (thirds.empty() || repeated) {
      parts.push_back(Whole(b));
    } else {
      for (size_t j = 0; j < thirds.size(); ++j) {
        parts.push_back(
            {b, thirds[j] * width, static_cast<int64_t>(j) * lora.rank, width, lora.rank});
      }
    }
  }

  const AdapterHubConfig& config_;
  const Method& method_;
  const Model& model_;
  std::map<std::string, size_t> index_;
};

}  // namespace

absl::StatusOr<Activation> HubActivation(const std::string& name) {
  std::vector<std::string> known;
  for (const auto& [text, activation] : kActivations) {
    if (absl::EqualsIgnoreCase(name, text)) return activation;
    known.push_back(text);
  }
  return absl::InvalidArgumentError(absl::StrCat("config: non_linearity: expected ",
                                                 absl::StrJoin(known, ", "), ", found ", name));
}

std::string HubActivationName(Activation wanted) {
  for (const auto& [text, activation] : kActivations) {
    if (activation == wanted) return text;
  }
  PERMAFROST_CHECK(false) << "HubActivationName: an activation without a name";
  return "";
}

absl::StatusOr<AdapterConfig> MethodConfigOf(const AdapterHubConfig& config,
                                             const std::vector<HubTensor>& tensors,
                                             const Model& model) {
  UniPeltConfig all;
  for (size_t i = 0; i < config.parts.size(); ++i) {
    PERMAFROST_ASSIGN_OR_RETURN(
        PartConfig part,
        std::visit([&](const auto& p) { return MethodOf(p, LinearsOf(tensors, i), model); },
                   config.parts[i]));
    all.parts.push_back(std::move(part));
  }
  // PEFT's format has no place for a gate, which a union's has.
  const auto* lora = std::get_if<LoraConfig>(&all.parts[0]);
  if (all.parts.size() > 1 || (lora != nullptr && lora->gate.trained())) return all;
  return std::visit([](auto& part) { return AdapterConfig(std::move(part)); }, all.parts[0]);
}

std::vector<FileLayout> HubLayout(const AdapterHubConfig& config,
                                  const std::vector<HubTensor>& tensors, const Method& method,
                                  const Model& model) {
  const Layouts layouts(config, method, model);
  std::vector<FileLayout> result;
  result.reserve(tensors.size());
  for (const HubTensor& t : tensors) result.push_back(layouts.Of(t));
  return result;
}

}  // namespace permafrost
