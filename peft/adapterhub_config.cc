#include "peft/adapterhub_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/check.h"
#include "models/config_fields.h"

namespace permafrost {
namespace {

using nlohmann::json;

constexpr int64_t kMostRank = 65536, kMostVirtualTokens = 1 << 20;
constexpr char kNotImplemented[] = ", which is not implemented";

// Reads the fields of one method. The first error stays and is given at the end, where a field that
// nobody asked for is an error too unless it asks for nothing.
class PartReader {
 public:
  PartReader(const json& object, const std::string& source)
      : object_(object), fields_(object, source) {}

  bool Bool(const char* field, bool fallback) {
    return Take(field, fields_.BoolOr(field, fallback), fallback);
  }
  int64_t Int(const char* field, int64_t fallback, int64_t low, int64_t high) {
    const int64_t value = Take(field, fields_.IntOr(field, fallback), fallback);
    if (value >= low && value <= high) return value;
    Fail(field, absl::StrCat("a whole number from ", low, " to ", high), absl::StrCat(value));
    return fallback;
  }
  double Number(const char* field, double fallback) {
    return Take(field, fields_.DoubleOr(field, fallback), fallback);
  }
  double Rate(const char* field) {
    const double value = Number(field, 0);
    if (value >= 0 && value < 1) return value;
    Fail(field, "a rate in [0, 1)", absl::StrCat(value));
    return 0;
  }
  std::string String(const char* field, const std::string& fallback) {
    return Take(field, fields_.StringOr(field, fallback), fallback);
  }
  std::set<int64_t> Layers(const char* field) {
    known_.insert(field);
    if (!fields_.Has(field)) return {};
    const auto list = Take(field, fields_.IntList(field), std::vector<int64_t>());
    return {list.begin(), list.end()};
  }
  std::vector<std::string> Strings(const char* field, std::vector<std::string> fallback) {
    known_.insert(field);
    if (!fields_.Has(field)) return fallback;
    return Take(field, fields_.StringList(field), std::move(fallback));
  }
  const json* Find(const char* field) {
    known_.insert(field);
    return fields_.Find(field);
  }

  // A field that may only have values that ask for nothing: null, false, 0 or nothing at all.
  void Refuse(const char* field, const std::string& what) {
    const json* value = Find(field);
    if (value == nullptr || *value == false || (value->is_number() && *value == 0)) return;
    Fail(field, "null or false",
         absl::StrCat(DescribeJson(*value), ": ", what, " is not implemented"));
  }
  // Fields that change nothing.
  void Neutral(std::initializer_list<const char*> fields) {
    known_.insert(fields.begin(), fields.end());
  }
  void Fail(const char* field, const std::string& expected, const std::string& found) {
    if (error_.ok()) error_ = ConfigError(fields_, field, expected, found);
  }

  absl::Status Finish() const {
    PERMAFROST_RETURN_IF_ERROR(error_);
    for (const auto& [field, value] : object_.items()) {
      const bool asks_for_nothing =
          value.is_null() || value == false || (value.is_structured() && value.empty());
      if (known_.contains(field) || asks_for_nothing) continue;
      return ConfigError(fields_, field, "null or false",
                         absl::StrCat(DescribeJson(value), kNotImplemented));
    }
    return absl::OkStatus();
  }

 private:
  template <class T>
  T Take(const char* field, absl::StatusOr<T> value, T fallback) {
    known_.insert(field);
    if (value.ok()) return *std::move(value);
    if (error_.ok()) error_ = value.status();
    return fallback;
  }

  const json& object_;
  JsonFields fields_;
  std::set<std::string> known_ = {"architecture", "init_weights_seed"};
  absl::Status error_;
};

void ReadReduction(PartReader& reader, HubReduction& reduction) {
  const json* value = reader.Find("reduction_factor");
  const auto take = [&](const json& factor) {
    const double f = factor.is_number() ? factor.get<double>() : 0;
    // Wide enough for any use; keeps b well inside of int64.
    constexpr double kLeast = 1e-6;
    if (!(std::isfinite(f) && f >= kLeast)) {
      reader.Fail("reduction_factor", "positive numbers", DescribeJson(factor));
    }
    return f;
  };
  if (value == nullptr || !value->is_object()) {
    if (value == nullptr) {
      reader.Fail("reduction_factor", "a number or a map of layers", "nothing");
    } else {
      reduction.otherwise = take(*value);
    }
    return;
  }
  for (const auto& [key, factor] : value->items()) {
    if (key == "default") {
      reduction.otherwise = take(factor);
      continue;
    }
    int64_t layer = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), layer);
    if (error != std::errc() || end != key.data() + key.size() || layer < 0 ||
        key != absl::StrCat(layer)) {
      reader.Fail("reduction_factor", "layer numbers or \"default\"", DescribeJson(json(key)));
      return;
    }
    reduction.layers[layer] = take(factor);
  }
}

void ReadScaling(PartReader& reader, HubBottleneck& b) {
  const json* value = reader.Find("scaling");
  if (value == nullptr) return;
  if (value->is_number()) {
    b.scale = value->get<double>();
  } else if (*value == "learned") {
    b.scaling = HubBottleneck::Scaling::kLearned;
  } else if (*value == "channel") {
    b.scaling = HubBottleneck::Scaling::kChannel;
  } else {
    reader.Fail("scaling", "a number, \"learned\" or \"channel\"", DescribeJson(*value));
  }
}

absl::StatusOr<HubPart> ReadBottleneck(const json& object, const std::string& source) {
  PartReader reader(object, source);
  HubBottleneck b;
  reader.Refuse("phm_layer", "Compacter");
  reader.Refuse("inv_adapter", "an invertible adapter");
  reader.Refuse("stochastic_depth", "stochastic depth");
  // What these say has an effect with those only.
  reader.Neutral({"inv_adapter_reduction_factor", "phm_dim", "phm_bias", "phm_c_init",
                  "phm_init_range", "phm_rank", "learn_phm", "factorized_phm_W",
                  "factorized_phm_rule", "shared_W_phm", "shared_phm_rule",
                  "hypercomplex_nonlinearity"});
  b.self_attention = reader.Bool("mh_adapter", false);
  b.cross_attention = reader.Bool("cross_adapter", false);
  b.feed_forward = reader.Bool("output_adapter", false);
  ReadReduction(reader, b.reduction);
  b.activation = reader.String("non_linearity", "");
  if (b.activation.empty()) reader.Fail("non_linearity", "an activation", "nothing");
  b.parallel = reader.Bool("is_parallel", false);
  ReadScaling(reader, b);
  b.gated = reader.Bool("use_gating", false);
  b.original_before = reader.Bool("original_ln_before", false);
  b.original_after = reader.Bool("original_ln_after", true);
  if (const json* value = reader.Find("residual_before_ln");
      value != nullptr && value->is_string()) {
    reader.Fail("residual_before_ln", "true or false", DescribeJson(*value) + kNotImplemented);
  } else {
    b.residual_before_norm = reader.Bool("residual_before_ln", true);
  }
  b.adapter_residual_before_norm = reader.Bool("adapter_residual_before_ln", false);
  b.norm_before = reader.Bool("ln_before", false);
  b.norm_after = reader.Bool("ln_after", false);
  b.leave_out = reader.Layers("leave_out");
  b.dropout = reader.Rate("dropout");
  b.init = reader.String("init_weights", "bert");
  PERMAFROST_RETURN_IF_ERROR(reader.Finish());
  return b;
}

absl::StatusOr<HubPart> ReadPrefix(const json& object, const std::string& source) {
  PartReader reader(object, source);
  HubPrefix p;
  p.encoder = reader.Bool("encoder_prefix", true);
  p.cross = reader.Bool("cross_prefix", true);
  p.flat = reader.Bool("flat", false);
  p.length = reader.Int("prefix_length", 30, 1, kMostVirtualTokens);
  p.bottleneck = reader.Int("bottleneck_size", 512, 1, kMostVirtualTokens);
  p.activation = reader.String("non_linearity", "tanh");
  p.dropout = reader.Rate("dropout");
  p.gated = reader.Bool("use_gating", false);
  p.shared_gate = reader.Bool("shared_gating", true);
  p.leave_out = reader.Layers("leave_out");
  PERMAFROST_RETURN_IF_ERROR(reader.Finish());
  return p;
}

// The one field of LoRA that lists projections.
void ReadAttentionMatrices(PartReader& reader, HubLora& lora) {
  lora.query = lora.key = lora.value = false;
  const bool any = reader.Bool("selfattn_lora", true);
  for (const std::string& name : reader.Strings("attn_matrices", {"q", "v"})) {
    bool* projection = name == "q"   ? &lora.query
                       : name == "k" ? &lora.key
                       : name == "v" ? &lora.value
                                     : nullptr;
    if (projection == nullptr) {
      reader.Fail("attn_matrices", "q, k or v", DescribeJson(json(name)));
      return;
    }
    *projection = any;
  }
}

absl::StatusOr<HubPart> ReadLora(const json& object, const std::string& source) {
  PartReader reader(object, source);
  HubLora lora;
  reader.Refuse("use_dora", "DoRA as adapters defines it");
  // VeRA is chosen by any number there, 0 as well.
  for (const char* field : {"vera_d", "vera_b"}) {
    if (const json* value = reader.Find(field); value != nullptr) {
      reader.Fail(field, "null", DescribeJson(*value) + ": VeRA is not implemented");
    }
  }
  if (const std::string dtype = reader.String("dtype", "float32"); dtype != "float32") {
    reader.Fail("dtype", "null or float32", dtype);
  }
  ReadAttentionMatrices(reader, lora);
  lora.intermediate = reader.Bool("intermediate_lora", false);
  lora.output = reader.Bool("output_lora", false);
  lora.rank = reader.Int("r", 8, 1, kMostRank);
  lora.alpha = reader.Number("alpha", 8);
  lora.dropout = reader.Rate("dropout");
  const std::string mode = reader.String("composition_mode", "add");
  lora.rescale = mode == "scale";
  if (mode != "add" && mode != "scale") reader.Fail("composition_mode", "add or scale", mode);
  lora.gated = reader.Bool("use_gating", false);
  lora.leave_out = reader.Layers("leave_out");
  lora.init = reader.String("init_weights", "lora");
  if (lora.rescale) {
    if (lora.rank != 1) reader.Fail("r", "1 for IA3", absl::StrCat(lora.rank));
    if (lora.alpha != 1) {
      reader.Fail("alpha", "1 for IA3", absl::StrCat(lora.alpha, kNotImplemented));
    }
    if (lora.gated) reader.Fail("use_gating", "false for IA3", "true, which is not implemented");
    if (lora.dropout != 0) reader.Fail("dropout", "0 for IA3", absl::StrCat(lora.dropout));
  }
  PERMAFROST_RETURN_IF_ERROR(reader.Finish());
  return lora;
}

absl::StatusOr<HubPart> ReadPart(const json& object, const std::string& source) {
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": expected an object, found ", DescribeJson(object)));
  }
  const JsonFields fields(object, source);
  if (!fields.Has("architecture")) return ReadBottleneck(object, source);
  PERMAFROST_ASSIGN_OR_RETURN(const std::string architecture, fields.String("architecture"));
  if (architecture == "prefix_tuning") return ReadPrefix(object, source);
  if (architecture == "lora") return ReadLora(object, source);
  return ConfigError(fields, "architecture", "null (a bottleneck), prefix_tuning, lora or union",
                     architecture + kNotImplemented);
}

absl::StatusOr<std::vector<HubPart>> ReadParts(const json& object, const std::string& source) {
  std::vector<HubPart> parts;
  if (!object.is_object() || !object.contains("architecture") ||
      object["architecture"] != "union") {
    PERMAFROST_ASSIGN_OR_RETURN(HubPart part, ReadPart(object, source));
    parts.push_back(std::move(part));
    return parts;
  }
  PartReader reader(object, source);
  const json* list = reader.Find("configs");
  if (list == nullptr || !list->is_array() || list->empty()) {
    reader.Fail("configs", "a list of configs", list == nullptr ? "nothing" : DescribeJson(*list));
  }
  PERMAFROST_RETURN_IF_ERROR(reader.Finish());
  for (size_t i = 0; i < list->size(); ++i) {
    PERMAFROST_ASSIGN_OR_RETURN(HubPart part,
                                ReadPart((*list)[i], absl::StrCat(source, ".configs[", i, "]")));
    parts.push_back(std::move(part));
  }
  return parts;
}

// Whether "adapters.X" was written before 1.1.0. Those versions multiplied LoRA by 1 whatever alpha
// said; the library loads their files with alpha = r (a LoRA inside of a union excepted).
bool BeforeScalingFix(absl::string_view version) {
  version.remove_prefix(std::min(version.size(), sizeof("adapters.") - 1));
  int numbers[3] = {0, 0, 0};
  const char *at = version.data(), *end = at + version.size();
  for (int& n : numbers) {
    const auto [next, error] = std::from_chars(at, end, n);
    if (error != std::errc()) break;
    at = next;
    if (at != end && *at == '.') ++at;
  }
  if (numbers[0] != 1) return numbers[0] < 1;
  // "1.1.0.dev0" and "1.1.0rc1" come before 1.1.0.
  return numbers[1] < 1 || (numbers[1] == 1 && numbers[2] == 0 && at != end);
}

absl::Status CheckBase(const JsonFields& fields, const ModelInfo& info) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::string type,
                              fields.StringOr("model_type", info.model_type));
  if (type != info.model_type) {
    return ConfigError(fields, "model_type", info.model_type + " as this base",
                       type + "; the adapter was made for another base");
  }
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t width, fields.IntOr("hidden_size", info.width));
  if (width == info.width) return absl::OkStatus();
  return ConfigError(fields, "hidden_size", absl::StrCat(info.width, " as this base"),
                     absl::StrCat(width, "; the adapter was made for another base"));
}

}  // namespace

std::optional<double> HubReduction::FactorOf(int64_t layer) const {
  const auto found = layers.find(layer);
  return found != layers.end() ? found->second : otherwise;
}

int64_t HubBottleneckWidth(int64_t width, double factor) {
  // Python's float floor division: the remainder is exact, so the quotient is an integer but for
  // the rounding of the subtraction and the division.
  const double w = static_cast<double>(width);
  const double quotient = (w - std::fmod(w, factor)) / factor;
  double whole = std::floor(quotient);
  if (quotient - whole > 0.5) whole += 1;
  constexpr double kMost = 2147483648.0;
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(whole, kMost)));
}

double HubReductionFactor(int64_t width, int64_t bottleneck) {
  const double w = static_cast<double>(width), b = static_cast<double>(bottleneck);
  return HubBottleneckWidth(width, w / b) == bottleneck ? w / b : w / (b + 0.5);
}

bool IsAdapterHubConfig(const json& object) {
  return object.is_object() && object.contains("config") && !object.contains("peft_type");
}

absl::StatusOr<AdapterHubConfig> ParseAdapterHubConfig(const json& object,
                                                       const std::string& source,
                                                       const ModelInfo& info) {
  const JsonFields fields(object, source);
  PERMAFROST_ASSIGN_OR_RETURN(const std::string version, fields.StringOr("version", ""));
  if (!absl::StartsWith(version, "adapters.")) {
    return ConfigError(fields, "version", "adapters.… (the AdapterHub library `adapters`)",
                       version.empty() ? "nothing" : DescribeJson(json(version)));
  }
  PERMAFROST_RETURN_IF_ERROR(CheckBase(fields, info));
  AdapterHubConfig config;
  PERMAFROST_ASSIGN_OR_RETURN(config.name, fields.String("name"));
  if (config.name.empty() || absl::StrContains(config.name, '.')) {
    return ConfigError(fields, "name", "a name without dots", DescribeJson(json(config.name)));
  }
  const json& method = object["config"];
  PERMAFROST_ASSIGN_OR_RETURN(config.parts, ReadParts(method, source + ": config"));
  if (config.parts.size() == 1 && BeforeScalingFix(version)) {
    const bool in_union = method.contains("configs");
    HubLora* lora = std::get_if<HubLora>(&config.parts[0]);
    if (lora != nullptr && !in_union) lora->alpha = static_cast<double>(lora->rank);
  }
  return config;
}

}  // namespace permafrost
