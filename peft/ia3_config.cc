// IA3's part of adapter_config.json.
#include "engine/check.h"
#include "peft/config_reading.h"

namespace permafrost {

absl::StatusOr<Ia3Config> ReadIa3Config(const ConfigFile& file) {
  std::set<std::string> known = {"feedforward_modules", "init_ia3_weights"};
  known.insert(kTargetFields.begin(), kTargetFields.end());
  PERMAFROST_RETURN_IF_ERROR(RefuseUnknown(file, known));
  const std::string& type = file.model.info().model_type;
  Ia3Config ia3;
  PERMAFROST_ASSIGN_OR_RETURN(ia3.targets, ReadTargets(file, DefaultIa3Targets(type)));
  const nlohmann::json* feedforward = file.fields.Find("feedforward_modules");
  if (feedforward == nullptr) {
    ia3.feedforward = DefaultIa3Feedforward(type);
  } else if (feedforward->is_string()) {
    ia3.feedforward = {feedforward->get<std::string>()};
    ia3.feedforward_is_regex = true;
  } else {
    PERMAFROST_ASSIGN_OR_RETURN(ia3.feedforward, file.fields.StringList("feedforward_modules"));
  }
  return ia3;
}

void WriteConfig(const Ia3Config& ia3, const Model& model, nlohmann::ordered_json& object) {
  object["peft_type"] = "IA3";
  object["fan_in_fan_out"] = model.info().model_type == "gpt2";
  object["init_ia3_weights"] = true;
  object["feedforward_modules"] = ia3.feedforward_is_regex ? nlohmann::json(ia3.feedforward[0])
                                                           : nlohmann::json(ia3.feedforward);
  WriteTargets(ia3.targets, object);
  object.erase("layers_to_transform");  // PEFT's IA3Config has no such field
}

}  // namespace permafrost
