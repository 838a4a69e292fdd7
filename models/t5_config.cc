#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/check.h"
#include "models/config_fields.h"
#include "models/t5.h"

namespace permafrost {

std::vector<int32_t> RelativeBuckets(int64_t buckets, int64_t max_distance, bool bidirectional) {
  std::vector<int32_t> table;
  const int64_t n = bidirectional ? buckets / 2 : buckets;
  const int64_t exact = n / 2;
  for (int64_t relative = -max_distance; relative <= max_distance; ++relative) {
    const int64_t base = bidirectional && relative > 0 ? n : 0;
    const int64_t d = bidirectional ? std::abs(relative) : std::max<int64_t>(-relative, 0);
    int64_t bucket = d;
    if (d >= exact) {
      const float position = std::log(static_cast<float>(d) / static_cast<float>(exact)) /
                             static_cast<float>(std::log(static_cast<double>(max_distance) /
                                                         static_cast<double>(exact))) *
                             static_cast<float>(n - exact);
      bucket = std::min(n - 1, exact + static_cast<int64_t>(position));
    }
    table.push_back(static_cast<int32_t>(base + bucket));
  }
  return table;
}

absl::StatusOr<T5Config> ParseT5Config(const std::string& text, const std::string& source,
                                       ModelInfo& info) {
  PERMAFROST_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(text, source));
  const JsonFields config(json, source);
  T5Config t;
  PERMAFROST_ASSIGN_OR_RETURN(info.model_type, config.String("model_type"));
  PERMAFROST_ASSIGN_OR_RETURN(t.width, SizeField(config, "d_model"));
  PERMAFROST_ASSIGN_OR_RETURN(t.head_size, SizeField(config, "d_kv"));
  PERMAFROST_ASSIGN_OR_RETURN(t.feed_forward, SizeField(config, "d_ff"));
  PERMAFROST_ASSIGN_OR_RETURN(t.heads, SizeField(config, "num_heads"));
  PERMAFROST_ASSIGN_OR_RETURN(t.layers, SizeField(config, "num_layers"));
  PERMAFROST_ASSIGN_OR_RETURN(t.decoder_layers,
                              SizeFieldOr(config, "num_decoder_layers", t.layers));
  PERMAFROST_ASSIGN_OR_RETURN(t.vocabulary, SizeField(config, "vocab_size"));
  PERMAFROST_ASSIGN_OR_RETURN(t.buckets, SizeFieldOr(config, "relative_attention_num_buckets", 32));
  PERMAFROST_ASSIGN_OR_RETURN(t.max_distance,
                              SizeFieldOr(config, "relative_attention_max_distance", 128));
  if (t.buckets < 4 || t.max_distance <= t.buckets / 2) {
    return ConfigError(config, "relative_attention_max_distance",
                       "more than half of at least 4 relative_attention_num_buckets",
                       absl::StrCat(t.max_distance, " with ", t.buckets, " buckets"));
  }
  PERMAFROST_ASSIGN_OR_RETURN(const double epsilon, config.DoubleOr("layer_norm_epsilon", 1e-6));
  t.norm_epsilon = static_cast<float>(epsilon);

  PERMAFROST_ASSIGN_OR_RETURN(const std::string feed_forward,
                              config.StringOr("feed_forward_proj", "relu"));
  const std::vector<std::string> parts = absl::StrSplit(feed_forward, '-');
  t.gated = parts.size() == 2 && parts[0] == "gated";
  if (parts.size() > 2 || (parts.size() == 2 && !t.gated)) {
    return ConfigError(config, "feed_forward_proj", "an activation or gated-<activation>",
                       feed_forward);
  }
  // "gated-gelu" has always meant the tanh form.
  const std::string activation = feed_forward == "gated-gelu" ? "gelu_new" : parts.back();
  PERMAFROST_ASSIGN_OR_RETURN(
      t.activation, ParseActivation(activation, absl::StrCat(source, ": feed_forward_proj")));

  // transformers 5 stores scale_decoder_outputs; before, untied meant unscaled.
  PERMAFROST_ASSIGN_OR_RETURN(const bool tied, config.BoolOr("tie_word_embeddings", true));
  PERMAFROST_ASSIGN_OR_RETURN(t.scaled_head, config.BoolOr("scale_decoder_outputs", tied));

  PERMAFROST_RETURN_IF_ERROR(ReadTokenIds(json, config, info));
  if (info.end_tokens.empty()) info.end_tokens = {1};
  info.encoder_decoder = true;
  info.vocabulary = t.vocabulary;
  info.width = t.width;
  info.layers = t.layers;
  info.decoder_layers = t.decoder_layers;
  info.heads = info.key_heads = t.heads;
  info.head_size = t.head_size;
  return t;
}

}  // namespace permafrost
