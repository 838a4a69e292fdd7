#include "peft/adapterhub_tensors.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "io/safetensors.h"
#include "kernels/elementwise.h"

namespace permafrost {
namespace {

// What the library calls the places of a base.
class Names {
 public:
  Names(const ModelInfo& info, std::string adapter) : info_(info), adapter_(std::move(adapter)) {}

  // The module that an adapter's modules of `kind` hang in: "….loras.NAME."
  std::string Own(const std::string& module, const char* kind) const {
    return absl::StrCat(module, ".", kind, ".", adapter_, ".");
  }

  std::string Bottleneck(const SiteId& site) const {
    if (t5()) return Own(Sublayer(site), "adapters");
    const bool attention = site.sublayer != permafrost::Sublayer::kFeedForward;
    return Own(absl::StrCat(Block(site), attention ? ".attention_adapters" : ".output_adapters"),
               "adapters");
  }
  std::string Attention(const SiteId& site) const {
    if (!t5()) return absl::StrCat(Block(site), gpt2() ? ".attn" : ".self_attn");
    const bool cross = site.sublayer == permafrost::Sublayer::kCrossAttention;
    return absl::StrCat(Sublayer(site), cross ? ".EncDecAttention" : ".SelfAttention");
  }
  // Of the tables that all attentions share.
  std::string PrefixPool() const {
    return t5() ? "prefix_tuning" : gpt2() ? "transformer.prefix_tuning" : "model.prefix_tuning";
  }

 private:
  bool t5() const { return info_.encoder_decoder; }
  bool gpt2() const { return info_.model_type == "gpt2"; }
  std::string Block(const SiteId& site) const {
    if (!t5()) return absl::StrCat(gpt2() ? "transformer.h." : "model.layers.", site.layer);
    const bool decoder = site.stack == Stack::kDecoder;
    return absl::StrCat(decoder ? "decoder" : "encoder", ".block.", site.layer);
  }
  // T5 numbers a block's sublayers.
  std::string Sublayer(const SiteId& site) const {
    int number = 0;
    if (site.sublayer == permafrost::Sublayer::kCrossAttention) number = 1;
    if (site.sublayer == permafrost::Sublayer::kFeedForward) {
      number = site.stack == Stack::kDecoder ? 2 : 1;
    }
    return absl::StrCat(Block(site), ".layer.", number);
  }

  const ModelInfo& info_;
  std::string adapter_;
};

struct StackLayers {
  Stack stack;
  int64_t layers;
  int64_t first;  // the library's number of layer 0
};
std::vector<StackLayers> StacksOf(const ModelInfo& info) {
  if (!info.encoder_decoder) return {{Stack::kDecoder, info.layers, 0}};
  return {{Stack::kEncoder, info.layers, 0}, {Stack::kDecoder, info.decoder_layers, info.layers}};
}

using Tensors = std::vector<HubTensor>;

// Adds the tensors of one part.
struct Adder {
  const ModelInfo& info;
  const Names& names;
  size_t part;
  Tensors& out;

  HubTensor& Add(const SiteId& site, HubRole role, std::string name, std::vector<int64_t> shape,
                 int linear = -1) const {
    out.push_back({.name = std::move(name),
                   .role = role,
                   .shape = std::move(shape),
                   .part = part,
                   .site = site,
                   .linear = linear,
                   .copies = {}});
    return out.back();
  }
  void AddGate(const SiteId& site, const std::string& prefix, int64_t gates, int64_t inputs,
               int linear = -1) const {
    Add(site, HubRole::kGateWeight, prefix + "weight", {gates, inputs}, linear);
    Add(site, HubRole::kGateBias, prefix + "bias", {gates}, linear);
  }
};

void AddBottleneckAt(const SiteId& site, const HubBottleneck& b, int64_t bottleneck,
                     const Adder& to) {
  const std::string p = to.names.Bottleneck(site);
  const int64_t d = to.info.width;
  if (b.norm_before) {  // the first module of the down projection as well
    to.Add(site, HubRole::kNormBeforeWeight, p + "adapter_norm_before.weight", {d})
        .copies.push_back(p + "adapter_down.0.weight");
    to.Add(site, HubRole::kNormBeforeBias, p + "adapter_norm_before.bias", {d})
        .copies.push_back(p + "adapter_down.0.bias");
  }
  const std::string down = absl::StrCat(p, "adapter_down.", b.norm_before ? 1 : 0);
  to.Add(site, HubRole::kDownWeight, down + ".weight", {bottleneck, d});
  to.Add(site, HubRole::kDownBias, down + ".bias", {bottleneck});
  to.Add(site, HubRole::kUpWeight, p + "adapter_up.weight", {d, bottleneck});
  to.Add(site, HubRole::kUpBias, p + "adapter_up.bias", {d});
  if (b.scaling != HubBottleneck::Scaling::kFixed) {
    const bool channel = b.scaling == HubBottleneck::Scaling::kChannel;
    to.Add(site, HubRole::kScaling, p + "scaling", {channel ? d : 1});
  }
  if (b.norm_after) {
    to.Add(site, HubRole::kNormAfterWeight, p + "adapter_norm_after.weight", {d});
    to.Add(site, HubRole::kNormAfterBias, p + "adapter_norm_after.bias", {d});
  }
  if (b.gated) to.AddGate(site, p + "gate.", 1, d);
}

absl::Status AddPart(const HubBottleneck& b, const Model&, const Adder& to) {
  for (const StackLayers& s : StacksOf(to.info)) {
    for (int i = 0; i < s.layers; ++i) {
      if (b.leave_out.contains(s.first + i)) continue;
      const bool cross = b.cross_attention && to.info.encoder_decoder && s.stack == Stack::kDecoder;
      for (const auto& [wanted, sublayer] : {std::pair(b.self_attention, Sublayer::kSelfAttention),
                                             std::pair(cross, Sublayer::kCrossAttention),
                                             std::pair(b.feed_forward, Sublayer::kFeedForward)}) {
        if (!wanted) continue;
        const std::optional<double> factor = b.reduction.FactorOf(s.first + i);
        if (!factor.has_value()) {
          return absl::InvalidArgumentError(
              absl::StrCat("reduction_factor: expected a value for layer ", s.first + i,
                           " or \"default\", found neither"));
        }
        AddBottleneckAt({s.stack, i, sublayer, Projection::kQuery}, b,
                        HubBottleneckWidth(to.info.width, *factor), to);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status AddPart(const HubLora& lora, const Model& model, const Adder& to) {
  for (const LinearPlace& place : model.linears()) {
    if (!HubAdapts(lora, place, to.info)) continue;
    const std::string p = to.names.Own(place.module, "loras");
    const bool fused = place.site.projection == Projection::kFusedQueryKeyValue;
    const int64_t n = fused ? static_cast<int64_t>(HubThirds(lora).size()) : 1;
    const int64_t outputs = fused ? n * (place.outputs / 3) : place.outputs;
    if (!lora.rescale) {
      to.Add(place.site, HubRole::kLoraA, p + "lora_A", {n * lora.rank, place.inputs}, place.index);
    }
    to.Add(place.site, HubRole::kLoraB, p + "lora_B", {outputs, lora.rank}, place.index);
    if (lora.gated) to.AddGate(place.site, p + "gate.", n, place.inputs, place.index);
  }
  return absl::OkStatus();
}

struct PrefixGroup {
  const char* name;
  Stack stack;
  Sublayer sublayer;
};
std::vector<PrefixGroup> GroupsOf(const HubPrefix& prefix, const ModelInfo& info) {
  std::vector<PrefixGroup> groups;
  if (info.encoder_decoder && prefix.encoder) {
    groups.push_back({"encoder_prefix", Stack::kEncoder, Sublayer::kSelfAttention});
  }
  groups.push_back({"self_prefix", Stack::kDecoder, Sublayer::kSelfAttention});
  if (info.encoder_decoder && prefix.cross) {
    groups.push_back({"cross_prefix", Stack::kDecoder, Sublayer::kCrossAttention});
  }
  return groups;
}

absl::Status CheckPrefixBase(const ModelInfo& info) {
  if (info.model_type == "qwen2") {
    return absl::InvalidArgumentError("prefix_tuning: AdapterHub has no prefixes for qwen2");
  }
  if (info.encoder_decoder || info.head_size * info.heads == info.width) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("prefix_tuning: AdapterHub takes heads of width / heads: expected ",
                   info.width / info.heads, ", found head_dim ", info.head_size, " in this base"));
}

void AddPrefixTable(const PrefixGroup& group, int64_t layers, const HubPrefix& prefix,
                    const Adder& to) {
  const ModelInfo& info = to.info;
  const SiteId site{group.stack, 0, group.sublayer, Projection::kQuery};
  const int64_t row = layers * 2 * info.key_heads * info.head_size;
  const std::string base =
      absl::StrCat(to.names.Own(to.names.PrefixPool(), "prefix_tunings"), group.name, ".");
  const std::string p = base + "control_trans";
  const size_t first = to.out.size();
  if (prefix.flat) {
    to.Add(site, HubRole::kPrefixFlat, p, {prefix.length * row});
  } else {
    const int64_t m = prefix.bottleneck;
    to.Add(site, HubRole::kPrefixEmbedding, base + "wte.weight", {prefix.length, info.width});
    to.Add(site, HubRole::kPrefixHiddenWeight, p + ".0.weight", {m, info.width});
    to.Add(site, HubRole::kPrefixHiddenBias, p + ".0.bias", {m});
    to.Add(site, HubRole::kPrefixOutputWeight, p + ".2.weight", {row, m});
    to.Add(site, HubRole::kPrefixOutputBias, p + ".2.bias", {row});
  }
  // A pickle holds every table under each attention that could read one, those that were left out
  // as well.
  const size_t pool = to.names.PrefixPool().size();
  for (size_t t = first; t < to.out.size(); ++t) {
    const std::string rest = to.out[t].name.substr(pool);
    for (const StackLayers& s : StacksOf(info)) {
      for (int i = 0; i < s.layers; ++i) {
        for (const Sublayer sublayer : {Sublayer::kSelfAttention, Sublayer::kCrossAttention}) {
          if (sublayer == Sublayer::kCrossAttention &&
              !(info.encoder_decoder && s.stack == Stack::kDecoder)) {
            continue;
          }
          to.out[t].copies.push_back(
              absl::StrCat(to.names.Attention({s.stack, i, sublayer, Projection::kQuery}),
                           ".prefix_tuning.pool", rest));
        }
      }
    }
  }
}

absl::Status AddPart(const HubPrefix& prefix, const Model&, const Adder& to) {
  PERMAFROST_RETURN_IF_ERROR(CheckPrefixBase(to.info));
  for (const PrefixGroup& group : GroupsOf(prefix, to.info)) {
    const std::vector<int> layers = HubPrefixLayers(prefix, group.stack, to.info);
    if (layers.empty()) continue;
    AddPrefixTable(group, static_cast<int64_t>(layers.size()), prefix, to);
    if (!prefix.gated) continue;
    for (const int layer : layers) {
      const SiteId site{group.stack, layer, group.sublayer, Projection::kQuery};
      to.AddGate(site, to.names.Own(to.names.Attention(site) + ".prefix_tuning", "prefix_gates"),
                 prefix.shared_gate ? 1 : 2, to.info.width);
    }
  }
  return absl::OkStatus();
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

Shape MatrixShape(const std::vector<int64_t>& shape) {
  return shape.size() == 1 ? Shape{1, shape[0]} : Shape{shape[0], shape[1]};
}

// Reads one stored tensor into `values`; a problem, or "".
std::string ReadInto(const TensorView& view, const HubTensor& tensor, Tensor& values) {
  if (view.shape != tensor.shape) {
    return absl::StrCat(view.name, ": expected ", ShapeText(tensor.shape), ", found ",
                        ShapeText(view.shape));
  }
  values = Tensor(MatrixShape(tensor.shape), MemoryTag::kWorkspace);
  const absl::Span<float> out(values.f32(), static_cast<size_t>(values.count()));
  if (const absl::Status read = ReadAsF32(view, 0, out); !read.ok()) {
    return std::string(read.message());
  }
  if (!kernels::cpu::AllFinite(out.data(), values.count())) {
    return absl::StrCat(view.name, ": NaN or infinite values");
  }
  return "";
}

}  // namespace

std::vector<int> HubPrefixLayers(const HubPrefix& prefix, Stack stack, const ModelInfo& info) {
  std::vector<int> layers;
  for (const StackLayers& s : StacksOf(info)) {
    if (s.stack != stack) continue;
    for (int i = 0; i < s.layers; ++i) {
      if (!prefix.leave_out.contains(s.first + i)) layers.push_back(i);
    }
  }
  return layers;
}

int64_t HubLayerNumber(const SiteId& site, const ModelInfo& info) {
  return site.layer + (info.encoder_decoder && site.stack == Stack::kDecoder ? info.layers : 0);
}

bool HubLora::*HubField(const LinearPlace& place, const ModelInfo& info) {
  // Llama and Mistral have "intermediate" and "output" swapped.
  const bool swapped = info.model_type == "llama" || info.model_type == "mistral";
  switch (place.site.projection) {
    case Projection::kQuery:
      return &HubLora::query;
    case Projection::kKey:
      return &HubLora::key;
    case Projection::kValue:
      return &HubLora::value;
    case Projection::kUp:
      return swapped ? &HubLora::output : &HubLora::intermediate;
    case Projection::kDown:
      return swapped ? &HubLora::intermediate : &HubLora::output;
    default:
      return nullptr;
  }
}

bool HubAdapts(const HubLora& lora, const LinearPlace& place, const ModelInfo& info) {
  if (lora.leave_out.contains(HubLayerNumber(place.site, info))) return false;
  if (place.site.projection == Projection::kFusedQueryKeyValue) return !HubThirds(lora).empty();
  bool HubLora::*field = HubField(place, info);
  return field != nullptr && lora.*field;
}

std::vector<int> HubThirds(const HubLora& lora) {
  std::vector<int> thirds;
  if (lora.query) thirds.push_back(0);
  if (lora.key) thirds.push_back(1);
  if (lora.value) thirds.push_back(2);
  return thirds;
}

absl::StatusOr<std::vector<HubTensor>> HubTensorsOf(const AdapterHubConfig& config,
                                                    const Model& model) {
  const Names names(model.info(), config.name);
  Tensors tensors;
  for (size_t part = 0; part < config.parts.size(); ++part) {
    const size_t before = tensors.size();
    const Adder to{model.info(), names, part, tensors};
    PERMAFROST_RETURN_IF_ERROR(
        std::visit([&](const auto& p) { return AddPart(p, model, to); }, config.parts[part]));
    if (tensors.size() == before) {
      return absl::InvalidArgumentError(
          "config: expected an adapter that acts somewhere in this base, found none");
    }
  }
  std::set<std::string> seen;
  for (const HubTensor& t : tensors) {
    if (seen.insert(t.name).second) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "config.configs: expected parts that act on different places, found two for ", t.name));
  }
  return tensors;
}

absl::StatusOr<std::vector<Tensor>> ReadHubTensors(const std::string& path,
                                                   const std::vector<HubTensor>& tensors) {
  PERMAFROST_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  std::vector<Tensor> values(tensors.size());
  std::vector<std::string> problems;
  std::set<std::string> used;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const HubTensor& t = tensors[i];
    const TensorView* first = nullptr;
    std::vector<std::string> stored = t.copies;
    stored.insert(stored.begin(), t.name);
    for (const std::string& name : stored) {
      const TensorView* view = file.Find(name);
      if (view == nullptr) continue;
      used.insert(name);
      if (first == nullptr) {
        first = view;
        if (std::string problem = ReadInto(*view, t, values[i]); !problem.empty()) {
          problems.push_back(std::move(problem));
        }
      } else if (view->dtype != first->dtype || view->shape != first->shape ||
                 view->bytes != first->bytes) {
        problems.push_back(absl::StrCat(name, ": expected the values of ", first->name,
                                        ", which it repeats, found others"));
      }
    }
    if (first == nullptr) problems.push_back(absl::StrCat("missing ", t.name));
  }
  for (const TensorView& t : file.tensors()) {
    if (!used.contains(t.name)) problems.push_back(absl::StrCat("unused ", t.name));
  }
  if (problems.empty()) return values;
  constexpr size_t kShown = 8;
  const size_t more = problems.size() > kShown ? problems.size() - kShown : 0;
  problems.resize(problems.size() - more);
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": tensors do not fit adapter_config.json and this base: ",
      absl::StrJoin(problems, "; "), more > 0 ? absl::StrCat(" and ", more, " more") : ""));
}

}  // namespace permafrost
