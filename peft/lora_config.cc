// LoRA's part of adapter_config.json.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "peft/config_visitor.h"

namespace permafrost {
namespace {

// A pattern field in the order of the file, which decides where several keys match.
template <class V>
absl::Status ReadPattern(const ConfigFile& file, const char* field,
                         std::vector<std::pair<std::string, V>>& pattern) {
  if (!file.fields.Has(field)) return absl::OkStatus();
  const nlohmann::ordered_json& entries = file.ordered[field];
  if (!entries.is_object()) return ConfigError(file.fields, field, "an object", entries.dump());
  for (const auto& [key, value] : entries.items()) {
    const bool fits = std::is_integral_v<V> ? value.is_number_integer() : value.is_number();
    if (!fits) {
      return ConfigError(file.fields, field, std::is_integral_v<V> ? "whole numbers" : "numbers",
                         value.dump());
    }
    pattern.emplace_back(key, value.template get<V>());
  }
  return absl::OkStatus();
}

// Initialisations that change the base weights cannot be read without redoing them.
absl::Status CheckInitialisation(const ConfigFile& file) {
  static const std::set<std::string> kPlain = {"gaussian", "eva", "orthogonal", "true", "false"};
  const nlohmann::json* init = file.fields.Find("init_lora_weights");
  if (init == nullptr || !init->is_string() || kPlain.contains(init->get<std::string>())) {
    return absl::OkStatus();
  }
  return ConfigError(file.fields, "init_lora_weights", "true, false, gaussian, eva or orthogonal",
                     absl::StrCat(init->get<std::string>(),
                                  ", which changes the base; convert it to plain LoRA in PEFT"));
}

const char* BiasName(LoraBias bias) {
  return bias == LoraBias::kAll ? "all" : bias == LoraBias::kLoraOnly ? "lora_only" : "none";
}

absl::StatusOr<LoraBias> ReadBias(const JsonFields& fields) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::string name, fields.StringOr("bias", "none"));
  for (const LoraBias bias : {LoraBias::kNone, LoraBias::kAll, LoraBias::kLoraOnly}) {
    if (name == BiasName(bias)) return bias;
  }
  return ConfigError(fields, "bias", "none, all or lora_only", name);
}

// A whole number without a decimal point.
nlohmann::json Number(double value) {
  const bool whole = value == static_cast<double>(static_cast<int64_t>(value));
  return whole ? nlohmann::json(static_cast<int64_t>(value)) : nlohmann::json(value);
}

// What the file holds of a pair that started from the base: its start is a second half (lora.h),
// and the same scale takes alpha with the rank, or its root.
LoraConfig AsStored(LoraConfig lora) {
  if (lora.init != LoraInit::kPissa && lora.init != LoraInit::kOlora) return lora;
  const double factor = lora.rslora ? std::sqrt(2.0) : 2;
  lora.rank *= 2;
  lora.alpha *= factor;
  for (auto& [key, rank] : lora.rank_pattern) rank *= 2;
  for (auto& [key, alpha] : lora.alpha_pattern) alpha *= factor;
  lora.init = LoraInit::kDefault;
  return lora;
}

}  // namespace

absl::StatusOr<LoraConfig> ReadLoraConfig(const ConfigFile& file) {
  const JsonFields& fields = file.fields;
  std::set<std::string> known = {
      "r",    "lora_alpha",        "lora_dropout", "use_rslora", "rank_pattern",   "alpha_pattern",
      "bias", "init_lora_weights", "use_dora",     "lora_bias",  "modules_to_save"};
  known.insert(kTargetFields.begin(), kTargetFields.end());
  LoraConfig lora;
  FieldReader own(file);  // of a LoRA in UniPELT
  own("gate", lora.gate);
  own("thirds", lora.thirds);
  PERMAFROST_RETURN_IF_ERROR(own.Finish(known));
  PERMAFROST_ASSIGN_OR_RETURN(lora.rank, fields.IntOr("r", 8));
  if (lora.rank < 1) return ConfigError(fields, "r", "at least 1", absl::StrCat(lora.rank));
  PERMAFROST_ASSIGN_OR_RETURN(lora.alpha, fields.DoubleOr("lora_alpha", 8));
  PERMAFROST_ASSIGN_OR_RETURN(lora.dropout, fields.DoubleOr("lora_dropout", 0));
  if (!(lora.dropout >= 0 && lora.dropout < 1)) {
    return ConfigError(fields, "lora_dropout", "a rate in [0, 1)", absl::StrCat(lora.dropout));
  }
  PERMAFROST_ASSIGN_OR_RETURN(lora.rslora, fields.BoolOr("use_rslora", false));
  PERMAFROST_ASSIGN_OR_RETURN(lora.dora, fields.BoolOr("use_dora", false));
  PERMAFROST_ASSIGN_OR_RETURN(lora.bias, ReadBias(fields));
  PERMAFROST_ASSIGN_OR_RETURN(lora.lora_bias, fields.BoolOr("lora_bias", false));
  if (fields.Find("modules_to_save") != nullptr) {
    PERMAFROST_ASSIGN_OR_RETURN(lora.modules_to_save, fields.StringList("modules_to_save"));
  }
  PERMAFROST_RETURN_IF_ERROR(CheckInitialisation(file));
  PERMAFROST_RETURN_IF_ERROR(ReadPattern(file, "rank_pattern", lora.rank_pattern));
  PERMAFROST_RETURN_IF_ERROR(ReadPattern(file, "alpha_pattern", lora.alpha_pattern));
  PERMAFROST_ASSIGN_OR_RETURN(lora.targets,
                              ReadTargets(file, DefaultLoraTargets(file.model.info().model_type)));
  return lora;
}

void WriteConfig(const LoraConfig& config, const Model& model, nlohmann::ordered_json& object) {
  const LoraConfig lora = AsStored(config);
  object["peft_type"] = "LORA";
  object["r"] = lora.rank;
  object["lora_alpha"] = Number(lora.alpha);
  object["lora_dropout"] = lora.dropout;
  object["use_rslora"] = lora.rslora;
  object["use_dora"] = lora.dora;
  object["bias"] = BiasName(lora.bias);
  object["lora_bias"] = lora.lora_bias;
  object["fan_in_fan_out"] = model.info().model_type == "gpt2";
  object["init_lora_weights"] = true;
  if (lora.init == LoraInit::kGaussian) object["init_lora_weights"] = "gaussian";
  if (!lora.modules_to_save.empty()) object["modules_to_save"] = lora.modules_to_save;
  object["rank_pattern"] = nlohmann::json::object();
  for (const auto& [key, rank] : lora.rank_pattern) object["rank_pattern"][key] = rank;
  object["alpha_pattern"] = nlohmann::json::object();
  for (const auto& [key, alpha] : lora.alpha_pattern) object["alpha_pattern"][key] = Number(alpha);
  WriteTargets(lora.targets, object);
  if (lora.gate.kind == GateConfig::Kind::kNone) return;
  FieldWriter writer(object);
  writer("gate", lora.gate);
  if (!lora.thirds.empty()) writer("thirds", lora.thirds);
}

}  // namespace permafrost
