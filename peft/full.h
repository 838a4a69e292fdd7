// Full fine-tuning: f32 copies of every base tensor are trained, the base stays untouched. The
// papers' baseline, and how a bundled base would be pretrained.
#ifndef PERMAFROST_PEFT_FULL_H_
#define PERMAFROST_PEFT_FULL_H_

#include "peft/method.h"

namespace permafrost {

struct FullConfig {};

class Full : public Method {
 public:
  Full(int task, Context& c, const Model& model);

  const Var* Replacement(TensorId tensor, int task) const override;
  std::vector<int64_t> FileShape(const Parameter& p) const override;
  bool mergeable() const override { return true; }
  void MergeInto(const Model& model, std::vector<Tensor>& values) const override;

 private:
  std::vector<BaseTensor> tensors_;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_FULL_H_
