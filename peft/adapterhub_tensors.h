// The tensors of an AdapterHub file: which ones a config asks for on a base, by name and shape
// (`adapters` 1.3.0; the names follow the modules that the library hangs into the base), and strict
// reading of a file against that list.
//
// Shapes: D width, b bottleneck, r rank, P virtual tokens, L layers of a prefix group, G key/value
// heads, K head size, m width of a prefix's network.
#ifndef PERMAFROST_PEFT_ADAPTERHUB_TENSORS_H_
#define PERMAFROST_PEFT_ADAPTERHUB_TENSORS_H_

#include <string>
#include <vector>

#include "engine/tensor.h"
#include "peft/adapterhub_config.h"

namespace permafrost {

enum class HubRole {
  // of a bottleneck
  kDownWeight,  // [b, D]
  kDownBias,    // [b]
  kUpWeight,    // [D, b]
  kUpBias,      // [D]
  kNormBeforeWeight,
  kNormBeforeBias,
  kNormAfterWeight,
  kNormAfterBias,  // [D]
  kScaling,        // [1] or [D]
  // of LoRA; lora_B alone is IA3's [out, 1]. GPT-2's c_attn has n of q, k, v: A [n r, D], B [n D,
  // r]
  kLoraA,  // [r, in]
  kLoraB,  // [out, r]
  // of a bottleneck, a LoRA or an attention's prefix: [1, in] and [1]; [n, D] and [n] for c_attn,
  // [2, D] and [2] for a prefix with gates of its own for keys and values
  kGateWeight,
  kGateBias,
  // of a prefix
  kPrefixFlat,       // [P L 2 G K], in that order
  kPrefixEmbedding,  // [P, D]
  kPrefixHiddenWeight,
  kPrefixHiddenBias,  // [m, D], [m]
  kPrefixOutputWeight,
  kPrefixOutputBias,  // [L 2 G K, m], [L 2 G K]
};

struct HubTensor {
  std::string name;
  HubRole role;
  std::vector<int64_t> shape;
  size_t part = 0;  // into AdapterHubConfig::parts
  // Where it acts. A prefix table: the stack and the sublayer of its group; layer and projection
  // mean nothing.
  SiteId site;
  int linear = -1;  // index into Model::linears() of a LoRA tensor
  // Other names under which files hold the same values once more.
  std::vector<std::string> copies;
};

// In the order of the parts. Errors: a layer for which `reduction_factor` has no value, two parts
// that act on the same place, a prefix on a base whose head size is not width / heads (the library
// cannot run it), a part that acts nowhere.
absl::StatusOr<std::vector<HubTensor>> HubTensorsOf(const AdapterHubConfig& config,
                                                    const Model& model);

// The layers of a prefix group, ascending, in the numbers of its stack.
std::vector<int> HubPrefixLayers(const HubPrefix& prefix, Stack stack, const ModelInfo& info);

// The library's number of a layer.
int64_t HubLayerNumber(const SiteId& site, const ModelInfo& info);

// The field that adapts a linear; null for those that no field names, and for GPT-2's c_attn, which
// any of q, k, v adapts.
bool HubLora::*HubField(const LinearPlace& place, const ModelInfo& info);
bool HubAdapts(const HubLora& lora, const LinearPlace& place, const ModelInfo& info);

// Which of q, k, v a LoRA has on GPT-2's c_attn, as thirds of its output: 0, 1, 2.
std::vector<int> HubThirds(const HubLora& lora);

// The values of `tensors`, in their order, from a safetensors file of any float type; each
// [shape[0], the rest], vectors [1, n]. Strict: one error lists missing, unused, mis-shaped and
// differing tensors and values that are not finite. A tensor with copies may be stored under any of
// its names.
absl::StatusOr<std::vector<Tensor>> ReadHubTensors(const std::string& path,
                                                   const std::vector<HubTensor>& tensors);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_ADAPTERHUB_TENSORS_H_
