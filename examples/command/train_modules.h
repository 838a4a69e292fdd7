// The flags of methods that put modules into the base (prefix, adapters, BitFit, parts of the base,
// UniPELT), and the configs that they describe.
#ifndef PERMAFROST_EXAMPLES_COMMAND_TRAIN_MODULES_H_
#define PERMAFROST_EXAMPLES_COMMAND_TRAIN_MODULES_H_

#include <functional>
#include <string>
#include <vector>

#include "command.h"

namespace permafrost {

struct ModuleFlags {
  // Prefix
  std::string sites, positions;
  bool projection = false;
  int64_t projection_width = 512;
  // Adapters
  std::string form = "pfeiffer", non_linearity, leave_out;
  int64_t bottleneck = 0, adapter_drop = 0;
  double adapter_scale = 0;
  // Parts of the base
  int64_t top_layers = 1;
  // UniPELT
  std::string parts = "prefix,lora,adapter", gates = "running";
  bool separate_gates = false;
};

// "a,b" as its parts; none for "".
std::vector<std::string> SplitList(const std::string& text);
// "0,1,2" of `flag`. Error: what are no layer numbers.
absl::StatusOr<std::vector<int>> ParseLayers(const std::string& flag, const std::string& text);

// Registers an option as that of some methods.
using OwnFlag = std::function<CLI::Option*(CLI::Option*, std::vector<std::string>)>;
void AddModuleFlags(CLI::App* app, ModuleFlags& flags, const OwnFlag& own);

// What the flags share with other methods.
struct SharedSettings {
  std::string method;
  int64_t virtual_tokens = 0;
  std::string init;  // of a prefix: "", "normal", "zero", "text"
  double dropout = 0;
  LoraConfig lora;  // a part of UniPELT
  Targets targets;
};
// Whether the method is one of these.
bool IsModuleMethod(const std::string& method);
// Errors: flags whose values do not fit together.
absl::StatusOr<AdapterConfig> ModuleConfig(const ModuleFlags& flags, const SharedSettings& shared,
                                           const ModelInfo& info);

// The flags by name, for run.json.
nlohmann::json ModuleSettings(const ModuleFlags& flags);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_TRAIN_MODULES_H_
