// AdaLoRA's part of adapter_config.json.
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/check.h"
#include "peft/config_reading.h"

namespace permafrost {
namespace {

// They say how an adapter was trained, and go through to the file that is written.
const char* const kBudgetFields[] = {"r",     "target_r", "tinit",           "tfinal",    "deltaT",
                                     "beta1", "beta2",    "orth_reg_weight", "total_step"};

// {"MODULE.lora_E": [true, false, ...]}
absl::Status ReadKept(const ConfigFile& file, AdaLoraConfig& config) {
  const nlohmann::json* pattern = file.fields.Find("rank_pattern");
  if (pattern == nullptr || AsksForNothing(*pattern)) return absl::OkStatus();
  const std::string expected =
      absl::StrCat("lists of init_r = ", config.rank, " true or false by module");
  if (!pattern->is_object()) {
    return ConfigError(file.fields, "rank_pattern", expected, pattern->dump());
  }
  for (const auto& [key, flags] : pattern->items()) {
    std::vector<bool> kept;
    bool fits = flags.is_array() && static_cast<int64_t>(flags.size()) == config.rank;
    for (size_t i = 0; fits && i < flags.size(); ++i) {
      fits = flags[i].is_boolean();
      kept.push_back(fits && flags[i].get<bool>());
    }
    absl::string_view module = key;
    if (!fits || !absl::ConsumeSuffix(&module, ".lora_E")) {
      return ConfigError(file.fields, "rank_pattern", expected,
                         absl::StrCat(key, ": ", flags.dump()));
    }
    config.kept.emplace_back(std::string(module), std::move(kept));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AdaLoraConfig> ReadAdaLoraConfig(const ConfigFile& file) {
  constexpr int64_t kMostRank = 65536;
  const JsonFields& fields = file.fields;
  std::set<std::string> known = {"init_r",       "lora_alpha", "lora_dropout",
                                 "rank_pattern", "bias",       "init_lora_weights"};
  known.insert(kTargetFields.begin(), kTargetFields.end());
  known.insert(std::begin(kBudgetFields), std::end(kBudgetFields));
  PERMAFROST_RETURN_IF_ERROR(RefuseUnknown(file, known));
  AdaLoraConfig config;
  PERMAFROST_ASSIGN_OR_RETURN(config.rank, fields.IntOr("init_r", 12));
  if (config.rank < 1 || config.rank > kMostRank) {
    return ConfigError(fields, "init_r", absl::StrCat("1 to ", kMostRank),
                       absl::StrCat(config.rank));
  }
  PERMAFROST_ASSIGN_OR_RETURN(config.alpha, fields.DoubleOr("lora_alpha", 8));
  if (!(config.alpha > 0)) {
    return ConfigError(fields, "lora_alpha", "more than 0", absl::StrCat(config.alpha));
  }
  PERMAFROST_ASSIGN_OR_RETURN(config.dropout, fields.DoubleOr("lora_dropout", 0));
  if (!(config.dropout >= 0 && config.dropout < 1)) {
    return ConfigError(fields, "lora_dropout", "a rate in [0, 1)", absl::StrCat(config.dropout));
  }
  PERMAFROST_ASSIGN_OR_RETURN(const std::string bias, fields.StringOr("bias", "none"));
  if (bias != "none") {
    return ConfigError(fields, "bias", "none with AdaLoRA",
                       absl::StrCat(bias, ", which is not implemented"));
  }
  PERMAFROST_RETURN_IF_ERROR(ReadKept(file, config));
  for (const char* field : kBudgetFields) {
    if (const nlohmann::json* value = fields.Find(field)) config.budget[field] = *value;
  }
  PERMAFROST_ASSIGN_OR_RETURN(config.targets,
                              ReadTargets(file, DefaultLoraTargets(file.model.info().model_type)));
  return config;
}

void WriteConfig(const AdaLoraConfig& config, const Model& model, nlohmann::ordered_json& object) {
  object["peft_type"] = "ADALORA";
  object["init_r"] = config.rank;
  object["lora_alpha"] = config.alpha;
  if (config.alpha == static_cast<double>(static_cast<int64_t>(config.alpha))) {
    object["lora_alpha"] = static_cast<int64_t>(config.alpha);
  }
  object["lora_dropout"] = config.dropout;
  object["bias"] = "none";
  object["fan_in_fan_out"] = model.info().model_type == "gpt2";
  object["init_lora_weights"] = true;
  object["total_step"] = 1;  // PEFT asks for one
  for (const auto& [field, value] : config.budget.items()) object[field] = value;
  object["rank_pattern"] = nullptr;
  for (const auto& [module, kept] : config.kept) object["rank_pattern"][module + ".lora_E"] = kept;
  WriteTargets(config.targets, object);
}

}  // namespace permafrost
