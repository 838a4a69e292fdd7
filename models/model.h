// What the rest of the project knows of a base model. Two families implement it: T5 (t5.h) and
// decoders (decoder.h: Llama, Mistral, Qwen2, GPT-2). A model is immutable after loading.
#ifndef PERMAFROST_MODELS_MODEL_H_
#define PERMAFROST_MODELS_MODEL_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/hooks.h"

namespace permafrost {

struct ModelInfo {
  std::string model_type;  // "t5", "llama", "mistral", "qwen2", "gpt2"
  std::string path;
  uint64_t hash = 0;  // fingerprint of the files
  bool encoder_decoder = false;
  int64_t vocabulary = 0;  // rows of the embedding
  int64_t width = 0;       // D
  int64_t layers = 0;      // of the encoder in T5, as transformers counts
  int64_t decoder_layers = 0;
  int64_t heads = 0;           // H
  int64_t key_heads = 0;       // G
  int64_t head_size = 0;       // K
  int64_t max_positions = 0;   // longest sequence, virtual tokens included; 0: no limit
  std::string position_limit;  // the config field that sets it
  int32_t decoder_start = 0;
  int32_t pad = 0;
  std::vector<int32_t> end_tokens;
  std::string config_json;  // for a merged or converted folder
};

// A base tensor by its Hugging Face name; `shape` as stored there.
struct BaseTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool conv1d = false;             // stored [inputs, outputs]; the engine holds the transpose
  const Weight* weight = nullptr;  // a matrix, or
  Tensor vector;                   // a vector [1, n] or a small table
};

class Model {
 public:
  virtual ~Model() = default;

  // T5: the encoder's output rows [encoder rows, D]. Decoders: empty.
  virtual Var Encode(Context& c, const Batch& batch, Hooks& hooks) const = 0;
  // The decoder's normed hidden states of batch.outputs [outputs, D]. With a cache the rows' keys
  // and values are stored at cache->slots and batch.decoder.self refers to cache rows.
  virtual Var Decode(Context& c, const Batch& batch, const Var& encoded, Hooks& hooks,
                     Cache* cache) const = 0;

  const ModelInfo& info() const { return info_; }
  const std::vector<LinearPlace>& linears() const { return linears_; }
  const std::vector<BaseTensor>& tensors() const { return tensors_; }
  // The token embedding [V, D] and the head [V, D] (the same object when tied).
  const Weight& embedding() const { return *tensors_[static_cast<size_t>(embedding_)].weight; }
  TensorId embedding_tensor() const { return embedding_; }
  const Weight& head() const { return *tensors_[static_cast<size_t>(head_)].weight; }
  TensorId head_tensor() const { return head_; }
  float head_scale() const { return head_scale_; }
  int64_t weight_bytes() const;
  int64_t parameter_count() const;

  // The loss over batch.target_*: sum of weight_i * loss_i, with the z-loss of each target's task
  // (none if empty).
  HeadLoss Loss(Context& c, const Batch& batch, Hooks& hooks, absl::Span<const float> weights,
                absl::Span<const float> z_losses = {}) const;
  // Logits [rows, V] of hidden states, whose tasks are `spans`.
  Var Logits(Context& c, const Var& hidden, absl::Span<const TaskSpan> spans, Hooks& hooks) const;
  // Embedded rows, hooks applied.
  Var Embed(Context& c, Stack stack, const Batch& batch, Hooks& hooks) const;

  // How lines become batches for this model with these hooks (which must outlive the layout).
  BatchLayout layout(const Hooks& hooks) const;

 protected:
  ModelInfo info_;
  // What hooks put in the head's place for a task, or null; whether they do for one of `spans`.
  const Var* HeadReplacement(const Hooks& hooks, int task) const;
  bool HasOwnHead(const Hooks& hooks, absl::Span<const TaskSpan> spans) const;

  std::vector<LinearPlace> linears_;
  std::vector<BaseTensor> tensors_;
  TensorId embedding_ = kNoTensor;
  TensorId head_ = kNoTensor;
  float head_scale_ = 1;
};

// Opens a base: a Hugging Face folder or a .gguf file (contract.md, Bases). Strict: every missing,
// unused or mis-shaped tensor is reported at once. c.precision chooses the packed format. The same
// from files already opened (or random weights).
absl::StatusOr<std::unique_ptr<Model>> BuildModel(Context& c, const struct BaseFiles& files);
absl::StatusOr<std::unique_ptr<Model>> OpenModel(Context& c, const std::string& path);

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_MODEL_H_
