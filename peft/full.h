// Fine-tuning of base tensors as they are: f32 copies of some or all of them are trained in their
// place, the base stays untouched. The papers' baselines, and how a bundled base would be
// pretrained.
#ifndef PERMAFROST_PEFT_FULL_H_
#define PERMAFROST_PEFT_FULL_H_

#include <memory>
#include <vector>

#include "peft/base_copies.h"
#include "peft/method.h"

namespace permafrost {

struct FullConfig {
  enum class Part {
    kAll,
    kNorms,      // scales and biases of the norms (PEFT's LN_TUNING)
    kHead,       // the language-model head; a tied embedding goes with it
    kTopLayers,  // the last `layers` layers of the decoder and its final norm
  };
  Part part = Part::kAll;
  int64_t layers = 0;
  std::vector<std::string> norms;  // ends of module names; empty: all norms
};

class Full : public Method {
 public:
  // Errors: more layers than the base has, a norm that does not exist.
  static absl::StatusOr<std::unique_ptr<Full>> Create(int task, const FullConfig& config,
                                                      Context& c, const Model& model);

  const Var* Replacement(TensorId tensor, int task) const override;
  std::vector<int64_t> FileShape(const Parameter& p) const override;
  // T5's table of position biases is one for all rows.
  bool needs_batch_alone() const override { return all_; }
  bool mergeable() const override { return true; }
  void MergeInto(const Model& model, std::vector<Tensor>& values) const override;

 private:
  Full(int task, bool all) : Method(task), all_(all) {}
  bool all_;
  BaseCopies copies_;
};

// The norms' scales and biases: vectors that are no linear's bias.
std::vector<TensorId> NormTensors(const Model& model);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_FULL_H_
