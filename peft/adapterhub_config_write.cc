// The writing half of adapterhub_config.h.
#include <cmath>

#include "nlohmann/json.hpp"
#include "peft/adapterhub_config.h"

namespace permafrost {
namespace {

using nlohmann::json;

// A number of the library that it writes without a point where it is whole.
json Number(double value) {
  constexpr double kExact = 9e15;
  if (value == std::floor(value) && std::abs(value) < kExact) return static_cast<int64_t>(value);
  return value;
}

json Reduction(const HubReduction& reduction) {
  if (reduction.layers.empty() && reduction.otherwise.has_value()) {
    return Number(*reduction.otherwise);
  }
  json map = json::object();
  for (const auto& [layer, factor] : reduction.layers) map[std::to_string(layer)] = Number(factor);
  if (reduction.otherwise.has_value()) map["default"] = Number(*reduction.otherwise);
  return map;
}

json Part(const HubBottleneck& b) {
  json scaling = b.scale;  // with a point: the library takes no integer here
  if (b.scaling == HubBottleneck::Scaling::kLearned) scaling = "learned";
  if (b.scaling == HubBottleneck::Scaling::kChannel) scaling = "channel";
  return {{"adapter_residual_before_ln", b.adapter_residual_before_norm},
          {"cross_adapter", b.cross_attention},
          {"dropout", b.dropout},
          {"factorized_phm_W", true},
          {"factorized_phm_rule", false},
          {"hypercomplex_nonlinearity", "glorot-uniform"},
          {"init_weights", b.init},
          {"init_weights_seed", nullptr},
          {"inv_adapter", nullptr},
          {"inv_adapter_reduction_factor", nullptr},
          {"is_parallel", b.parallel},
          {"learn_phm", true},
          {"leave_out", b.leave_out},
          {"ln_after", b.norm_after},
          {"ln_before", b.norm_before},
          {"mh_adapter", b.self_attention},
          {"non_linearity", b.activation},
          {"original_ln_after", b.original_after},
          {"original_ln_before", b.original_before},
          {"output_adapter", b.feed_forward},
          {"phm_bias", true},
          {"phm_c_init", "normal"},
          {"phm_dim", 4},
          {"phm_init_range", 0.0001},
          {"phm_layer", false},
          {"phm_rank", 1},
          {"reduction_factor", Reduction(b.reduction)},
          {"residual_before_ln", b.residual_before_norm},
          {"scaling", scaling},
          {"shared_W_phm", false},
          {"shared_phm_rule", true},
          {"stochastic_depth", 0.0},
          {"use_gating", b.gated}};
}

json Part(const HubPrefix& p) {
  return {{"architecture", "prefix_tuning"}, {"bottleneck_size", p.bottleneck},
          {"cross_prefix", p.cross},         {"dropout", p.dropout},
          {"encoder_prefix", p.encoder},     {"flat", p.flat},
          {"init_weights_seed", nullptr},    {"leave_out", p.leave_out},
          {"non_linearity", p.activation},   {"prefix_length", p.length},
          {"shared_gating", p.shared_gate},  {"use_gating", p.gated}};
}

json Part(const HubLora& lora) {
  json matrices = json::array();
  if (lora.query) matrices.push_back("q");
  if (lora.key) matrices.push_back("k");
  if (lora.value) matrices.push_back("v");
  return {{"alpha", Number(lora.alpha)},
          {"architecture", "lora"},
          {"attn_matrices", matrices},
          {"composition_mode", lora.rescale ? "scale" : "add"},
          {"dropout", lora.dropout},
          {"dtype", nullptr},
          {"init_weights", lora.init},
          {"init_weights_seed", nullptr},
          {"intermediate_lora", lora.intermediate},
          {"leave_out", lora.leave_out},
          {"output_lora", lora.output},
          {"r", lora.rank},
          {"selfattn_lora", lora.query || lora.key || lora.value},
          {"use_dora", false},
          {"use_gating", lora.gated},
          {"vera_b", nullptr},
          {"vera_d", nullptr}};
}

std::string ModelClass(const std::string& model_type) {
  if (model_type == "t5") return "T5ForConditionalGeneration";
  if (model_type == "gpt2") return "GPT2LMHeadModel";
  if (model_type == "mistral") return "MistralForCausalLM";
  return model_type == "qwen2" ? "Qwen2ForCausalLM" : "LlamaForCausalLM";
}

}  // namespace

std::string AdapterHubConfigJson(const AdapterHubConfig& config, const ModelInfo& info) {
  json parts = json::array();
  for (const HubPart& part : config.parts) {
    parts.push_back(std::visit([](const auto& p) { return Part(p); }, part));
  }
  const json method =
      config.parts.size() == 1 ? parts[0] : json{{"architecture", "union"}, {"configs", parts}};
  return json{{"config", method},
              {"hidden_size", info.width},
              {"model_class", ModelClass(info.model_type)},
              {"model_name", info.path},
              {"model_type", info.model_type},
              {"name", config.name},
              {"version", "adapters.1.3.0"}}
             .dump(2) +
         "\n";
}

}  // namespace permafrost
