// UniPELT (Mao et al. 2022): several methods at once on the same rows, each with a gate (gate.h).
// Any composition works that names no tensor twice; without gates it is the plain sum (the paper's
// NoGate, He et al.'s mix-and-match). The gate replaces a LoRA's alpha / r, scales an adapter's
// output before its residual, and the keys and values of a prefix as the row sees them.
#ifndef PERMAFROST_PEFT_UNIPELT_H_
#define PERMAFROST_PEFT_UNIPELT_H_

#include <memory>
#include <variant>
#include <vector>

#include "peft/bitfit.h"
#include "peft/bottleneck.h"
#include "peft/ia3.h"
#include "peft/lora.h"
#include "peft/prefix_tuning.h"

namespace permafrost {

using PartConfig =
    std::variant<PrefixTuningConfig, LoraConfig, BottleneckConfig, Ia3Config, BitFitConfig>;

struct UniPeltConfig {
  std::vector<PartConfig> parts;
};

class UniPelt : public Method {
 public:
  // Takes the parts of one task. Error: two parts that own a tensor of the same name.
  static absl::StatusOr<std::unique_ptr<UniPelt>> Create(
      int task, std::vector<std::shared_ptr<Method>> parts);

  const std::vector<std::shared_ptr<Method>>& parts() const { return parts_; }

  int64_t FirstPosition(int task) const override;
  int64_t BiasShift(int task, Stack stack) const override;
  bool ReadsAllRows() const override;
  bool ReadsFuture(int task) const override;
  const Var* Replacement(TensorId tensor, int task) const override;
  const Var* TiedHeadReplacement(TensorId embedding, int task) const override;
  Var OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) override;
  void OnAttention(Context& c, const SiteId& site, const Var& x, const PlaceRows& rows,
                   std::vector<Prefix>& prefixes) override;
  Var OnLinearInput(Context& c, const LinearPlace& place, Var x, const PlaceRows& rows) override;
  Var OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
               const PlaceRows& rows) override;
  Var OnSublayerOutput(Context& c, const SiteId& site, const Var& x_in, Var y,
                       const PlaceRows& rows) override;

  void SetRandom(uint64_t seed, uint32_t step) override;
  std::vector<int64_t> FileShape(const Parameter& p) const override;
  std::vector<FileTensor> FileTensors() const override;
  std::vector<GateMean> TakeGateMeans() override;
  bool IsCopyOfBase(const TensorView& t) const override;
  bool mergeable() const override;
  void MergeInto(const Model& model, std::vector<Tensor>& values) const override;

 private:
  explicit UniPelt(int task) : Method(task) {}
  std::vector<std::shared_ptr<Method>> parts_;
  std::vector<const Method*> owner_;  // by parameter
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_UNIPELT_H_
