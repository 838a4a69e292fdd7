#include "peft/adapterhub_methods.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/check.h"

namespace permafrost {
namespace {

constexpr char kPrefix[] = "base_model.model.";

// ---- reading

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

absl::StatusOr<AdapterConfig> MethodOf(const HubLora& hub, const std::vector<int>& linears,
                                       const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(Targets targets, TargetsOf(linears, model));
  if (hub.rescale) {
    Ia3Config ia3;
    ia3.targets = std::move(targets);
    return ia3;
  }
  if (hub.gated) {
    return absl::InvalidArgumentError(
        "config: use_gating: expected false, found true, which is not implemented");
  }
  LoraConfig lora;
  lora.targets = std::move(targets);
  lora.rank = hub.rank;
  lora.alpha = hub.alpha;
  lora.dropout = hub.dropout;
  const auto fused = [&](int i) { return IsFused(model.linears()[static_cast<size_t>(i)]); };
  const auto parts = static_cast<int64_t>(HubThirds(hub).size());
  if (std::all_of(linears.begin(), linears.end(), fused)) {
    lora.rank *= parts;
    lora.alpha *= static_cast<double>(parts);
  } else if (std::any_of(linears.begin(), linears.end(), fused)) {
    lora.rank_pattern = {{"c_attn", hub.rank * parts}};
    lora.alpha_pattern = {{"c_attn", hub.alpha * static_cast<double>(parts)}};
  }
  return lora;
}
absl::StatusOr<AdapterConfig> MethodOf(const HubBottleneck&, const std::vector<int>&,
                                       const Model&) {
  return absl::InvalidArgumentError("config: a bottleneck adapter is not implemented");
}
absl::StatusOr<AdapterConfig> MethodOf(const HubPrefix&, const std::vector<int>&, const Model&) {
  return absl::InvalidArgumentError("config: architecture prefix_tuning is not implemented");
}

// ---- layout

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
    if (t.linear >= 0) {
      OfLora(t, std::get<HubLora>(config_.parts[t.part]), layout.parts);
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

// ---- writing

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

absl::StatusOr<HubLora> HubOf(const LoraConfig& config, const Lora& lora, const Model& model) {
  HubLora hub;
  hub.dropout = config.dropout;
  PERMAFROST_RETURN_IF_ERROR(SetPlaces(
      model, [&](const LinearPlace& p) { return lora.ScaleOf(p.index).has_value(); }, hub));
  std::vector<const Tensor*> fused;
  std::set<std::pair<int64_t, float>> plain_ranks, fused_ranks;  // with their scales
  for (const LinearPlace& place : model.linears()) {
    const std::optional<float> scale = lora.ScaleOf(place.index);
    if (!scale.has_value()) continue;
    const Tensor* b = Find(lora, absl::StrCat(kPrefix, place.module, ".lora_B.weight"));
    (IsFused(place) ? fused_ranks : plain_ranks).insert({b->columns(), *scale});
    if (IsFused(place)) fused.push_back(b);
  }
  int64_t parts = 1;  // LoRAs in one
  if (!fused.empty()) {
    for (const auto& thirds :
         std::vector<std::vector<int>>{{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}, {0, 1, 2}}) {
      if (!HasBlocks(fused, thirds)) continue;
      const auto has = [&](int third) {
        return std::find(thirds.begin(), thirds.end(), third) != thirds.end();
      };
      hub.query = has(0), hub.key = has(1), hub.value = has(2);
      parts = static_cast<int64_t>(thirds.size());
      break;
    }
  }
  std::set<std::pair<int64_t, float>> ranks = std::move(plain_ranks);
  for (const auto& [rank, scale] : fused_ranks) ranks.insert({rank / parts, scale});
  if (ranks.size() != 1) {
    return NoSuchConfig("a LoRA whose rank or alpha differs between its targets");
  }
  hub.rank = ranks.begin()->first;
  const double scale = ranks.begin()->second, rank = static_cast<double>(hub.rank);
  const bool plain = !config.rslora && config.rank_pattern.empty() && config.alpha_pattern.empty();
  hub.alpha = plain ? config.alpha / static_cast<double>(config.rank) * rank
                    : std::round(scale * rank * 1e6) / 1e6;
  if (static_cast<float>(hub.alpha / rank) != ranks.begin()->second) hub.alpha = scale * rank;
  return hub;
}

absl::StatusOr<HubLora> HubOf(const Ia3& ia3, const Model& model) {
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

}  // namespace

absl::StatusOr<AdapterConfig> MethodConfigOf(const AdapterHubConfig& config,
                                             const std::vector<HubTensor>& tensors,
                                             const Model& model) {
  if (config.parts.size() > 1) {
    return absl::InvalidArgumentError("config: architecture union is not implemented");
  }
  return std::visit([&](const auto& part) { return MethodOf(part, LinearsOf(tensors, 0), model); },
                    config.parts[0]);
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

absl::StatusOr<AdapterHubConfig> HubConfigOf(const Adapter& adapter, const Model& model) {
  AdapterHubConfig config;
  if (const auto* lora = std::get_if<LoraConfig>(&adapter.config)) {
    PERMAFROST_ASSIGN_OR_RETURN(HubLora part,
                                HubOf(*lora, static_cast<const Lora&>(*adapter.method), model));
    config.parts = {std::move(part)};
  } else if (std::holds_alternative<Ia3Config>(adapter.config)) {
    PERMAFROST_ASSIGN_OR_RETURN(HubLora part,
                                HubOf(static_cast<const Ia3&>(*adapter.method), model));
    config.parts = {std::move(part)};
  } else {
    return NoSuchConfig(MethodTitle(adapter.config));
  }
  return config;
}

}  // namespace permafrost
