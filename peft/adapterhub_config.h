// adapter_config.json of AdapterHub's `adapters` library (version "adapters.…"), read into plain
// structs and written from them. Fields, defaults and meaning: `adapters` 1.3.0, configuration/.
//
// Layers are numbered as there: T5's decoder layers follow the encoder's.
//
// Non-goals: Compacter (phm), invertible and AdapterFusion layers, stochastic depth, ReFT, VeRA,
// DoRA, prompt tuning (refused by name), heads, folders of the older adapter-transformers.
#ifndef PERMAFROST_PEFT_ADAPTERHUB_CONFIG_H_
#define PERMAFROST_PEFT_ADAPTERHUB_CONFIG_H_

#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "models/model.h"
#include "nlohmann/json_fwd.hpp"

namespace permafrost {

// The width of a bottleneck as the file gives it: one factor, or one for some layers and
// (optionally) one for the rest.
struct HubReduction {
  std::optional<double> otherwise;
  std::map<int64_t, double> layers;

  // The factor of a layer; nothing if the map does not name it.
  std::optional<double> FactorOf(int64_t layer) const;
};

// max(1, int(width // factor)) with Python's floor division of floating point numbers, so b agrees
// with the library for every factor. factor is positive; the result is at most 2^31.
int64_t HubBottleneckWidth(int64_t width, double factor);
// A factor from which HubBottleneckWidth gets `bottleneck` back: width / bottleneck if that does,
// else width / (bottleneck + 0.5).
double HubReductionFactor(int64_t width, int64_t bottleneck);

// With x the residual stream that a sublayer reads, s its output and A the bottleneck:
// u = scaling * A(LN_before(h)), times the gate.
// Sequential: h = x + s if original_before else s; r = s if residual_before_norm else h;
// v = LN_after(u + r) if adapter_residual_before_norm else LN_after(u) + r.
// Parallel: h = x; v = LN_after(u) + s.
// The stream goes on with v + x if original_after else v.
struct HubBottleneck {
  enum class Scaling { kFixed, kLearned, kChannel };
  bool self_attention = false, cross_attention = false, feed_forward = false;
  HubReduction reduction;
  std::string activation;
  bool parallel = false;
  Scaling scaling = Scaling::kFixed;
  double scale = 1;  // if fixed
  bool gated = false;
  bool original_before = false, original_after = true;
  bool residual_before_norm = true, adapter_residual_before_norm = false;
  bool norm_before = false, norm_after = false;
  std::set<int64_t> leave_out;
  double dropout = 0;
  std::string init = "bert";
};

// Prefixes of every self-attention of the decoder and, in T5, of the encoder's and the cross
// attention if asked for. Keys are not rotated and text positions do not move.
struct HubPrefix {
  bool encoder = true, cross = true;
  bool flat = false;
  int64_t length = 30;       // P
  int64_t bottleneck = 512;  // of the network that makes the table, unless flat
  std::string activation = "tanh";
  double dropout = 0;
  bool gated = false, shared_gate = true;
  std::set<int64_t> leave_out;
};

// LoRA (y += alpha / r * B A x, or gate * B A x), or IA3 (`rescale`: y *= l).
struct HubLora {
  bool query = true, key = false, value = true;  // of every attention
  bool intermediate = false, output = false;     // of the feed-forward (HubIntermediate)
  int64_t rank = 8;
  double alpha = 8;
  double dropout = 0;
  bool rescale = false;
  bool gated = false;
  std::set<int64_t> leave_out;
  std::string init = "lora";
};

using HubPart = std::variant<HubBottleneck, HubPrefix, HubLora>;

struct AdapterHubConfig {
  std::string name;            // in the tensors' names
  std::vector<HubPart> parts;  // several: a union
};

// Whether an adapter_config.json is AdapterHub's: it has `config` and no `peft_type`.
bool IsAdapterHubConfig(const nlohmann::json& object);

// Errors: another version than "adapters.…", an adapter of another base (model_type, hidden_size),
// a field or value that changes the result and is not implemented, all by name.
absl::StatusOr<AdapterHubConfig> ParseAdapterHubConfig(const nlohmann::json& object,
                                                       const std::string& source,
                                                       const ModelInfo& info);

// All fields that the library writes, in its order.
std::string AdapterHubConfigJson(const AdapterHubConfig& config, const ModelInfo& info);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_ADAPTERHUB_CONFIG_H_
