// adapter_config.json <-> AdapterConfig. Each method reads and writes its own fields
// (METHOD_config.cc); what all of them share is here and in config_reading.h.
#ifndef PERMAFROST_PEFT_ADAPTER_CONFIG_H_
#define PERMAFROST_PEFT_ADAPTER_CONFIG_H_

#include "peft/adapter_file.h"

namespace permafrost {

// Errors: unreadable JSON, an unknown peft_type, a field that changes the result and is not
// implemented.
absl::StatusOr<AdapterConfig> ParseAdapterConfig(const std::string& text, const std::string& source,
                                                 const Model& model);
std::string AdapterConfigJson(const AdapterConfig& config, const Model& model);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_ADAPTER_CONFIG_H_
