// Prompt tuning's part of adapter_config.json, and P-tuning's: its file holds the finished table,
// which acts like a prompt.
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "peft/config_reading.h"

namespace permafrost {

absl::Status RequireBaseSize(const ConfigFile& file, const char* field, int64_t expected) {
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t found, SizeFieldOr(file.fields, field, expected));
  if (found == expected) return absl::OkStatus();
  return ConfigError(file.fields, field, absl::StrCat(expected, " of this base"),
                     absl::StrCat(found, "; the adapter was made for another base"));
}

absl::StatusOr<PromptTuningConfig> ReadPromptTuningConfig(const ConfigFile& file) {
  const JsonFields& fields = file.fields;
  const bool encoder_decoder = file.model.info().encoder_decoder;
  PERMAFROST_ASSIGN_OR_RETURN(const std::string type, fields.String("peft_type"));
  std::set<std::string> known;
  if (type == "P_TUNING") {
    known = {"encoder_dropout", "encoder_hidden_size", "encoder_num_layers",
             "encoder_reparameterization_type"};
  }
  PERMAFROST_RETURN_IF_ERROR(RefuseUnknown(file, known));
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

}  // namespace

void WriteConfig(const PromptTuningConfig& prompt, const Model& model,
                 nlohmann::ordered_json& object) {
  object["peft_type"] = "PROMPT_TUNING";
  WritePromptFields(prompt.virtual_tokens, prompt.submodules, model.info(), object);
  object["prompt_tuning_init"] = "RANDOM";
  object["prompt_tuning_init_text"] = nullptr;
  object["tokenizer_kwargs"] = nullptr;
  object["tokenizer_name_or_path"] = nullptr;
}

void WriteConfig(const PTuningConfig& config, const Model& model, nlohmann::ordered_json& object) {
  object["peft_type"] = "P_TUNING";
  WritePromptFields(config.virtual_tokens, 1, model.info(), object);
  object["encoder_reparameterization_type"] = "MLP";
  object["encoder_hidden_size"] =
      config.encoder_width > 0 ? config.encoder_width : model.info().width;
  object["encoder_num_layers"] = 2;  // PEFT's default, which its MLP does not read
  object["encoder_dropout"] = 0.0;
}

}  // namespace permafrost
