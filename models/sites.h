// The places in a transformer where a method may act, as enums. A model knows its places and no
// method; a method knows places and no model.
#ifndef PERMAFROST_MODELS_SITES_H_
#define PERMAFROST_MODELS_SITES_H_

#include <cstdint>
#include <string>

namespace permafrost {

enum class Stack { kEncoder, kDecoder };
enum class Sublayer { kSelfAttention, kCrossAttention, kFeedForward };
enum class Projection { kQuery, kKey, kValue, kFusedQueryKeyValue, kOutput, kGate, kUp, kDown };

struct SiteId {
  Stack stack = Stack::kDecoder;
  int layer = 0;
  Sublayer sublayer = Sublayer::kSelfAttention;
  Projection projection = Projection::kQuery;
};

// Identifies a base tensor within its model: an index into Model::tensors().
using TensorId = int;
inline constexpr TensorId kNoTensor = -1;

// A linear as methods see it.
struct LinearPlace {
  SiteId site;
  std::string module;  // Hugging Face's module path, "model.layers.0.self_attn.q_proj"
  int index = 0;       // into Model::linears()
  int64_t inputs = 0;
  int64_t outputs = 0;
  bool conv1d = false;  // GPT-2 stores the weight as [inputs, outputs] (PEFT's fan_in_fan_out)
  TensorId weight = kNoTensor;
  TensorId bias = kNoTensor;
};

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_SITES_H_
