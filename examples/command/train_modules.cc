#include "train_modules.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/check.h"
#include "models/blocks.h"

namespace permafrost {
namespace {

absl::StatusOr<GateConfig> GatesOf(const ModuleFlags& f) {
  GateConfig gate;
  gate.shared = !f.separate_gates;
  if (f.gates == "none") return gate;
  if (f.gates == "running") {
    gate.kind = GateConfig::Kind::kRunning;
    return gate;
  }
  gate.kind = GateConfig::Kind::kConstant;
  if (!absl::SimpleAtod(f.gates, &gate.value) || !(gate.value >= 0 && gate.value <= 1)) {
    return UsageError(
        absl::StrCat("--gates: expected running, none or a number in [0, 1], found ", f.gates));
  }
  return gate;
}

absl::StatusOr<PrefixTuningConfig> PrefixOf(const ModuleFlags& f, const SharedSettings& s,
                                            const ModelInfo& info, bool in_union) {
  PrefixTuningConfig prefix;
  prefix.virtual_tokens = s.virtual_tokens;
  prefix.encoder = prefix.decoder = prefix.cross = false;
  // In a union the paper's code has a prefix at every attention.
  const bool every = in_union && info.encoder_decoder;
  const std::string sites = !f.sites.empty() ? f.sites
                            : every          ? "encoder,decoder,cross"
                                             : "decoder";
  for (const std::string& site : SplitList(sites)) {
    bool* wanted = site == "encoder"   ? &prefix.encoder
                   : site == "decoder" ? &prefix.decoder
                   : site == "cross"   ? &prefix.cross
                                       : nullptr;
    if (wanted == nullptr) {
      return UsageError(
          absl::StrCat("--prefix-sites: expected encoder, decoder and cross, found ", site));
    }
    *wanted = true;
  }
  const bool decoder_alone = prefix.decoder && !prefix.encoder && !prefix.cross;
  using Positions = PrefixTuningConfig::Positions;
  const bool cache = f.positions.empty() ? decoder_alone && !in_union : f.positions == "cache";
  prefix.positions = f.positions == "shifted" ? Positions::kShifted
                     : cache                  ? Positions::kCache
                                              : Positions::kNone;
  prefix.peft_layout = decoder_alone && !in_union && (cache || !info.encoder_decoder);
  if (prefix.peft_layout) prefix.layers = std::max(info.layers, info.decoder_layers);
  prefix.text_after_prefix = !info.encoder_decoder;
  prefix.projection = f.projection;
  prefix.projection_width = f.projection_width;
  prefix.dropout = s.dropout;
  if (s.init == "zero") prefix.init = PrefixTuningConfig::Init::kZero;
  PERMAFROST_ASSIGN_OR_RETURN(prefix.leave_out, ParseLayers("--leave-out", f.leave_out));
  if (!prefix.leave_out.empty()) prefix.peft_layout = false;
  if (in_union) {
    PERMAFROST_ASSIGN_OR_RETURN(prefix.gate, GatesOf(f));
  }
  return prefix;
}

absl::StatusOr<BottleneckConfig> BottleneckOf(const ModuleFlags& f, const SharedSettings& s,
                                              const std::string& form, bool in_union) {
  BottleneckConfig config = form == "houlsby"    ? HoulsbyConfig()
                            : form == "parallel" ? ParallelConfig()
                                                 : PfeifferConfig();
  config.width = f.bottleneck;
  config.dropout = s.dropout;
  config.drop_layers = f.adapter_drop;
  if (f.adapter_scale > 0) config.scale = f.adapter_scale;
  if (!f.non_linearity.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(config.activation,
                                ParseActivation(f.non_linearity, "--non-linearity"));
  }
  PERMAFROST_ASSIGN_OR_RETURN(config.leave_out, ParseLayers("--leave-out", f.leave_out));
  if (in_union) {
    PERMAFROST_ASSIGN_OR_RETURN(config.gate, GatesOf(f));
  }
  return config;
}

absl::StatusOr<UniPeltConfig> UnionOf(const ModuleFlags& f, const SharedSettings& s,
                                      const ModelInfo& info) {
  UniPeltConfig all;
  for (const std::string& part : SplitList(f.parts)) {
    if (part == "prefix") {
      PERMAFROST_ASSIGN_OR_RETURN(PrefixTuningConfig prefix, PrefixOf(f, s, info, true));
      all.parts.emplace_back(std::move(prefix));
    } else if (part == "lora") {
      LoraConfig lora = s.lora;
      PERMAFROST_ASSIGN_OR_RETURN(lora.gate, GatesOf(f));
      all.parts.emplace_back(std::move(lora));
    } else if (part == "adapter" || part == "parallel-adapter") {
      PERMAFROST_ASSIGN_OR_RETURN(
          BottleneckConfig adapter,
          BottleneckOf(f, s, part == "adapter" ? f.form : "parallel", true));
      all.parts.emplace_back(std::move(adapter));
    } else if (part == "ia3") {
      all.parts.emplace_back(DefaultIa3Config(info.model_type, {}));
    } else if (part == "bitfit") {
      all.parts.emplace_back(BitFitConfig());
    } else {
      return UsageError(
          absl::StrCat("--parts: expected some of prefix, lora, adapter, "
                       "parallel-adapter, ia3 and bitfit, found ",
                       part));
    }
  }
  return all;
}

}  // namespace

std::vector<std::string> SplitList(const std::string& text) {
  return text.empty() ? std::vector<std::string>() : absl::StrSplit(text, ',');
}

absl::StatusOr<std::vector<int>> ParseLayers(const std::string& flag, const std::string& text) {
  std::vector<int> layers;
  for (const std::string& number : SplitList(text)) {
    if (!absl::SimpleAtoi(number, &layers.emplace_back()) || layers.back() < 0) {
      return UsageError(absl::StrCat(flag, ": expected layer numbers such as 0,1,2, found ", text));
    }
  }
  return layers;
}

void AddModuleFlags(CLI::App* app, ModuleFlags& f, const OwnFlag& own) {
  own(app->add_option("--prefix-sites", f.sites,
                      "prefix: which attentions of encoder,decoder,cross (T5); default decoder, in "
                      "unipelt all"),
      {"prefix", "unipelt"});
  own(app->add_option(
          "--prefix-positions", f.positions,
          "prefix: what T5's position bias takes the prefix for: the positions before "
          "the text (cache, PEFT's), the first ones of a text whose keys count from there on "
          "(shifted, AdapterHub's) or none; default: cache for the decoder alone"),
      {"prefix", "unipelt"})
      ->check(CLI::IsMember({"cache", "none", "shifted"}));
  own(app->add_flag("--prefix-projection", f.projection, "prefix: trained through a network"),
      {"prefix", "unipelt"});
  own(app->add_option("--projection-width", f.projection_width, "prefix: width of that network"),
      {"prefix", "unipelt"})
      ->check(Between(1, 65536))
      ->capture_default_str();
  own(app->add_option("--adapter-form", f.form, "adapter: where adapters stand"),
      {"adapter", "unipelt"})
      ->check(CLI::IsMember({"pfeiffer", "houlsby"}))
      ->capture_default_str();
  const std::vector<std::string> adapters = {"adapter", "parallel-adapter", "unipelt"};
  own(app->add_option("--bottleneck", f.bottleneck, "adapters: inner width (default: width / 16)"),
      adapters)
      ->check(Between(1, 65536));
  own(app->add_option("--non-linearity", f.non_linearity,
                      "adapters: relu, gelu, gelu_new, swish or tanh (default: the form's)"),
      adapters);
  own(app->add_option("--adapter-scale", f.adapter_scale,
                      "adapters: factor of the output (default 1, parallel 4)"),
      adapters)
      ->check(Positive());
  own(app->add_option("--adapter-drop", f.adapter_drop,
                      "adapters: in a step those of the first 0 to N layers rest (AdapterDrop)"),
      adapters)
      ->check(Between(0, 1000));
  own(app->add_option("--leave-out", f.leave_out, "prefix, adapters: layers without, e.g. 0,1"),
      {"prefix", "adapter", "parallel-adapter", "unipelt"});
  own(app->add_option("--top-layers", f.top_layers, "top-layers: how many of the decoder's last"),
      {"top-layers"})
      ->check(Between(1, 1000))
      ->capture_default_str();
  own(app->add_option("--parts", f.parts,
                      "unipelt: of prefix, lora, adapter, parallel-adapter, ia3 and bitfit"),
      {"unipelt"})
      ->capture_default_str();
  own(app->add_option("--gates", f.gates, "unipelt: running, none or a constant in [0, 1]"),
      {"unipelt"})
      ->capture_default_str();
  own(app->add_flag("--separate-gates", f.separate_gates,
                    "unipelt: a prefix's keys and values have gates of their own"),
      {"unipelt"});
}

bool IsModuleMethod(const std::string& method) {
  static const std::vector<std::string> kMethods = {"prefix",     "adapter", "parallel-adapter",
                                                    "bitfit",     "norm",    "head",
                                                    "top-layers", "full",    "unipelt"};
  return std::find(kMethods.begin(), kMethods.end(), method) != kMethods.end();
}

absl::StatusOr<AdapterConfig> ModuleConfig(const ModuleFlags& f, const SharedSettings& s,
                                           const ModelInfo& info) {
  if (s.method == "prefix") return PrefixOf(f, s, info, false);
  if (s.method == "adapter") return BottleneckOf(f, s, f.form, false);
  if (s.method == "parallel-adapter") return BottleneckOf(f, s, "parallel", false);
  if (s.method == "bitfit") return BitFitConfig{.targets = s.targets};
  if (s.method == "unipelt") return UnionOf(f, s, info);
  FullConfig full;
  if (s.method == "norm") {
    full.part = FullConfig::Part::kNorms;
    full.norms = s.targets.modules;
  }
  if (s.method == "head") full.part = FullConfig::Part::kHead;
  if (s.method == "top-layers") {
    full.part = FullConfig::Part::kTopLayers;
    full.layers = f.top_layers;
  }
  return full;
}

nlohmann::json ModuleSettings(const ModuleFlags& f) {
  return {{"prefix_sites", f.sites},
          {"prefix_positions", f.positions},
          {"prefix_projection", f.projection},
          {"projection_width", f.projection_width},
          {"adapter_form", f.form},
          {"bottleneck", f.bottleneck},
          {"non_linearity", f.non_linearity},
          {"adapter_scale", f.adapter_scale},
          {"adapter_drop", f.adapter_drop},
          {"leave_out", f.leave_out},
          {"top_layers", f.top_layers},
          {"parts", f.parts},
          {"gates", f.gates},
          {"separate_gates", f.separate_gates}};
}

}  // namespace permafrost
