#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "models/config_fields.h"
#include "models/decoder.h"

namespace permafrost {
namespace {

// transformers 5 writes rope_parameters, 4 wrote rope_theta and rope_scaling.
absl::Status ReadRope(const JsonFields& config, DecoderConfig& d) {
  PERMAFROST_ASSIGN_OR_RETURN(d.rope_theta, config.DoubleOr("rope_theta", 10000.0));
  for (const char* field : {"rope_parameters", "rope_scaling"}) {
    const nlohmann::json* object = config.Find(field);
    if (object == nullptr) continue;
    if (!object->is_object()) {
      return ConfigError(config, field, "an object", DescribeJson(*object));
    }
    const JsonFields rope(*object, absl::StrCat(config.source(), ": ", field));
    PERMAFROST_ASSIGN_OR_RETURN(d.rope_theta, rope.DoubleOr("rope_theta", d.rope_theta));
    PERMAFROST_ASSIGN_OR_RETURN(const std::string old_type, rope.StringOr("type", "default"));
    PERMAFROST_ASSIGN_OR_RETURN(const std::string type, rope.StringOr("rope_type", old_type));
    if (type != "default") {
      return ConfigError(rope, "rope_type", "default",
                         absl::StrCat(type, ", which is not implemented"));
    }
    PERMAFROST_ASSIGN_OR_RETURN(const double partial, rope.DoubleOr("partial_rotary_factor", 1.0));
    if (partial != 1.0) {
      return ConfigError(rope, "partial_rotary_factor", "1", absl::StrCat(partial));
    }
  }
  if (!(d.rope_theta > 0)) {
    return ConfigError(config, "rope_theta", "a positive number", absl::StrCat(d.rope_theta));
  }
  return absl::OkStatus();
}

// A window shorter than the longest input would change results: it limits the length instead.
absl::Status ReadSlidingWindow(const JsonFields& config, DecoderConfig& d, ModelInfo& info) {
  if (!config.Has("sliding_window")) return absl::OkStatus();
  bool active = info.model_type == "mistral";
  if (info.model_type == "qwen2") {
    PERMAFROST_ASSIGN_OR_RETURN(active, config.BoolOr("use_sliding_window", false));
  }
  if (config.Has("layer_types")) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<std::string> types,
                                config.StringList("layer_types"));
    active = false;
    for (const std::string& type : types) {
      if (type == "sliding_attention") {
        active = true;
      } else if (type != "full_attention") {
        return ConfigError(config, "layer_types", "full_attention or sliding_attention", type);
      }
    }
  }
  if (!active) return absl::OkStatus();
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t window, SizeField(config, "sliding_window"));
  if (window < d.max_positions) {
    d.max_positions = window;
    info.position_limit = "sliding_window";
  }
  return absl::OkStatus();
}

absl::Status ReadLlama(const JsonFields& config, DecoderConfig& d, ModelInfo& info) {
  PERMAFROST_ASSIGN_OR_RETURN(d.hidden, SizeField(config, "hidden_size"));
  PERMAFROST_ASSIGN_OR_RETURN(d.intermediate, SizeField(config, "intermediate_size"));
  PERMAFROST_ASSIGN_OR_RETURN(d.layers, SizeField(config, "num_hidden_layers"));
  PERMAFROST_ASSIGN_OR_RETURN(d.heads, SizeField(config, "num_attention_heads"));
  PERMAFROST_ASSIGN_OR_RETURN(d.key_heads, SizeFieldOr(config, "num_key_value_heads", d.heads));
  PERMAFROST_ASSIGN_OR_RETURN(
      d.head_size, SizeFieldOr(config, "head_dim", std::max<int64_t>(1, d.hidden / d.heads)));
  PERMAFROST_ASSIGN_OR_RETURN(d.max_positions,
                              SizeFieldOr(config, "max_position_embeddings", 2048));
  info.position_limit = "max_position_embeddings";
  PERMAFROST_ASSIGN_OR_RETURN(const double epsilon, config.DoubleOr("rms_norm_eps", 1e-6));
  d.norm_epsilon = static_cast<float>(epsilon);
  PERMAFROST_ASSIGN_OR_RETURN(const std::string act, config.StringOr("hidden_act", "silu"));
  PERMAFROST_ASSIGN_OR_RETURN(d.activation,
                              ParseActivation(act, absl::StrCat(config.source(), ": hidden_act")));
  // Only Llama has these fields; the others' biases are fixed.
  d.query_key_value_bias = info.model_type == "qwen2";
  if (info.model_type == "llama") {
    PERMAFROST_ASSIGN_OR_RETURN(d.query_key_value_bias, config.BoolOr("attention_bias", false));
    d.output_bias = d.query_key_value_bias;
    PERMAFROST_ASSIGN_OR_RETURN(d.mlp_bias, config.BoolOr("mlp_bias", false));
  }
  if (d.head_size % 2 != 0) {
    return ConfigError(config, "head_dim", "an even number", absl::StrCat(d.head_size));
  }
  PERMAFROST_RETURN_IF_ERROR(ReadRope(config, d));
  return ReadSlidingWindow(config, d, info);
}

absl::Status ReadGpt2(const JsonFields& config, DecoderConfig& d, ModelInfo& info) {
  d.gpt2 = true;
  PERMAFROST_ASSIGN_OR_RETURN(d.hidden, SizeField(config, "n_embd"));
  PERMAFROST_ASSIGN_OR_RETURN(d.intermediate, SizeFieldOr(config, "n_inner", 4 * d.hidden));
  PERMAFROST_ASSIGN_OR_RETURN(d.layers, SizeField(config, "n_layer"));
  PERMAFROST_ASSIGN_OR_RETURN(d.heads, SizeField(config, "n_head"));
  d.key_heads = d.heads;
  d.head_size = std::max<int64_t>(1, d.hidden / d.heads);
  if (d.hidden % d.heads != 0) {
    return ConfigError(config, "n_head", absl::StrCat("a divisor of n_embd ", d.hidden),
                       absl::StrCat(d.heads));
  }
  PERMAFROST_ASSIGN_OR_RETURN(d.max_positions, SizeFieldOr(config, "n_positions", 1024));
  info.position_limit = "n_positions";
  PERMAFROST_ASSIGN_OR_RETURN(const double epsilon, config.DoubleOr("layer_norm_epsilon", 1e-5));
  d.norm_epsilon = static_cast<float>(epsilon);
  PERMAFROST_ASSIGN_OR_RETURN(const std::string act,
                              config.StringOr("activation_function", "gelu_new"));
  PERMAFROST_ASSIGN_OR_RETURN(
      d.activation, ParseActivation(act, absl::StrCat(config.source(), ": activation_function")));
  PERMAFROST_RETURN_IF_ERROR(RequireBool(config, "scale_attn_by_inverse_layer_idx", false));
  PERMAFROST_RETURN_IF_ERROR(RequireBool(config, "add_cross_attention", false));
  PERMAFROST_ASSIGN_OR_RETURN(d.scale_attention, config.BoolOr("scale_attn_weights", true));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DecoderConfig> ParseDecoderConfig(const std::string& text, const std::string& source,
                                                 ModelInfo& info) {
  PERMAFROST_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(text, source));
  const JsonFields config(json, source);
  DecoderConfig d;
  PERMAFROST_ASSIGN_OR_RETURN(info.model_type, config.String("model_type"));
  PERMAFROST_ASSIGN_OR_RETURN(d.vocabulary, SizeField(config, "vocab_size"));
  PERMAFROST_RETURN_IF_ERROR(info.model_type == "gpt2" ? ReadGpt2(config, d, info)
                                                       : ReadLlama(config, d, info));
  if (d.heads % d.key_heads != 0) {
    return ConfigError(config, "num_key_value_heads",
                       absl::StrCat("a divisor of num_attention_heads ", d.heads),
                       absl::StrCat(d.key_heads));
  }
  PERMAFROST_ASSIGN_OR_RETURN(d.tied,
                              config.BoolOr("tie_word_embeddings", info.model_type == "gpt2"));
  PERMAFROST_RETURN_IF_ERROR(ReadTokenIds(json, config, info));
  info.vocabulary = d.vocabulary;
  info.width = d.hidden;
  info.layers = info.decoder_layers = d.layers;
  info.heads = d.heads;
  info.key_heads = d.key_heads;
  info.head_size = d.head_size;
  info.max_positions = d.max_positions;
  return d;
}

}  // namespace permafrost
