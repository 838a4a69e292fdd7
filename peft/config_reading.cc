#include "peft/config_reading.h"

#include "absl/strings/str_cat.h"
#include "engine/check.h"

namespace permafrost {
namespace {

using nlohmann::json;

// Fields that change nothing in what the tensors compute.
const std::set<std::string>& NeutralFields() {
  static const std::set<std::string> kFields = {"auto_mapping",
                                                "base_model_name_or_path",
                                                "inference_mode",
                                                "peft_type",
                                                "peft_version",
                                                "revision",
                                                "task_type",
                                                "tokenizer_kwargs",
                                                "tokenizer_name_or_path",
                                                "prompt_tuning_init",
                                                "prompt_tuning_init_text",
                                                "num_layers",
                                                "num_attention_heads",
                                                "runtime_config",
                                                "megatron_core",
                                                "qalora_group_size",
                                                "fan_in_fan_out",
                                                "corda_config",
                                                "eva_config",
                                                "loftq_config",
                                                "lora_ga_config",
                                                "token_dim",
                                                "num_virtual_tokens",
                                                "num_transformer_submodules"};
  return kFields;
}

// The name of the layers' list is the only pattern that is known.
absl::Status CheckLayersPattern(const ConfigFile& file) {
  const json* pattern = file.fields.Find("layers_pattern");
  if (pattern == nullptr || AsksForNothing(*pattern)) return absl::OkStatus();
  const std::string& type = file.model.info().model_type;
  const std::string known = type == "t5" ? "block" : type == "gpt2" ? "h" : "layers";
  if (*pattern == known || *pattern == json::array({known})) return absl::OkStatus();
  return ConfigError(file.fields, "layers_pattern", known,
                     absl::StrCat(pattern->dump(), ", which is not implemented"));
}

}  // namespace

bool AsksForNothing(const json& value) {
  return value.is_null() || value == false || (value.is_structured() && value.empty());
}

absl::Status RefuseUnknown(const ConfigFile& file, const std::set<std::string>& known) {
  for (const auto& [field, value] : file.object.items()) {
    if (NeutralFields().contains(field) || known.contains(field) || AsksForNothing(value)) continue;
    return ConfigError(file.fields, field, "null or false",
                       absl::StrCat(value.dump(), ", which is not implemented"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Targets> ReadTargets(const ConfigFile& file,
                                    const std::vector<std::string>& fallback) {
  const JsonFields& fields = file.fields;
  Targets targets;
  const json* modules = fields.Find("target_modules");
  if (modules == nullptr) {
    targets.modules = fallback;
  } else if (modules->is_string()) {
    targets.modules = {modules->get<std::string>()};
    targets.modules_are_regex = targets.modules[0] != "all-linear";
  } else {
    PERMAFROST_ASSIGN_OR_RETURN(targets.modules, fields.StringList("target_modules"));
  }
  const json* excluded = fields.Find("exclude_modules");
  targets.exclude_is_regex = excluded != nullptr && excluded->is_string();
  if (targets.exclude_is_regex) {
    targets.exclude = {excluded->get<std::string>()};
  } else if (excluded != nullptr) {
    PERMAFROST_ASSIGN_OR_RETURN(targets.exclude, fields.StringList("exclude_modules"));
  }
  if (const json* layers = fields.Find("layers_to_transform"); layers != nullptr) {
    if (layers->is_number_integer()) {
      targets.layers = {layers->get<int>()};
    } else {
      PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int64_t> list,
                                  fields.IntList("layers_to_transform"));
      targets.layers.assign(list.begin(), list.end());
    }
  }
  PERMAFROST_RETURN_IF_ERROR(CheckLayersPattern(file));
  return targets;
}

void WriteTargets(const Targets& targets, nlohmann::ordered_json& object) {
  object["layers_to_transform"] = targets.layers.empty() ? json(nullptr) : json(targets.layers);
  object["exclude_modules"] = targets.exclude_is_regex  ? json(targets.exclude[0])
                              : targets.exclude.empty() ? json(nullptr)
                                                        : json(targets.exclude);
  const bool one_string = targets.modules_are_regex || targets.modules[0] == "all-linear";
  object["target_modules"] = one_string ? json(targets.modules[0]) : json(targets.modules);
}

}  // namespace permafrost
