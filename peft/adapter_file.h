// Adapter folders: adapter_config.json and adapter_model.safetensors as Hugging Face PEFT writes
// and reads them (peft-survey section 2); `full` uses the same two files with peft_type
// PERMAFROST_FULL.
#ifndef PERMAFROST_PEFT_ADAPTER_FILE_H_
#define PERMAFROST_PEFT_ADAPTER_FILE_H_

#include <string>

#include "peft/lora.h"

namespace permafrost {

enum class MethodKind { kPrompt, kLora, kFull };

// What a method is, without its tensors.
struct AdapterConfig {
  MethodKind kind = MethodKind::kPrompt;
  int64_t virtual_tokens = 0;  // prompt
  // PEFT gives sequence-to-sequence prompts 2 P rows of which the last P are never read. They are
  // kept as they are when such a file is loaded; own prompts have P rows.
  int64_t submodules = 1;
  LoraConfig lora;
};

struct Adapter {
  AdapterConfig config;
  std::shared_ptr<Method> method;  // shared with the AdapterSet that runs it
};

// A fresh method; a prompt's table [submodules * P, D] is given.
absl::StatusOr<Adapter> CreateAdapter(const AdapterConfig& config, int task, Context& c,
                                      const Model& model, Random& random, Tensor prompt);

// Strict: errors name a config field that is not implemented, every missing, unused and mis-shaped
// tensor, pickled weights, and an adapter made for another base (its shapes).
absl::StatusOr<Adapter> LoadAdapter(const std::string& folder, int task, Context& c,
                                    const Model& model);

// Creates the folder if needed and writes both files, each atomically.
absl::Status SaveAdapter(const std::string& folder, const Adapter& adapter, const Model& model);

// Replaces parameter values by the tensors of a safetensors file, strictly.
absl::Status ReadParameters(const std::string& path, Method& method);

// Adapter tensors by name as a file: values, or (`gradients`) gradients with zeros where none
// flowed.
absl::Status WriteParameters(const std::string& path, const Method& method, bool gradients);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_ADAPTER_FILE_H_
