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

// PEFT's default targets: the norms by the last part of their modules' names.
std::vector<std::string> NormModules(const std::string& model_type) {
  if (model_type == "t5") return {"layer_norm", "final_layer_norm"};
  if (model_type == "gpt2") return {"ln_1", "ln_2", "ln_f"};
  return {"input_layernorm", "post_attention_layernorm", "norm"};
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
  const std::vector<std::string> all = NormModules(file.model.info().model_type);
  const nlohmann::json* modules = file.fields.Find("target_modules");
  if (modules != nullptr && !modules->is_null()) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<std::string> named,
                                file.fields.StringList("target_modules"));
    const std::set<std::string> expected(all.begin(), all.end());
    if (std::set<std::string>(named.begin(), named.end()) != expected) {
      return ConfigError(file.fields, "target_modules",
                         absl::StrCat("all norms of this base (", nlohmann::json(all).dump(), ")"),
                         modules->dump());
    }
  }
  FullConfig norms;
  norms.part = FullConfig::Part::kNorms;
  return norms;
}

void WriteConfig(const FullConfig& full, const Model& model, nlohmann::ordered_json& object) {
  if (full.part == FullConfig::Part::kNorms) {
    object["peft_type"] = "LN_TUNING";
    object["target_modules"] = NormModules(model.info().model_type);
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
