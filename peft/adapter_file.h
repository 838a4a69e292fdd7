// Adapter folders: adapter_config.json and adapter_model.safetensors as Hugging Face PEFT writes
// and reads them (peft-survey section 2); `full` uses the same two files with peft_type
// PERMAFROST_FULL.
#ifndef PERMAFROST_PEFT_ADAPTER_FILE_H_
#define PERMAFROST_PEFT_ADAPTER_FILE_H_

#include <string>
#include <variant>

#include "peft/adalora.h"
#include "peft/full.h"
#include "peft/multitask_prompt.h"
#include "peft/p_tuning.h"
#include "peft/prompt_tuning.h"
#include "peft/unipelt.h"

namespace permafrost {

// What a method is, without its tensors.
using AdapterConfig = std::variant<PromptTuningConfig, PTuningConfig, PrefixTuningConfig,
                                   LoraConfig, AdaLoraConfig, Ia3Config, BottleneckConfig,
                                   BitFitConfig, FullConfig, UniPeltConfig, MultitaskPromptConfig>;

// The method's name for messages: "prompt tuning", "LoRA", "a fully trained model".
std::string MethodTitle(const AdapterConfig& config);

struct Adapter {
  AdapterConfig config;
  std::shared_ptr<Method> method;  // shared with the AdapterSet that runs it
};

// A fresh method with its paper's initial values; a prompt is uniform on [-0.5, 0.5) (Lester et al.
// 2021). Error: a target that matches nothing.
absl::StatusOr<Adapter> CreateAdapter(const AdapterConfig& config, int task, Context& c,
                                      const Model& model, Random& random);

// A soft prompt that starts from `prompt` [P, D] (prompt_init.h), in front of the text or where
// `input_template` puts it.
Adapter PromptAdapter(int task, Tensor prompt, std::string input_template = "");

// A multitask prompt whose shared table starts from `prompt` [P, D].
Adapter MultitaskPromptAdapter(int task, const MultitaskPromptConfig& config, Tensor prompt,
                               Random& random);

// The soft prompt of an adapter, or null if it is another method.
const PromptTuning* AsPrompt(const Adapter& adapter);

// Reads a PEFT folder, or one of AdapterHub (adapterhub.h).
// Strict: errors name a config field that is not implemented, every missing, unused and mis-shaped
// tensor, pickled weights, and an adapter made for another base (its shapes).
absl::StatusOr<Adapter> LoadAdapter(const std::string& folder, int task, Context& c,
                                    const Model& model);

// Creates the folder if needed and writes both files, each atomically.
absl::Status SaveAdapter(const std::string& folder, const Adapter& adapter, const Model& model);

// Replaces parameter values by the tensors of a safetensors file, strictly.
absl::Status ReadParameters(const std::string& path, Method& method);

// Gradients by the names of the adapter file that was read, zeros where none flowed.
absl::Status WriteGradients(const std::string& path, const Method& method);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_ADAPTER_FILE_H_
