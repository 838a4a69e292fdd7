// Decoder transformers: the Llama family (Llama, Mistral, Qwen2: RMSNorm, rotary positions, grouped
// heads, gated feed-forward) and GPT-2 (LayerNorm, learned positions, fused query-key-value).
#ifndef PERMAFROST_MODELS_DECODER_H_
#define PERMAFROST_MODELS_DECODER_H_

#include <memory>
#include <vector>

#include "models/blocks.h"
#include "models/loader.h"
#include "models/model.h"
#include "models/weight_source.h"

namespace permafrost {

// From transformers' config.json; fields that change the result and are not implemented are errors.
struct DecoderConfig {
  bool gpt2 = false;
  int64_t hidden = 0, intermediate = 0, heads = 0, key_heads = 0, head_size = 0, layers = 0;
  int64_t vocabulary = 0, max_positions = 0;
  float norm_epsilon = 1e-6f;
  double rope_theta = 10000;
  Activation activation = Activation::kSilu;
  bool query_key_value_bias = false, output_bias = false, mlp_bias = false;
  bool tied = false;
  bool scale_attention = true;
};

class Decoder : public Model {
 public:
  static absl::StatusOr<std::unique_ptr<Model>> Load(Context& c, const BaseFiles& files);

  Var Encode(Context&, const Batch&, Hooks&) const override { return {}; }
  Var Decode(Context& c, const Batch& batch, const Var& encoded, Hooks& hooks,
             Cache* cache) const override;

 private:
  struct Norm {
    TensorId scale = kNoTensor, bias = kNoTensor;
  };
  // Indices into linears(). GPT-2 has one fused query-key-value and no gate.
  struct Layer {
    Norm attention_norm, mlp_norm;
    int query = 0, key = 0, value = 0, fused = 0, output = 0, gate = 0, up = 0, down = 0;
  };

  void LoadLlama(Loader& loader);
  void LoadGpt2(Loader& loader);
  Var ApplyNorm(Context& c, const ForwardState& f, const Norm& norm, const Var& x,
                const PlaceRows& rows) const;
  // The heads' outputs [R, H K], and the whole sublayer, from the residual stream x [R, D].
  Var AttentionHeads(Context& c, const ForwardState& f, size_t layer, const Var& x) const;
  Var SelfAttention(Context& c, const ForwardState& f, size_t layer, const Var& x) const;
  Var FeedForward(Context& c, const ForwardState& f, size_t layer, const Var& x,
                  const PlaceRows& rows) const;
  Var LayerForward(Context& c, const ForwardState& f, size_t layer, Var x) const;

  DecoderConfig config_;
  std::vector<std::unique_ptr<Weight>> weights_;
  std::vector<Layer> layers_;
  Norm final_norm_;
  TensorId positions_ = kNoTensor;  // GPT-2's wpe
  RopeTable rope_;
};

absl::StatusOr<DecoderConfig> ParseDecoderConfig(const std::string& json, const std::string& source,
                                                 ModelInfo& info);

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_DECODER_H_
