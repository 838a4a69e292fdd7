// BitFit (Ben Zaken et al. 2022): only biases are trained, as f32 copies in the base's place. Where
// a base has none (T5, Llama), zero biases are added to the outputs of linears, so that the base is
// unchanged at first.
//
// Without targets: every bias of the base, the norms' included, or, in a base without any, an added
// one at every linear. With targets: the biases of the linears named, added where there is none.
#ifndef PERMAFROST_PEFT_BITFIT_H_
#define PERMAFROST_PEFT_BITFIT_H_

#include <memory>
#include <vector>

#include "peft/base_copies.h"
#include "peft/method.h"
#include "peft/targets.h"

namespace permafrost {

struct BitFitConfig {
  Targets targets;  // no modules: see above
};

class BitFit : public Method {
 public:
  static absl::StatusOr<std::unique_ptr<BitFit>> Create(int task, const BitFitConfig& config,
                                                        const Model& model);

  // Linears that got a bias, and biases of the base that are trained.
  int added() const { return added_; }
  int trained() const { return static_cast<int>(parameters_.size()) - added_; }

  const Var* Replacement(TensorId tensor, int task) const override;
  Var OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
               const PlaceRows& rows) override;

  std::vector<int64_t> FileShape(const Parameter& p) const override { return {p.count()}; }
  // Into a base that has a place for every bias.
  bool mergeable() const override { return added_ == 0; }
  void MergeInto(const Model& model, std::vector<Tensor>& values) const override;

 private:
  explicit BitFit(int task) : Method(task) {}

  int added_ = 0;
  BaseCopies copies_;
  std::vector<int> new_bias_;  // parameter by linear index, -1 for none
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_BITFIT_H_
