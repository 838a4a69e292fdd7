// T5 (Raffel et al. 2020): v1.0 (relu, tied and scaled head) and v1.1 (gated gelu, untied), also
// LM-adapted, Flan and mT5-shaped files. Pre-norm RMSNorm, unscaled attention, relative position
// bias shared by all layers of a stack, none in cross attention.
#ifndef PERMAFROST_MODELS_T5_H_
#define PERMAFROST_MODELS_T5_H_

#include <memory>
#include <vector>

#include "models/blocks.h"
#include "models/loader.h"
#include "models/model.h"

namespace permafrost {

struct T5Config {
  int64_t width = 0, head_size = 0, feed_forward = 0, heads = 0;
  int64_t layers = 0, decoder_layers = 0, vocabulary = 0;
  int64_t buckets = 32, max_distance = 128;
  float norm_epsilon = 1e-6f;
  Activation activation = Activation::kRelu;
  bool gated = false;
  bool scaled_head = true;
};

// Bucket of each distance key - query in [-M, M] (model-spec: bidirectional halves the buckets
// between the signs; the first half of each is exact, the rest logarithmic up to max_distance M).
std::vector<int32_t> RelativeBuckets(int64_t buckets, int64_t max_distance, bool bidirectional);

class T5 : public Model {
 public:
  static absl::StatusOr<std::unique_ptr<Model>> Load(Context& c, const BaseFiles& files);

  Var Encode(Context& c, const Batch& batch, Hooks& hooks) const override;
  Var Decode(Context& c, const Batch& batch, const Var& encoded, Hooks& hooks,
             Cache* cache) const override;

 private:
  struct Attentive {  // one attention sublayer; indices into linears()
    TensorId norm = kNoTensor;
    int query = 0, key = 0, value = 0, output = 0;
  };
  struct Layer {
    Attentive self, cross;
    TensorId norm = kNoTensor;  // of the feed-forward
    int gate = 0, up = 0, down = 0;
  };
  struct StackWeights {
    std::vector<Layer> layers;
    TensorId bias = kNoTensor;  // [buckets, H]
    TensorId final_norm = kNoTensor;
    std::vector<int32_t> buckets;
  };

  void LoadStack(Loader& loader, Stack stack, StackWeights& weights);
  Attentive LoadAttention(Loader& loader, SiteId site, const std::string& sublayer,
                          const std::string& module);
  Var ApplyNorm(Context& c, const ForwardState& f, TensorId scale, const Var& x,
                const PlaceRows& rows) const;
  // The heads' outputs [R, H K] from the residual stream x [R, D].
  Var SelfAttentionHeads(Context& c, const ForwardState& f, Stack stack, size_t layer, const Var& x,
                         const Var& bias) const;
  Var CrossAttentionHeads(Context& c, const ForwardState& f, size_t layer, const Var& x,
                          const Var& encoded) const;
  // The whole sublayers.
  Var SelfAttention(Context& c, const ForwardState& f, Stack stack, size_t layer, const Var& x,
                    const Var& bias) const;
  Var CrossAttention(Context& c, const ForwardState& f, size_t layer, const Var& x,
                     const Var& encoded) const;
  Var FeedForward(Context& c, const ForwardState& f, const Layer& layer, const Var& x,
                  const PlaceRows& rows) const;
  Var LayerForward(Context& c, const ForwardState& f, Stack stack, size_t layer, Var x,
                   const Var& bias, const Var& encoded) const;
  // All layers and the final norm.
  Var RunStack(Context& c, const ForwardState& f, Stack stack, Var x, const Var& encoded) const;

  T5Config config_;
  std::vector<std::unique_ptr<Weight>> weights_;
  StackWeights encoder_, decoder_;
};

absl::StatusOr<T5Config> ParseT5Config(const std::string& json, const std::string& source,
                                       ModelInfo& info);

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_T5_H_
