#include "peft/adapter_config.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "models/config_fields.h"

namespace permafrost {
namespace {

using nlohmann::json;

constexpr int64_t kMostVirtualTokens = 100000;

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
                                                "ensure_weight_tying",
                                                "corda_config",
                                                "eva_config",
                                                "loftq_config",
                                                "lora_ga_config",
                                                "token_dim",
                                                "num_virtual_tokens",
                                                "num_transformer_submodules"};
  return kFields;
}

bool IsEmpty(const json& value) {
  return value.is_null() || value == false || (value.is_structured() && value.empty());
}

// Every field is neutral, in `known`, or at a value that means "off".
absl::Status RefuseUnknown(const json& object, const JsonFields& config,
                           const std::set<std::string>& known) {
  for (const auto& [field, value] : object.items()) {
    if (NeutralFields().contains(field) || known.contains(field) || IsEmpty(value)) continue;
    return ConfigError(config, field, "null or false",
                       absl::StrCat(value.dump(), ", which is not implemented"));
  }
  return absl::OkStatus();
}

absl::Status ReadTargets(const JsonFields& config, LoraConfig& lora, const Model& model) {
  const json* targets = config.Find("target_modules");
  if (targets == nullptr) {
    lora.targets = DefaultLoraTargets(model.info().model_type);
  } else if (targets->is_string()) {
    lora.targets = {targets->get<std::string>()};
    lora.targets_are_regex = lora.targets[0] != "all-linear";
  } else {
    PERMAFROST_ASSIGN_OR_RETURN(lora.targets, config.StringList("target_modules"));
  }
  const json* excluded = config.Find("exclude_modules");
  lora.exclude_is_regex = excluded != nullptr && excluded->is_string();
  if (lora.exclude_is_regex) {
    lora.exclude = {excluded->get<std::string>()};
  } else if (excluded != nullptr) {
    PERMAFROST_ASSIGN_OR_RETURN(lora.exclude, config.StringList("exclude_modules"));
  }
  if (const json* layers = config.Find("layers_to_transform"); layers != nullptr) {
    if (layers->is_number_integer()) {
      lora.layers = {layers->get<int>()};
    } else {
      PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int64_t> list,
                                  config.IntList("layers_to_transform"));
      lora.layers.assign(list.begin(), list.end());
    }
  }
  return absl::OkStatus();
}

// The name of the layers' list is the only pattern that is known.
absl::Status ReadLayersPattern(const JsonFields& config, const Model& model) {
  const json* pattern = config.Find("layers_pattern");
  if (pattern == nullptr || IsEmpty(*pattern)) return absl::OkStatus();
  const std::string& type = model.info().model_type;
  const std::string known = type == "t5" ? "block" : type == "gpt2" ? "h" : "layers";
  if (*pattern == known || *pattern == json::array({known})) return absl::OkStatus();
  return ConfigError(config, "layers_pattern", known,
                     absl::StrCat(pattern->dump(), ", which is not implemented"));
}

// A pattern field in the order of the file, which decides where several keys match.
template <class V>
absl::Status ReadPattern(const nlohmann::ordered_json& object, const JsonFields& config,
                         const char* field, std::vector<std::pair<std::string, V>>& pattern) {
  if (!config.Has(field)) return absl::OkStatus();
  const nlohmann::ordered_json& entries = object[field];
  if (!entries.is_object()) return ConfigError(config, field, "an object", entries.dump());
  for (const auto& [key, value] : entries.items()) {
    const bool fits = std::is_integral_v<V> ? value.is_number_integer() : value.is_number();
    if (!fits) {
      return ConfigError(config, field, std::is_integral_v<V> ? "whole numbers" : "numbers",
                         value.dump());
    }
    pattern.emplace_back(key, value.template get<V>());
  }
  return absl::OkStatus();
}

absl::Status ReadLora(const json& object, const std::string& text, const JsonFields& config,
                      LoraConfig& lora, const Model& model) {
  PERMAFROST_RETURN_IF_ERROR(
      RefuseUnknown(object, config,
                    {"r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules",
                     "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
                     "alpha_pattern", "bias", "init_lora_weights"}));
  PERMAFROST_ASSIGN_OR_RETURN(lora.rank, config.IntOr("r", 8));
  if (lora.rank < 1) return ConfigError(config, "r", "at least 1", absl::StrCat(lora.rank));
  PERMAFROST_ASSIGN_OR_RETURN(lora.alpha, config.DoubleOr("lora_alpha", 8));
  PERMAFROST_ASSIGN_OR_RETURN(lora.dropout, config.DoubleOr("lora_dropout", 0));
  if (!(lora.dropout >= 0 && lora.dropout < 1)) {
    return ConfigError(config, "lora_dropout", "a rate in [0, 1)", absl::StrCat(lora.dropout));
  }
  PERMAFROST_ASSIGN_OR_RETURN(lora.rslora, config.BoolOr("use_rslora", false));
  PERMAFROST_ASSIGN_OR_RETURN(const std::string bias, config.StringOr("bias", "none"));
  if (bias != "none") {
    return ConfigError(config, "bias", "none", absl::StrCat(bias, ", which is not implemented"));
  }
  // Initialisations that change the base weights cannot be read without redoing them.
  static const std::set<std::string> kPlainInits = {"gaussian", "eva", "orthogonal", "true",
                                                    "false"};
  if (const json* init = config.Find("init_lora_weights");
      init != nullptr && init->is_string() && !kPlainInits.contains(init->get<std::string>())) {
    return ConfigError(config, "init_lora_weights", "true, false, gaussian, eva or orthogonal",
                       absl::StrCat(init->get<std::string>(),
                                    ", which changes the base; convert it to plain LoRA in PEFT"));
  }
  const auto ordered = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  PERMAFROST_RETURN_IF_ERROR(ReadPattern(ordered, config, "rank_pattern", lora.rank_pattern));
  PERMAFROST_RETURN_IF_ERROR(ReadPattern(ordered, config, "alpha_pattern", lora.alpha_pattern));
  PERMAFROST_RETURN_IF_ERROR(ReadLayersPattern(config, model));
  return ReadTargets(config, lora, model);
}

absl::Status ReadPrompt(const json& object, const JsonFields& config, AdapterConfig& adapter,
                        const Model& model) {
  PERMAFROST_RETURN_IF_ERROR(RefuseUnknown(object, config, {}));
  PERMAFROST_ASSIGN_OR_RETURN(adapter.virtual_tokens, SizeField(config, "num_virtual_tokens"));
  PERMAFROST_ASSIGN_OR_RETURN(
      adapter.submodules,
      SizeFieldOr(config, "num_transformer_submodules", model.info().encoder_decoder ? 2 : 1));
  if (adapter.virtual_tokens > kMostVirtualTokens) {
    return ConfigError(config, "num_virtual_tokens", absl::StrCat("at most ", kMostVirtualTokens),
                       absl::StrCat(adapter.virtual_tokens));
  }
  // PEFT cannot run a decoder's prompt of 2, which has rows without a place.
  if (adapter.submodules > (model.info().encoder_decoder ? 2 : 1)) {
    return ConfigError(config, "num_transformer_submodules",
                       model.info().encoder_decoder ? "1 or 2" : "1 for this base",
                       absl::StrCat(adapter.submodules));
  }
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t width,
                              SizeFieldOr(config, "token_dim", model.info().width));
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t layers,
                              SizeFieldOr(config, "num_layers", model.info().layers));
  const auto require = [&](const char* field, int64_t expected, int64_t found) {
    return expected == found
               ? absl::OkStatus()
               : ConfigError(config, field, absl::StrCat(expected, " of this base"),
                             absl::StrCat(found, "; the adapter was made for another base"));
  };
  PERMAFROST_RETURN_IF_ERROR(require("token_dim", model.info().width, width));
  PERMAFROST_RETURN_IF_ERROR(require("num_layers", model.info().layers, layers));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AdapterConfig> ParseAdapterConfig(const std::string& text, const std::string& source,
                                                 const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(const json object, ParseJson(text, source));
  const JsonFields config(object, source);
  PERMAFROST_ASSIGN_OR_RETURN(const std::string type, config.String("peft_type"));
  const std::string own_task = model.info().encoder_decoder ? "SEQ_2_SEQ_LM" : "CAUSAL_LM";
  const std::string other_task = model.info().encoder_decoder ? "CAUSAL_LM" : "SEQ_2_SEQ_LM";
  PERMAFROST_ASSIGN_OR_RETURN(const std::string task, config.StringOr("task_type", own_task));
  if (task == other_task) {
    return ConfigError(config, "task_type", own_task + " for this base",
                       task + "; the adapter was made for another base");
  }
  AdapterConfig adapter;
  if (type == "PROMPT_TUNING" || type == "P_TUNING") {
    // A P-tuning file holds the finished table: it acts like a prompt.
    adapter.kind = MethodKind::kPrompt;
    json plain = object;
    for (const char* field : {"encoder_dropout", "encoder_hidden_size", "encoder_num_layers",
                              "encoder_reparameterization_type"}) {
      if (type == "P_TUNING") plain.erase(field);
    }
    PERMAFROST_RETURN_IF_ERROR(ReadPrompt(plain, config, adapter, model));
  } else if (type == "LORA") {
    adapter.kind = MethodKind::kLora;
    PERMAFROST_RETURN_IF_ERROR(ReadLora(object, text, config, adapter.lora, model));
  } else if (type == "PERMAFROST_FULL") {
    adapter.kind = MethodKind::kFull;
  } else {
    return ConfigError(config, "peft_type", "PROMPT_TUNING, P_TUNING, LORA or PERMAFROST_FULL",
                       type);
  }
  return adapter;
}

std::string AdapterConfigJson(const AdapterConfig& adapter, const Model& model) {
  const ModelInfo& info = model.info();
  nlohmann::ordered_json object = {
      {"auto_mapping", nullptr},
      {"base_model_name_or_path", info.path},
      {"inference_mode", true},
      {"peft_version", "0.21.2"},
      {"revision", nullptr},
      {"modules_to_save", nullptr},
      {"task_type", info.encoder_decoder ? "SEQ_2_SEQ_LM" : "CAUSAL_LM"}};
  switch (adapter.kind) {
    case MethodKind::kPrompt:
      object["peft_type"] = "PROMPT_TUNING";
      object["num_virtual_tokens"] = adapter.virtual_tokens;
      object["num_transformer_submodules"] = adapter.submodules;
      object["token_dim"] = info.width;
      object["num_attention_heads"] = info.heads;
      object["num_layers"] = info.layers;
      object["prompt_tuning_init"] = "RANDOM";
      object["prompt_tuning_init_text"] = nullptr;
      object["tokenizer_kwargs"] = nullptr;
      object["tokenizer_name_or_path"] = nullptr;
      break;
    case MethodKind::kLora: {
      const LoraConfig& lora = adapter.lora;
      object["peft_type"] = "LORA";
      object["r"] = lora.rank;
      object["lora_alpha"] = lora.alpha;
      if (lora.alpha == static_cast<double>(static_cast<int64_t>(lora.alpha))) {
        object["lora_alpha"] = static_cast<int64_t>(lora.alpha);
      }
      object["lora_dropout"] = lora.dropout;
      object["use_rslora"] = lora.rslora;
      object["bias"] = "none";
      object["fan_in_fan_out"] = info.model_type == "gpt2";
      object["init_lora_weights"] = true;
      object["rank_pattern"] = json::object();
      for (const auto& [key, rank] : lora.rank_pattern) object["rank_pattern"][key] = rank;
      object["alpha_pattern"] = json::object();
      for (const auto& [key, alpha] : lora.alpha_pattern) object["alpha_pattern"][key] = alpha;
      object["layers_to_transform"] = lora.layers.empty() ? json(nullptr) : json(lora.layers);
      object["exclude_modules"] = lora.exclude_is_regex  ? json(lora.exclude[0])
                                  : lora.exclude.empty() ? json(nullptr)
                                                         : json(lora.exclude);
      const bool one_string = lora.targets_are_regex || lora.targets[0] == "all-linear";
      object["target_modules"] = one_string ? json(lora.targets[0]) : json(lora.targets);
      break;
    }
    case MethodKind::kFull:
      object["peft_type"] = "PERMAFROST_FULL";
      break;
  }
  return object.dump(2) + "\n";
}

}  // namespace permafrost
