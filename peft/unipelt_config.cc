// PERMAFROST_UNIPELT: a list of the parts' own configs.
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "peft/config_reading.h"

namespace permafrost {
namespace {

absl::StatusOr<PartConfig> ReadPart(const ConfigFile& part) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::string type, part.fields.String("peft_type"));
  if (type == "PERMAFROST_PREFIX_TUNING") return ReadOwnPrefixTuningConfig(part);
  if (type == "LORA") return ReadLoraConfig(part);
  if (type == "PERMAFROST_ADAPTER") return ReadBottleneckConfig(part);
  if (type == "IA3") return ReadIa3Config(part);
  if (type == "PERMAFROST_BITFIT") return ReadBitFitConfig(part);
  return ConfigError(part.fields, "peft_type",
                     "PERMAFROST_PREFIX_TUNING, LORA, PERMAFROST_ADAPTER, IA3 or PERMAFROST_BITFIT",
                     type);
}

}  // namespace

absl::StatusOr<UniPeltConfig> ReadUniPeltConfig(const ConfigFile& file) {
  PERMAFROST_RETURN_IF_ERROR(RefuseUnknown(file, {"parts"}));
  const nlohmann::json* parts = file.fields.Find("parts");
  if (parts == nullptr || !parts->is_array() || parts->empty()) {
    return ConfigError(file.fields, "parts", "a list of configs",
                       parts == nullptr ? "none" : parts->dump());
  }
  UniPeltConfig config;
  for (size_t i = 0; i < parts->size(); ++i) {
    const JsonFields fields((*parts)[i], absl::StrCat(file.fields.source(), ": part ", i));
    const ConfigFile part{(*parts)[i], file.ordered["parts"][i], fields, file.model};
    if (!part.object.is_object()) {
      return ConfigError(file.fields, "parts", "objects", part.object.dump());
    }
    PERMAFROST_ASSIGN_OR_RETURN(PartConfig read, ReadPart(part));
    config.parts.push_back(std::move(read));
  }
  return config;
}

void WriteConfig(const UniPeltConfig& config, const Model& model, nlohmann::ordered_json& object) {
  object["peft_type"] = "PERMAFROST_UNIPELT";
  object["parts"] = nlohmann::json::array();
  for (const PartConfig& part : config.parts) {
    nlohmann::ordered_json& own = object["parts"].emplace_back(nlohmann::json::object());
    std::visit([&](const auto& method) { WriteConfig(method, model, own); }, part);
  }
}

}  // namespace permafrost
