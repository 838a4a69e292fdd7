// Prompt tuning's part of adapter_config.json, and P-tuning's: its file holds the finished table,
// which acts like a prompt.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/anchors.h"
#include "peft/config_reading.h"

namespace permafrost {

absl::Status RequireBaseSize(const ConfigFile& file, const char* field, int64_t expected) {
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t found, SizeFieldOr(file.fields, field, expected));
  if (found == expected) return absl::OkStatus();
  return ConfigError(file.fields, field, absl::StrCat(expected, " of this base"),
                     absl::StrCat(found, "; the adapter was made for another base"));
}

namespace {

constexpr int64_t kMostElements = int64_t{1} << 28;

// The fields of every prompt method: how many rows the table has.
absl::StatusOr<PromptTuningConfig> ReadTable(const ConfigFile& file) {
  const JsonFields& fields = file.fields;
  const bool encoder_decoder = file.model.info().encoder_decoder;
  PromptTuningConfig prompt;
  PERMAFROST_ASSIGN_OR_RETURN(prompt.virtual_tokens, SizeField(fields, "num_virtual_tokens"));
  if (prompt.virtual_tokens > kMostVirtualTokens) {
    return ConfigError(fields, "num_virtual_tokens", absl::StrCat("at most ", kMostVirtualTokens),
                       absl::StrCat(prompt.virtual_tokens));
  }
  PERMAFROST_ASSIGN_OR_RETURN(prompt.submodules, SizeFieldOr(fields, "num_transformer_submodules",
                                                             encoder_decoder ? 2 : 1));
  // PEFT cannot run a decoder's prompt of 2, which has rows without a place.
  if (prompt.submodules > (encoder_decoder ? 2 : 1)) {
    return ConfigError(fields, "num_transformer_submodules",
                       encoder_decoder ? "1 or 2" : "1 for this base",
                       absl::StrCat(prompt.submodules));
  }
  PERMAFROST_RETURN_IF_ERROR(RequireBaseSize(file, "token_dim", file.model.info().width));
  PERMAFROST_RETURN_IF_ERROR(RequireBaseSize(file, "num_layers", file.model.info().layers));
  return prompt;
}

// A template with as many virtual tokens as the table has.
absl::Status CheckAnchors(const JsonFields& fields, const PromptTuningConfig& prompt) {
  const auto pieces = ParseAnchors(prompt.input_template);
  if (!pieces.ok()) {
    return ConfigError(fields, "input_template", "a template with {v*N}",
                       std::string(pieces.status().message()));
  }
  if (CountVirtualTokens(*pieces) == prompt.virtual_tokens) return absl::OkStatus();
  return ConfigError(fields, "input_template",
                     absl::StrCat(prompt.virtual_tokens, " virtual tokens (num_virtual_tokens)"),
                     absl::StrCat(CountVirtualTokens(*pieces)));
}

}  // namespace

absl::StatusOr<PromptTuningConfig> ReadPromptTuningConfig(const ConfigFile& file) {
  const JsonFields& fields = file.fields;
  PERMAFROST_ASSIGN_OR_RETURN(const std::string type, fields.String("peft_type"));
  std::set<std::string> known;
  if (type == "P_TUNING") {
    known = {"encoder_dropout", "encoder_hidden_size", "encoder_num_layers",
             "encoder_reparameterization_type"};
  }
  if (type == kAnchoredPromptType) known = {"input_template"};
  PERMAFROST_RETURN_IF_ERROR(RefuseUnknown(file, known));
  PERMAFROST_ASSIGN_OR_RETURN(PromptTuningConfig prompt, ReadTable(file));
  if (type == kAnchoredPromptType) {
    PERMAFROST_ASSIGN_OR_RETURN(prompt.input_template, fields.String("input_template"));
    PERMAFROST_RETURN_IF_ERROR(CheckAnchors(fields, prompt));
  }
  return prompt;
}

absl::StatusOr<MultitaskPromptConfig> ReadMultitaskPromptConfig(const ConfigFile& file) {
  const JsonFields& fields = file.fields;
  // The shared part is a prompt's; how it was initialised is over.
  PERMAFROST_RETURN_IF_ERROR(RefuseUnknown(
      file,
      {"num_tasks", "num_ranks", "prompt_tuning_init_task", "prompt_tuning_init_state_dict_path"}));
  PERMAFROST_ASSIGN_OR_RETURN(const PromptTuningConfig shared, ReadTable(file));
  MultitaskPromptConfig config{.virtual_tokens = shared.virtual_tokens,
                               .submodules = shared.submodules};
  PERMAFROST_ASSIGN_OR_RETURN(config.tasks, SizeFieldOr(fields, "num_tasks", 1));
  PERMAFROST_ASSIGN_OR_RETURN(config.ranks, SizeFieldOr(fields, "num_ranks", 1));
  const int64_t longest =
      std::max(config.submodules * config.virtual_tokens, file.model.info().width);
  if (config.tasks > kMostElements / longest / config.ranks) {
    return ConfigError(fields, "num_tasks",
                       absl::StrCat("at most ", kMostElements, " elements of a tensor"),
                       absl::StrCat(config.tasks, " tasks of ", config.ranks, " ranks and ",
                                    longest, " rows or columns"));
  }
  return config;
}

namespace {

// The fields of every prompt method.
void WritePromptFields(int64_t virtual_tokens, int64_t submodules, const ModelInfo& info,
                       nlohmann::ordered_json& object) {
  object["num_virtual_tokens"] = virtual_tokens;
  object["num_transformer_submodules"] = submodules;
  object["token_dim"] = info.width;
  object["num_attention_heads"] = info.heads;
  object["num_layers"] = info.layers;
}

void WriteAnchors(const std::string& input_template, nlohmann::ordered_json& object) {
  object["peft_type"] = kAnchoredPromptType;
  object["input_template"] = input_template;
}

}  // namespace

void WriteConfig(const PromptTuningConfig& prompt, const Model& model,
                 nlohmann::ordered_json& object) {
  WritePromptFields(prompt.virtual_tokens, prompt.submodules, model.info(), object);
  if (!prompt.input_template.empty()) return WriteAnchors(prompt.input_template, object);
  object["peft_type"] = "PROMPT_TUNING";
  object["prompt_tuning_init"] = "RANDOM";
  object["prompt_tuning_init_text"] = nullptr;
  object["tokenizer_kwargs"] = nullptr;
  object["tokenizer_name_or_path"] = nullptr;
}

void WriteConfig(const PTuningConfig& config, const Model& model, nlohmann::ordered_json& object) {
  WritePromptFields(config.virtual_tokens, 1, model.info(), object);
  if (!config.input_template.empty()) return WriteAnchors(config.input_template, object);
  object["peft_type"] = "P_TUNING";
  const bool lstm = config.encoder == PromptEncoder::kLstm;
  object["encoder_reparameterization_type"] = lstm ? "LSTM" : "MLP";
  object["encoder_hidden_size"] =
      config.encoder_width > 0 ? config.encoder_width : model.info().width;
  // PEFT's default for the MLP, which does not read it.
  object["encoder_num_layers"] = lstm ? config.encoder_layers : 2;
  object["encoder_dropout"] = 0.0;
}

void WriteConfig(const MultitaskPromptConfig& config, const Model& model,
                 nlohmann::ordered_json& object) {
  object["peft_type"] = "MULTITASK_PROMPT_TUNING";
  WritePromptFields(config.virtual_tokens, config.submodules, model.info(), object);
  object["num_tasks"] = config.tasks;
  object["num_ranks"] = config.ranks;
  object["prompt_tuning_init"] = "RANDOM";
  object["prompt_tuning_init_task"] = 0;
}

}  // namespace permafrost
