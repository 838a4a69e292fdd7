// What the methods' config readers share. A reader takes the parsed file and returns its config; a
// field that changes the result and is not implemented is an error that names it.
#ifndef PERMAFROST_PEFT_CONFIG_READING_H_
#define PERMAFROST_PEFT_CONFIG_READING_H_

#include <set>
#include <string>

#include "models/config_fields.h"
#include "peft/adalora.h"
#include "peft/full.h"
#include "peft/multitask_prompt.h"
#include "peft/p_tuning.h"
#include "peft/prompt_tuning.h"
#include "peft/unipelt.h"

namespace permafrost {

// An adapter_config.json: its fields, and the same in the order of the file.
struct ConfigFile {
  const nlohmann::json& object;
  const nlohmann::ordered_json& ordered;
  const JsonFields& fields;
  const Model& model;
};

// Whether a field is null, false or empty: it asks for nothing.
bool AsksForNothing(const nlohmann::json& value);

// Every field is one that changes nothing, or in `known`, or asks for nothing.
absl::Status RefuseUnknown(const ConfigFile& file, const std::set<std::string>& known);

// The fields target_modules (default: `fallback`), exclude_modules, layers_to_transform and
// layers_pattern.
absl::StatusOr<Targets> ReadTargets(const ConfigFile& file,
                                    const std::vector<std::string>& fallback);
inline const std::set<std::string> kTargetFields = {"target_modules", "exclude_modules",
                                                    "layers_to_transform", "layers_pattern"};
void WriteTargets(const Targets& targets, nlohmann::ordered_json& object);

inline constexpr int64_t kMostVirtualTokens = 100000;
// The size field is absent or `expected`; otherwise the adapter was made for another base.
absl::Status RequireBaseSize(const ConfigFile& file, const char* field, int64_t expected);

// Prompt tuning and P-tuning with virtual tokens among the text's: PEFT has no such method.
inline constexpr char kAnchoredPromptType[] = "PERMAFROST_ANCHORED_PROMPT";

absl::StatusOr<PromptTuningConfig> ReadPromptTuningConfig(const ConfigFile& file);
void WriteConfig(const PromptTuningConfig& config, const Model& model,
                 nlohmann::ordered_json& object);
void WriteConfig(const PTuningConfig& config, const Model& model, nlohmann::ordered_json& object);
absl::StatusOr<MultitaskPromptConfig> ReadMultitaskPromptConfig(const ConfigFile& file);
void WriteConfig(const MultitaskPromptConfig& config, const Model& model,
                 nlohmann::ordered_json& object);
absl::StatusOr<LoraConfig> ReadLoraConfig(const ConfigFile& file);
void WriteConfig(const LoraConfig& config, const Model& model, nlohmann::ordered_json& object);
absl::StatusOr<AdaLoraConfig> ReadAdaLoraConfig(const ConfigFile& file);
void WriteConfig(const AdaLoraConfig& config, const Model& model, nlohmann::ordered_json& object);
absl::StatusOr<Ia3Config> ReadIa3Config(const ConfigFile& file);
void WriteConfig(const Ia3Config& config, const Model& model, nlohmann::ordered_json& object);
// PEFT's format, and our own of several groups and gates.
absl::StatusOr<PrefixTuningConfig> ReadPrefixTuningConfig(const ConfigFile& file);
absl::StatusOr<PrefixTuningConfig> ReadOwnPrefixTuningConfig(const ConfigFile& file);
void WriteConfig(const PrefixTuningConfig& config, const Model& model,
                 nlohmann::ordered_json& object);
absl::StatusOr<BottleneckConfig> ReadBottleneckConfig(const ConfigFile& file);
void WriteConfig(const BottleneckConfig& config, const Model& model,
                 nlohmann::ordered_json& object);
absl::StatusOr<FullConfig> ReadFullConfig(const ConfigFile& file);
absl::StatusOr<FullConfig> ReadNormTuningConfig(const ConfigFile& file);
void WriteConfig(const FullConfig& config, const Model& model, nlohmann::ordered_json& object);
absl::StatusOr<BitFitConfig> ReadBitFitConfig(const ConfigFile& file);
void WriteConfig(const BitFitConfig& config, const Model& model, nlohmann::ordered_json& object);
absl::StatusOr<UniPeltConfig> ReadUniPeltConfig(const ConfigFile& file);
void WriteConfig(const UniPeltConfig& config, const Model& model, nlohmann::ordered_json& object);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_CONFIG_READING_H_
