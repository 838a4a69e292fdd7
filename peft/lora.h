// LoRA (Hu et al. 2021): y = W x + s B A dropout(x), s = alpha / r, or alpha / sqrt(r) for rsLoRA,
// on linears and (without dropout) on token embeddings. With `dora` the outputs' magnitudes are
// trained too (dora.h); `init` may start from W (lora_init.h); `bias` and `modules_to_save` train
// copies of base tensors beside it (base_copies.h). D inputs, N outputs, V vocabulary, r rank.
#ifndef PERMAFROST_PEFT_LORA_H_
#define PERMAFROST_PEFT_LORA_H_

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/random_tensor.h"
#include "peft/base_copies.h"
#include "peft/dora.h"
#include "peft/gate.h"
#include "peft/lora_init.h"
#include "peft/method.h"
#include "peft/targets.h"

namespace permafrost {

// Which of the base's biases are trained: none, all, or those of the targets.
enum class LoraBias { kNone, kAll, kLoraOnly };

// The fields of PEFT's LoraConfig that are implemented, with its defaults.
struct LoraConfig {
  int64_t rank = 8;
  double alpha = 8;
  double dropout = 0;
  bool rslora = false;
  bool dora = false;
  LoraInit init = LoraInit::kDefault;  // of a fresh adapter; a file holds what it became
  LoraBias bias = LoraBias::kNone;
  bool lora_bias = false;  // a bias of B's own, scaled by s as B is
  Targets targets;
  std::vector<std::string> modules_to_save;  // ends of module names
  // Regular expressions for module names; the first that matches decides.
  std::vector<std::pair<std::string, int64_t>> rank_pattern;
  std::vector<std::pair<std::string, double>> alpha_pattern;
  GateConfig gate;  // in place of s (UniPELT)
  // GPT-2's c_attn, if not empty: each of these thirds of its output (q 0, k 1, v 2) has a LoRA,
  // and gate, of its own, with an equal share of the rank (AdapterHub). B is block-diagonal then.
  std::vector<int> thirds;
};

// PEFT's default targets of a model type.
std::vector<std::string> DefaultLoraTargets(const std::string& model_type);

// y += scale B A x at a linear, A [r, D], B [N, r].
struct LoraTerm {
  Tensor a, b;
  double scale = 1;
};

// LoRA+ (Hayou et al. 2024): the rate of the linears' B becomes `ratio` times the rate of the rest.
void SetLoraPlusRatio(Method& method, double ratio);

class Lora : public Method {
 public:
  // A uniform on [-1/sqrt(in), 1/sqrt(in)) (kaiming_uniform, a = sqrt 5), B zero, unless
  // config.init says otherwise; of an embedding A zero, B standard normal; DoRA's magnitude the
  // norms of W. Errors: a target or module that matches nothing, ranks out of range, combinations
  // that are not implemented.
  static absl::StatusOr<std::unique_ptr<Lora>> Create(int task, const LoraConfig& config,
                                                      Context& c, const Model& model,
                                                      Random& random);

  const Var* Replacement(TensorId tensor, int task) const override {
    return task == task_ ? copies_.Find(tensor) : nullptr;
  }
  const Var* TiedHeadReplacement(TensorId, int task) const override {
    return task == task_ ? copies_.FindTiedHead() : nullptr;
  }
  Var OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) override;
  Var OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
               const PlaceRows& rows) override;

  // s of a linear by its index; nothing if it is no target.
  std::optional<float> ScaleOf(int linear) const;

  // What acts on a linear (its index), if anything does. Its tensors are the method's own, unless
  // the pair started from the base's weights.
  std::optional<LoraTerm> TermOf(int linear) const;
  bool acts_on_embeddings() const { return !embeddings_.empty(); }

  bool ReadsAllRows() const override { return reads_all_rows_; }
  bool ReadsFuture(int task) const override { return task == task_ && reads_future_; }
  std::vector<GateMean> TakeGateMeans() override;

  // Vectors are stored as [N].
  std::vector<int64_t> FileShape(const Parameter& p) const override;
  // A pair that started from W is stored as the plain LoRA of rank 2 r that it is: [A; A0], [B,
  // -B0].
  std::vector<FileTensor> FileTensors() const override;
  // PEFT stores the embedding beside an adapter on it.
  bool IsCopyOfBase(const TensorView& t) const override;

  // Not if an adapted embedding is the head too, a bias has no place in the base, or a gate is no
  // constant.
  bool mergeable() const override { return mergeable_; }
  // W [outputs, inputs] += s B A; with DoRA its rows then get their magnitudes.
  void MergeInto(const Model& model, std::vector<Tensor>& values) const override;

 private:
  struct Dora {
    DoraPlace place;
    size_t magnitude;  // into parameters_
    TensorId bias;     // the base's
  };
  struct Pair {
    size_t a = 0, b = 0;  // into parameters_
    LowRank options;
    std::optional<size_t> bias = std::nullopt;
    std::optional<Dora> dora = std::nullopt;
    std::optional<Gate> gate = std::nullopt;
    LowRankPair start = {};  // what is subtracted, or empty
    std::vector<int> thirds = {};
  };
  struct EmbeddingPair {
    EmbeddingPlace place;
    size_t a, b;
    float scale;
  };

  explicit Lora(int task) : Method(task) {}
  absl::Status AddPair(const LoraConfig& config, Context& c, const Model& model,
                       const LinearPlace& place, Random& random);
  absl::Status AddEmbedding(const LoraConfig& config, const Model& model,
                            const EmbeddingPlace& place, Random& random);
  absl::Status AddCopies(const LoraConfig& config, Context& c, const Model& model);
  const Pair* PairAt(const LinearPlace& place) const;
  // y + the term of each third.
  Var AddThirds(Context& c, const Pair& pair, const Var& x, Var y, const LowRank& options,
                const Var& gates, absl::Span<const TaskSpan> spans) const;
  // A and B, what was subtracted at the start included.
  LowRankPair Factors(const Pair& pair) const;

  std::vector<std::optional<Pair>> pairs_;  // by linear index
  std::vector<EmbeddingPair> embeddings_;
  BaseCopies copies_;
  std::vector<int64_t> embedding_shape_;  // [V, D]
  bool mergeable_ = true;
  bool reads_all_rows_ = false;
  bool reads_future_ = false;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_LORA_H_
