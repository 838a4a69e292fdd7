// The flags that choose a method and its settings, and the adapter that they describe.
#ifndef PERMAFROST_EXAMPLES_COMMAND_TRAIN_METHOD_H_
#define PERMAFROST_EXAMPLES_COMMAND_TRAIN_METHOD_H_

#include <string>
#include <vector>

#include "command.h"
#include "data.h"
#include "train_modules.h"

namespace permafrost {

struct MethodFlags {
  std::string method, init_adapter;
  // Prompt, P-tuning
  int64_t virtual_tokens = 0, encoder_width = 0, encoder_layers = 2;
  std::string encoder = "mlp";
  std::string init, init_text, init_file;
  double init_range = 0.5;
  std::string input_template;  // --input, if it has {v*N}
  int64_t num_tasks = 0, num_ranks = 1;
  // LoRA, IA3
  int64_t rank = 8;
  double alpha = 16, dropout = 0;
  bool rslora = false, lora_bias = false;
  std::string targets, exclude, layers, init_lora = "default", bias = "none", modules_to_save;
  double lora_plus_ratio = 1;
  ModuleFlags modules;

  // The flags that some methods have and others do not.
  struct Owned {
    const CLI::Option* option;
    std::vector<std::string> methods;
  };
  std::vector<Owned> owned;
};
void AddMethodFlags(CLI::App* app, MethodFlags& flags);

// Errors: neither or both of --method and --init-adapter; a flag of another method.
absl::Status CheckMethodFlags(const MethodFlags& flags);

// The config of any method but prompt, whose table comes from --init. CheckMethodFlags has passed.
// Errors: as ModuleConfig.
absl::StatusOr<AdapterConfig> ConfigOf(const MethodFlags& flags, const ModelInfo& info);

// A fresh adapter, or the one of --init-adapter. Fills in the settings that were left open.
absl::StatusOr<Adapter> MakeAdapter(MethodFlags& flags, const DataFlags& data, int64_t seed,
                                    int task, Session& session);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_TRAIN_METHOD_H_
