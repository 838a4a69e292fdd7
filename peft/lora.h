// LoRA (Hu et al. 2021): y = W x + s B A dropout(x), s = alpha / r, or alpha / sqrt(r) for rsLoRA.
#ifndef PERMAFROST_PEFT_LORA_H_
#define PERMAFROST_PEFT_LORA_H_

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/random_tensor.h"
#include "peft/gate.h"
#include "peft/method.h"
#include "peft/targets.h"

namespace permafrost {

// The fields of PEFT's LoraConfig that are implemented, with its defaults.
struct LoraConfig {
  int64_t rank = 8;
  double alpha = 8;
  double dropout = 0;
  bool rslora = false;
  Targets targets;
  // Regular expressions for module names; the first that matches decides.
  std::vector<std::pair<std::string, int64_t>> rank_pattern;
  std::vector<std::pair<std::string, double>> alpha_pattern;
  GateConfig gate;  // in place of s (UniPELT)
  // GPT-2's c_attn: so many LoRAs side by side, each with its share of the ranks and a gate of its
  // own (AdapterHub).
  int64_t fused_parts = 1;
};

// PEFT's default targets of a model type.
std::vector<std::string> DefaultLoraTargets(const std::string& model_type);

class Lora : public Method {
 public:
  // A uniform on [-1/sqrt(in), 1/sqrt(in)) (kaiming_uniform, a = sqrt 5), B zero.
  static absl::StatusOr<std::unique_ptr<Lora>> Create(int task, const LoraConfig& config,
                                                      const Model& model, Random& random);

  Var OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
               const PlaceRows& rows) override;

  // s of a linear by its index; nothing if it is no target.
  std::optional<float> ScaleOf(int linear) const;

  bool ReadsAllRows() const override { return gate_.trained(); }
  bool ReadsFuture(int task) const override { return task == task_ && gate_.reads_future(); }
  std::vector<GateMean> TakeGateMeans() override;

  // W [outputs, inputs] += s B A; a trained gate is no constant.
  bool mergeable() const override { return !gate_.trained(); }
  void MergeInto(const Model& model, std::vector<Tensor>& values) const override;

 private:
  struct Pair {
    size_t a, b;  // into parameters_
    LowRank options;
    std::optional<Gate> gate = {};
  };

  Lora(int task, const GateConfig& gate) : Method(task), gate_(gate) {}
  GateConfig gate_;
  std::vector<std::optional<Pair>> pairs_;  // by linear index
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_LORA_H_
