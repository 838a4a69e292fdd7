#include "peft/adapter_config.h"

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "peft/config_reading.h"

namespace permafrost {
namespace {

const char* TaskType(bool encoder_decoder) {
  return encoder_decoder ? "SEQ_2_SEQ_LM" : "CAUSAL_LM";
}

absl::Status CheckTaskType(const ConfigFile& file) {
  const bool encoder_decoder = file.model.info().encoder_decoder;
  const std::string own = TaskType(encoder_decoder);
  PERMAFROST_ASSIGN_OR_RETURN(const std::string task, file.fields.StringOr("task_type", own));
  if (task != TaskType(!encoder_decoder)) return absl::OkStatus();
  return ConfigError(file.fields, "task_type", own + " for this base",
                     task + "; the adapter was made for another base");
}

}  // namespace

absl::StatusOr<AdapterConfig> ParseAdapterConfig(const std::string& text, const std::string& source,
                                                 const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(const nlohmann::json object, ParseJson(text, source));
  // The text has been checked: it is JSON.
  const auto ordered = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  const JsonFields fields(object, source);
  const ConfigFile file{object, ordered, fields, model};
  PERMAFROST_ASSIGN_OR_RETURN(const std::string type, fields.String("peft_type"));
  PERMAFROST_RETURN_IF_ERROR(CheckTaskType(file));
  if (type == "PROMPT_TUNING" || type == "P_TUNING") return ReadPromptTuningConfig(file);
  if (type == "LORA") return ReadLoraConfig(file);
  if (type == "ADALORA") return ReadAdaLoraConfig(file);
  if (type == "IA3") return ReadIa3Config(file);
  if (type == "PREFIX_TUNING") return ReadPrefixTuningConfig(file);
  if (type == "LN_TUNING") return ReadNormTuningConfig(file);
  if (type == "PERMAFROST_PREFIX_TUNING") return ReadOwnPrefixTuningConfig(file);
  if (type == "PERMAFROST_ADAPTER") return ReadBottleneckConfig(file);
  if (type == "PERMAFROST_BITFIT") return ReadBitFitConfig(file);
  if (type == "PERMAFROST_FULL") return ReadFullConfig(file);
  if (type == "PERMAFROST_UNIPELT") return ReadUniPeltConfig(file);
  if (type == kAnchoredPromptType) return ReadPromptTuningConfig(file);
  if (type == "MULTITASK_PROMPT_TUNING") return ReadMultitaskPromptConfig(file);
  return ConfigError(
      fields, "peft_type",
      "PROMPT_TUNING, P_TUNING, MULTITASK_PROMPT_TUNING, PREFIX_TUNING, LORA, ADALORA, IA3, "
      "LN_TUNING or PERMAFROST_{ANCHORED_PROMPT, PREFIX_TUNING, ADAPTER, BITFIT, FULL, UNIPELT}",
      type);
}

std::string AdapterConfigJson(const AdapterConfig& config, const Model& model) {
  const ModelInfo& info = model.info();
  nlohmann::ordered_json object = {{"auto_mapping", nullptr},
                                   {"base_model_name_or_path", info.path},
                                   {"inference_mode", true},
                                   {"peft_version", "0.21.2"},
                                   {"revision", nullptr},
                                   {"modules_to_save", nullptr},
                                   {"task_type", TaskType(info.encoder_decoder)}};
  std::visit([&](const auto& method) { WriteConfig(method, model, object); }, config);
  return object.dump(2) + "\n";
}

}  // namespace permafrost
