// The writing half of adapterhub_methods.h.
#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "peft/adapterhub_methods.h"

namespace permafrost {
namespace {

constexpr char kPrefix[] = "base_model.model.";

bool IsFused(const LinearPlace& place) {
  return place.site.projection == Projection::kFusedQueryKeyValue;
}

const Tensor* Find(const Method& method, const std::string& name) {
  for (const Parameter& p : method.parameters()) {
    if (p.name() == name) return &p.value();
  }
  return nullptr;
}

absl::Status NoSuchConfig(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("AdapterHub has no config for ", what));
}

// Sets the fields that name the linears for which `adapted` holds; GPT-2's thirds are the caller's
// to choose, q, k and v if it does not.
template <class F>
absl::Status SetPlaces(const Model& model, F adapted, HubLora& hub) {
  const ModelInfo& info = model.info();
  hub.query = hub.key = hub.value = false;
  std::set<int64_t> without, with;
  for (const LinearPlace& place : model.linears()) {
    const int64_t layer = HubLayerNumber(place.site, info);
    if (!adapted(place)) {
      without.insert(layer);
      continue;
    }
    with.insert(layer);
    if (IsFused(place)) {
      hub.query = hub.key = hub.value = true;
    } else if (bool HubLora::*field = HubField(place, info); field != nullptr) {
      hub.*field = true;
    } else {
      return NoSuchConfig(absl::StrCat("an adapter of ", place.module));
    }
  }
  for (const int64_t layer : without) {
    if (!with.contains(layer)) hub.leave_out.insert(layer);
  }
  for (const LinearPlace& place : model.linears()) {
    if (HubAdapts(hub, place, info) == adapted(place)) continue;
    return NoSuchConfig(absl::StrCat(
        "these targets: it adapts the same linears in every layer that it adapts at all, but ",
        place.module, " differs"));
  }
  return absl::OkStatus();
}

// Whether B [3 d, n r] of every c_attn has rows of `thirds` only, third j in columns j r to (j + 1)
// r.
bool HasBlocks(const std::vector<const Tensor*>& bs, const std::vector<int>& thirds) {
  const auto n = static_cast<int64_t>(thirds.size());
  bool any = false;
  for (const Tensor* b : bs) {
    if (b->columns() % n != 0) return false;
    const int64_t rank = b->columns() / n, width = b->rows() / 3;
    for (int64_t i = 0; i < b->rows(); ++i) {
      for (int64_t j = 0; j < b->columns(); ++j) {
        if (b->row(i)[j] == 0) continue;
        any = true;
        if (i / width != thirds[static_cast<size_t>(j / rank)]) return false;
      }
    }
  }
  return any;
}

// The thirds of c_attn that a LoRA acts on, each in blocks of its own if any form fits; all of them
// if none does.
std::vector<int> ThirdsOf(const std::vector<const Tensor*>& bs) {
  for (const auto& thirds : std::vector<std::vector<int>>{{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}}) {
    if (HasBlocks(bs, thirds)) return thirds;
  }
  return {0, 1, 2};
}

// Whether a gate is AdapterHub's, or none.
absl::StatusOr<bool> IsGated(const GateConfig& gate) {
  if (gate.kind != GateConfig::Kind::kRunning) return gate.kind == GateConfig::Kind::kWhole;
  return NoSuchConfig("a gate whose mean runs: its gates are means over the whole text");
}

using HubPartOr = absl::StatusOr<HubPart>;

HubPartOr HubOf(const LoraConfig& config, const Method& method, const Model& model) {
  const Lora& lora = static_cast<const Lora&>(method);
  HubLora hub;
  hub.dropout = config.dropout;
  PERMAFROST_ASSIGN_OR_RETURN(hub.gated, IsGated(config.gate));
  PERMAFROST_RETURN_IF_ERROR(SetPlaces(
      model, [&](const LinearPlace& p) { return lora.ScaleOf(p.index).has_value(); }, hub));
  std::vector<const Tensor*> fused;
  std::set<std::pair<int64_t, float>> ranks, fused_ranks;  // with their scales
  for (const LinearPlace& place : model.linears()) {
    const std::optional<float> scale = lora.ScaleOf(place.index);
    if (!scale.has_value()) continue;
    const Tensor* b = Find(lora, absl::StrCat(kPrefix, place.module, ".lora_B.weight"));
    (IsFused(place) ? fused_ranks : ranks).insert({b->columns(), *scale});
    if (IsFused(place)) fused.push_back(b);
  }
  int64_t parts = 1;  // LoRAs in one
  if (!fused.empty()) {
    const std::vector<int> thirds = config.thirds.empty() ? ThirdsOf(fused) : config.thirds;
    const auto has = [&](int third) {
      return std::find(thirds.begin(), thirds.end(), third) != thirds.end();
    };
    hub.query = has(0), hub.key = has(1), hub.value = has(2);
    // A LoRA over all of them is three that repeat its A; it has one gate.
    if (HasBlocks(fused, thirds) || !config.thirds.empty()) {
      parts = static_cast<int64_t>(thirds.size());
    } else if (hub.gated) {
      return NoSuchConfig("one gate for the LoRA of q, k and v");
    }
  }
  for (const auto& [rank, scale] : fused_ranks) ranks.insert({rank / parts, scale});
  if (ranks.size() != 1) {
    return NoSuchConfig("a LoRA whose rank or alpha differs between its targets");
  }
  hub.rank = ranks.begin()->first;
  const float scale = ranks.begin()->second;
  const double rank = static_cast<double>(hub.rank);
  // The alpha of the config where it is one, without the rounding of its quotient.
  hub.alpha = config.alpha / static_cast<double>(config.rank) * rank;
  if (static_cast<float>(hub.alpha / rank) != scale) hub.alpha = static_cast<double>(scale) * rank;
  if (hub.gated) hub.alpha = rank;
  return hub;
}

HubPartOr HubOf(const BottleneckConfig& b, const Method&, const Model& model) {
  const ModelInfo& info = model.info();
  constexpr int64_t kReduction = 16;
  const int64_t width = b.width > 0 ? b.width : std::max<int64_t>(1, info.width / kReduction);
  HubBottleneck hub;
  hub.self_attention = b.after_attention;
  hub.cross_attention = b.after_cross;
  hub.feed_forward = b.after_feed_forward;
  hub.reduction.otherwise = HubReductionFactor(info.width, width);
  for (const auto& [layer, own] : b.layer_widths) {
    hub.reduction.layers[layer] = HubReductionFactor(info.width, own);
  }
  hub.activation = HubActivationName(b.activation);
  hub.parallel = b.parallel;
  hub.scaling = b.scaling == BottleneckConfig::Scaling::kLearned ? HubBottleneck::Scaling::kLearned
                : b.scaling == BottleneckConfig::Scaling::kChannel
                    ? HubBottleneck::Scaling::kChannel
                    : HubBottleneck::Scaling::kFixed;
  hub.scale = b.scaling == BottleneckConfig::Scaling::kFixed ? b.scale : 1;
  PERMAFROST_ASSIGN_OR_RETURN(hub.gated, IsGated(b.gate));
  if (b.gate.constant()) {
    if (hub.scaling != HubBottleneck::Scaling::kFixed) {
      return NoSuchConfig("a constant gate beside a trained scale");
    }
    hub.scale *= b.gate.value;
  }
  hub.original_before = b.original_ln_before;
  hub.original_after = b.original_ln_after;
  if (info.model_type == "qwen2" && !b.original_ln_after) {
    return NoSuchConfig("original_ln_after false on qwen2");
  }
  hub.residual_before_norm = b.residual_before_ln;
  hub.adapter_residual_before_norm = b.adapter_residual_before_ln;
  hub.norm_before = b.ln_before;
  hub.norm_after = b.ln_after;
  hub.dropout = b.dropout;
  hub.leave_out.insert(b.leave_out.begin(), b.leave_out.end());
  hub.init = b.init == BottleneckConfig::Init::kMam       ? "mam_adapter"
             : b.init == BottleneckConfig::Init::kHoulsby ? "houlsby"
                                                          : "bert";
  return hub;
}

HubPartOr HubOf(const PrefixTuningConfig& p, const Method&, const Model& model) {
  const bool t5 = model.info().encoder_decoder;
  if (!p.decoder) return NoSuchConfig("prefixes that leave out the decoder's self-attention");
  if (!t5 && p.text_after_prefix) {
    return NoSuchConfig("a text that starts behind the prefix: its text starts at position 0");
  }
  if (t5 && (p.peft_layout || p.positions != PrefixTuningConfig::Positions::kShifted)) {
    return NoSuchConfig(
        "a T5 prefix that leaves the text's relative positions alone: it counts the text's keys "
        "behind the prefix and the queries without it");
  }
  if (p.gate.constant()) return NoSuchConfig("a prefix with a constant gate");
  HubPrefix hub;
  hub.encoder = p.encoder || !t5;
  hub.cross = p.cross || !t5;
  hub.flat = !p.projection;
  hub.length = p.virtual_tokens;
  if (p.projection) {
    hub.bottleneck = p.projection_width > 0 ? p.projection_width
                                            : model.info().key_heads * model.info().head_size;
    hub.activation = HubActivationName(p.projection_activation);
    if (p.embedding_width != model.info().width) {
      return NoSuchConfig("a prefix network whose embedding has another width than the base");
    }
  }
  hub.dropout = p.dropout;
  PERMAFROST_ASSIGN_OR_RETURN(hub.gated, IsGated(p.gate));
  hub.shared_gate = p.gate.shared;
  hub.leave_out.insert(p.leave_out.begin(), p.leave_out.end());
  return hub;
}

HubPartOr HubOf(const Ia3Config&, const Method& method, const Model& model) {
  const Ia3& ia3 = static_cast<const Ia3&>(method);
  HubLora hub;
  hub.rescale = true;
  hub.rank = 1, hub.alpha = 1;
  hub.init = "ia3";
  bool query_rests = true;  // in every c_attn
  for (const Parameter& p : ia3.parameters()) {
    if (ia3.FileShape(p)[1] != 1) {
      return NoSuchConfig(
          absl::StrCat("IA3 on a linear's input (", p.name(), "): it rescales outputs only"));
    }
  }
  const auto vector = [&](const LinearPlace& place) {
    return Find(ia3, absl::StrCat(kPrefix, place.module, ".ia3_l"));
  };
  PERMAFROST_RETURN_IF_ERROR(SetPlaces(
      model, [&](const LinearPlace& p) { return vector(p) != nullptr; }, hub));
  for (const LinearPlace& place : model.linears()) {
    const Tensor* l = vector(place);
    if (l == nullptr || !IsFused(place)) continue;
    query_rests = query_rests && std::all_of(l->f32(), l->f32() + place.outputs / 3,
                                             [](float value) { return value == 1; });
    hub.query = !query_rests;
  }
  return hub;
}

HubPartOr HubOf(const BitFitConfig&, const Method&, const Model&) { return NoSuchConfig("BitFit"); }

}  // namespace

absl::StatusOr<AdapterHubConfig> HubConfigOf(const Adapter& adapter, const Model& model) {
  AdapterHubConfig config;
  if (const auto* all = std::get_if<UniPeltConfig>(&adapter.config)) {
    const auto& methods = static_cast<const UniPelt&>(*adapter.method).parts();
    for (size_t i = 0; i < all->parts.size(); ++i) {
      PERMAFROST_ASSIGN_OR_RETURN(
          HubPart part, std::visit([&](const auto& own) { return HubOf(own, *methods[i], model); },
                                   all->parts[i]));
      config.parts.push_back(std::move(part));
    }
    return config;
  }
  PERMAFROST_ASSIGN_OR_RETURN(HubPart part,
                              std::visit(
                                  [&](const auto& own) -> HubPartOr {
                                    using Own = std::decay_t<decltype(own)>;
                                    if constexpr (std::is_constructible_v<PartConfig, Own>) {
                                      return HubOf(own, *adapter.method, model);
                                    } else {
                                      return NoSuchConfig(MethodTitle(adapter.config));
                                    }
                                  },
                                  adapter.config));
  config.parts.push_back(std::move(part));
  return config;
}

}  // namespace permafrost
