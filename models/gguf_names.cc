#include "models/gguf_names.h"

#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "nlohmann/json.hpp"

namespace permafrost {

absl::StatusOr<std::string> GgufConfigJson(const GgufFile& file) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::string architecture, file.String("general.architecture"));
  if (architecture != "llama") {
    return absl::InvalidArgumentError(
        absl::StrCat(file.source(), ": general.architecture: expected llama, found ", architecture,
                     "; convert the model to a Hugging Face folder instead"));
  }
  const std::string rope = "llama.rope.scaling.type";
  PERMAFROST_ASSIGN_OR_RETURN(const std::string scaling, file.StringOr(rope, "none"));
  if (scaling != "none" || file.Has("rope_freqs.weight")) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.source(), ": ", rope, ": expected none, found ", scaling));
  }
  nlohmann::json config;
  config["model_type"] = "llama";
  config["architectures"] = {"LlamaForCausalLM"};
  config["hidden_act"] = "silu";
  const std::vector<std::pair<const char*, const char*>> integers = {
      {"num_hidden_layers", "llama.block_count"},
      {"max_position_embeddings", "llama.context_length"},
      {"hidden_size", "llama.embedding_length"},
      {"intermediate_size", "llama.feed_forward_length"},
      {"num_attention_heads", "llama.attention.head_count"}};
  for (const auto& [field, key] : integers) {
    PERMAFROST_ASSIGN_OR_RETURN(const int64_t value, file.Int(key));
    config[field] = value;
  }
  PERMAFROST_ASSIGN_OR_RETURN(
      const int64_t key_heads,
      file.IntOr("llama.attention.head_count_kv", config["num_attention_heads"].get<int64_t>()));
  config["num_key_value_heads"] = key_heads;
  if (file.Has("llama.attention.key_length")) {
    PERMAFROST_ASSIGN_OR_RETURN(const int64_t head_dim, file.Int("llama.attention.key_length"));
    config["head_dim"] = head_dim;
  }
  PERMAFROST_ASSIGN_OR_RETURN(const double epsilon,
                              file.Float("llama.attention.layer_norm_rms_epsilon"));
  PERMAFROST_ASSIGN_OR_RETURN(const double theta, file.FloatOr("llama.rope.freq_base", 10000.0));
  config["rms_norm_eps"] = static_cast<float>(epsilon);
  config["rope_theta"] = theta;
  const GgufTensor* embedding = file.Find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.source(), ": expected a matrix token_embd.weight"));
  }
  config["vocab_size"] = embedding->shape[0];
  config["tie_word_embeddings"] = file.Find("output.weight") == nullptr;
  const std::vector<std::pair<const char*, const char*>> tokens = {
      {"bos_token_id", "tokenizer.ggml.bos_token_id"},
      {"eos_token_id", "tokenizer.ggml.eos_token_id"},
      {"pad_token_id", "tokenizer.ggml.padding_token_id"}};
  for (const auto& [field, key] : tokens) {
    if (!file.Has(key)) continue;
    PERMAFROST_ASSIGN_OR_RETURN(const int64_t value, file.Int(key));
    // 2^32 - 1 stands for "none".
    if (value < embedding->shape[0]) config[field] = value;
  }
  return config.dump(2);
}

absl::StatusOr<GgufNames> MapGgufNames(const TensorStore& store) {
  static const std::map<std::string, std::string> kLayer = {
      {"attn_norm", "input_layernorm"}, {"ffn_norm", "post_attention_layernorm"},
      {"attn_q", "self_attn.q_proj"},   {"attn_k", "self_attn.k_proj"},
      {"attn_v", "self_attn.v_proj"},   {"attn_output", "self_attn.o_proj"},
      {"ffn_gate", "mlp.gate_proj"},    {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"}};
  static const std::map<std::string, std::string> kTop = {
      {"token_embd.weight", "model.embed_tokens.weight"},
      {"output_norm.weight", "model.norm.weight"},
      {"output.weight", "lm_head.weight"}};
  const GgufFile& file = *store.gguf();
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t heads, file.Int("llama.attention.head_count"));
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t key_heads,
                              file.IntOr("llama.attention.head_count_kv", heads));
  GgufNames names;
  for (const std::string& name : store.names()) {
    if (const auto it = kTop.find(name); it != kTop.end()) {
      names.tensors[it->second] = {name, 0};
      continue;
    }
    // blk.N.PART.weight
    const size_t dot = name.find('.', 4), last = name.rfind('.');
    std::string layer, part;
    if (absl::StartsWith(name, "blk.") && dot != std::string::npos && dot < last) {
      layer = name.substr(4, dot - 4);
      part = name.substr(dot + 1, last - dot - 1);
    }
    const auto it = kLayer.find(part);
    int number = 0;
    if (it == kLayer.end() || !absl::SimpleAtoi(layer, &number)) {
      return absl::InvalidArgumentError(absl::StrCat(store.source(), ": tensor ", name,
                                                     ": not a tensor of the llama architecture"));
    }
    const int64_t rotated = part == "attn_q" ? heads : part == "attn_k" ? key_heads : 0;
    names.tensors[absl::StrCat("model.layers.", number, ".", it->second, name.substr(last))] = {
        name, rotated};
  }
  return names;
}

int64_t GgufRowOf(int64_t row, int64_t head_size) {
  const int64_t head = row / head_size, within = row % head_size, half = head_size / 2;
  return head * head_size + 2 * (within % half) + within / half;
}

}  // namespace permafrost
