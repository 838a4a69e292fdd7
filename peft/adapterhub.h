// Adapter folders of AdapterHub's `adapters` library: adapter_config.json with `config` and
// `version` "adapters.…", and adapter.safetensors. A folder becomes our methods: bottlenecks,
// prefixes, LoRA, IA3, and unions of them (docs/methods.md says what the library computes).
//
// Non-goals: pickles, heads, composition of several adapters.
#ifndef PERMAFROST_PEFT_ADAPTERHUB_H_
#define PERMAFROST_PEFT_ADAPTERHUB_H_

#include <string>

#include "peft/adapter_file.h"
#include "peft/adapterhub_config.h"

namespace permafrost {

// `object` is the folder's adapter_config.json. Strict, as LoadAdapter. The method's `source` says
// where the file's tensors are in its parameters.
absl::StatusOr<Adapter> LoadAdapterHub(const std::string& folder, const nlohmann::json& object,
                                       int task, Context& c, const Model& model);

// Creates the folder if needed and writes both files, each atomically; `name` goes into the names
// of the tensors. Errors: a name with dots; a method, a setting or targets that AdapterHub has no
// config for (says which).
absl::Status SaveAdapterHub(const std::string& folder, const std::string& name,
                            const Adapter& adapter, const Model& model);

// The gradient of a tensor of the file: [shape[0], the rest], vectors [1, n].
Tensor HubGradient(const FileLayout& tensor, const Method& method);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_ADAPTERHUB_H_
