#include "models/config_fields.h"

#include "absl/strings/str_cat.h"
#include "engine/check.h"

namespace permafrost {

absl::Status ConfigError(const JsonFields& config, const std::string& field,
                         const std::string& expected, const std::string& found) {
  return absl::InvalidArgumentError(
      absl::StrCat(config.source(), ": ", field, ": expected ", expected, ", found ", found));
}

absl::StatusOr<int64_t> SizeField(const JsonFields& config, const std::string& field) {
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t value, config.Int(field));
  if (value < 1 || value >= (int64_t{1} << 31)) {
    return ConfigError(config, field, "a positive size", absl::StrCat(value));
  }
  return value;
}

absl::StatusOr<int64_t> SizeFieldOr(const JsonFields& config, const std::string& field,
                                    int64_t fallback) {
  if (!config.Has(field)) return fallback;
  return SizeField(config, field);
}

absl::Status RequireBool(const JsonFields& config, const std::string& field, bool required) {
  PERMAFROST_ASSIGN_OR_RETURN(const bool value, config.BoolOr(field, required));
  if (value != required) {
    return ConfigError(config, field, required ? "true" : "false",
                       absl::StrCat(value ? "true" : "false", ", which is not implemented"));
  }
  return absl::OkStatus();
}

absl::Status ReadEndTokens(const JsonFields& config, ModelInfo& info) {
  const nlohmann::json* eos = config.Find("eos_token_id");
  if (eos == nullptr) return absl::OkStatus();
  std::vector<int64_t> ids(1);
  if (eos->is_array()) {
    PERMAFROST_ASSIGN_OR_RETURN(ids, config.IntList("eos_token_id"));
  } else {
    PERMAFROST_ASSIGN_OR_RETURN(ids[0], config.Int("eos_token_id"));
  }
  info.end_tokens.assign(ids.begin(), ids.end());
  return absl::OkStatus();
}

absl::Status ReadTokenIds(const nlohmann::json& json, const JsonFields& config, ModelInfo& info) {
  PERMAFROST_RETURN_IF_ERROR(ReadEndTokens(config, info));
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t pad, config.IntOr("pad_token_id", 0));
  info.pad = static_cast<int32_t>(pad);
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t start, config.IntOr("decoder_start_token_id", pad));
  info.decoder_start = static_cast<int32_t>(start);
  info.config_json = json.dump(2);
  return absl::OkStatus();
}

}  // namespace permafrost
