#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "models/config_fields.h"
#include "models/decoder.h"
#include "models/t5.h"
#include "models/weight_source.h"

namespace permafrost {

absl::StatusOr<std::unique_ptr<Model>> BuildModel(Context& c, const BaseFiles& files) {
  PERMAFROST_ASSIGN_OR_RETURN(const nlohmann::json json,
                              ParseJson(files.config_json, files.config_source));
  const JsonFields config(json, files.config_source);
  PERMAFROST_ASSIGN_OR_RETURN(const std::string type, config.String("model_type"));
  if (type == "t5") return T5::Load(c, files);
  if (type == "llama" || type == "mistral" || type == "qwen2" || type == "gpt2") {
    return Decoder::Load(c, files);
  }
  return ConfigError(config, "model_type", "t5, llama, mistral, qwen2 or gpt2", type);
}

absl::StatusOr<std::unique_ptr<Model>> OpenModel(Context& c, const std::string& path) {
  PERMAFROST_ASSIGN_OR_RETURN(const BaseFiles files, OpenBaseFiles(path));
  PERMAFROST_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, BuildModel(c, files));
  return model;
}

}  // namespace permafrost
