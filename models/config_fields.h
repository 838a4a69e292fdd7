// Shared reading of config.json fields.
#ifndef PERMAFROST_MODELS_CONFIG_FIELDS_H_
#define PERMAFROST_MODELS_CONFIG_FIELDS_H_

#include "absl/status/statusor.h"
#include "io/json.h"
#include "models/model.h"
#include "nlohmann/json.hpp"

namespace permafrost {

absl::Status ConfigError(const JsonFields& config, const std::string& field,
                         const std::string& expected, const std::string& found);

// A size field: an integer in [1, 2^31).
absl::StatusOr<int64_t> SizeField(const JsonFields& config, const std::string& field);
absl::StatusOr<int64_t> SizeFieldOr(const JsonFields& config, const std::string& field,
                                    int64_t fallback);
// An error unless the field is absent, null or `required`.
absl::Status RequireBool(const JsonFields& config, const std::string& field, bool required);

// eos_token_id, an integer or a list, into `info`; absent or null changes nothing.
absl::Status ReadEndTokens(const JsonFields& config, ModelInfo& info);
// eos, pad, decoder_start into `info`.
absl::Status ReadTokenIds(const nlohmann::json& json, const JsonFields& config, ModelInfo& info);

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_CONFIG_FIELDS_H_
