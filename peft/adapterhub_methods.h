// AdapterHub's configs as our methods and back: which method a config is, and where the tensors of
// its file are in the method's parameters.
#ifndef PERMAFROST_PEFT_ADAPTERHUB_METHODS_H_
#define PERMAFROST_PEFT_ADAPTERHUB_METHODS_H_

#include <vector>

#include "peft/adapter_file.h"
#include "peft/adapterhub_tensors.h"

namespace permafrost {

// transformers' name of an activation and back. Error: one that this engine does not have.
absl::StatusOr<Activation> HubActivation(const std::string& name);
std::string HubActivationName(Activation activation);

// `tensors` is HubTensorsOf(config). Error: a config that no method here computes, by name.
absl::StatusOr<AdapterConfig> MethodConfigOf(const AdapterHubConfig& config,
                                             const std::vector<HubTensor>& tensors,
                                             const Model& model);

// For each of `tensors` the parts of the parameters that it holds. `method` is of MethodConfigOf,
// or `config` is HubConfigOf it.
std::vector<FileLayout> HubLayout(const AdapterHubConfig& config,
                                  const std::vector<HubTensor>& tensors, const Method& method,
                                  const Model& model);

// The config (without a name) under which AdapterHub computes what an adapter computes. Error: what
// it has no config for.
absl::StatusOr<AdapterHubConfig> HubConfigOf(const Adapter& adapter, const Model& model);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_ADAPTERHUB_METHODS_H_
