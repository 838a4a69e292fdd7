// The configs of methods that train the base's own tensors: PEFT's LN_TUNING, PERMAFROST_FULL and
// PERMAFROST_BITFIT.
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "peft/config_visitor.h"

namespace permafrost {
namespace {

template <class Config, class Visitor>
void VisitFields(Config& full, Visitor& visit) {
  visit.template Choice<FullConfig::Part>("part", full.part,
                                          {{"all", FullConfig::Part::kAll},
                                           {"head", FullConfig::Part::kHead},
                                           {"top-layers", FullConfig::Part::kTopLayers}});
  visit("layers", full.layers);
}

// PEFT's default targets of LN_TUNING by model type.
std::vector<std::string> PeftNorms(const std::string& model_type) {
  if (model_type == "t5") return {"layer_norm", "final_layer_norm"};
  if (model_type == "gpt2") return {"ln_1", "ln_2", "ln_f"};
  if (model_type == "qwen2") return {"post_attention_layernorm"};
  return {"input_layernorm", "post_attention_layernorm", "norm"};
}

// Ends of the names of all norms' modules.
std::vector<std::string> AllNorms(const Model& model) {
  std::set<std::string> names;
  for (const TensorId id : NormTensors(model)) {
    const std::string& tensor = model.tensors()[static_cast<size_t>(id)].name;
    const std::string module = tensor.substr(0, tensor.rfind('.'));
    names.insert(module.substr(module.rfind('.') + 1));
  }
  return {names.begin(), names.end()};
}

}  // namespace

absl::StatusOr<FullConfig> ReadFullConfig(const ConfigFile& file) {
  FullConfig full;
  FieldReader reader(file);
  VisitFields(full, reader);
  PERMAFROST_RETURN_IF_ERROR(reader.Finish());
  return full;
}

absl::StatusOr<FullConfig> ReadNormTuningConfig(const ConfigFile& file) {
  PERMAFROST_RETURN_IF_ERROR(RefuseUnknown(file, {"target_modules"}));
  FullConfig norms;
  norms.part = FullConfig::Part::kNorms;
  norms.norms = PeftNorms(file.model.info().model_type);
  if (file.fields.Has("target_modules")) {
    PERMAFROST_ASSIGN_OR_RETURN(norms.norms, file.fields.StringList("target_modules"));
  }
  return norms;
}

void WriteConfig(const FullConfig& full, const Model& model, nlohmann::ordered_json& object) {
  if (full.part == FullConfig::Part::kNorms) {
    object["peft_type"] = "LN_TUNING";
    object["target_modules"] = full.norms.empty() ? AllNorms(model) : full.norms;
    return;
  }
  object["peft_type"] = "PERMAFROST_FULL";
  FieldWriter writer(object);
  VisitFields(full, writer);
}

absl::StatusOr<BitFitConfig> ReadBitFitConfig(const ConfigFile& file) {
  BitFitConfig config;
  FieldReader reader(file);
  reader("target_modules", config.targets);
  PERMAFROST_RETURN_IF_ERROR(reader.Finish());
  return config;
}

void WriteConfig(const BitFitConfig& config, const Model&, nlohmann::ordered_json& object) {
  object["peft_type"] = "PERMAFROST_BITFIT";
  FieldWriter writer(object);
  writer("target_modules", config.targets);
}

}  // namespace permafrost
