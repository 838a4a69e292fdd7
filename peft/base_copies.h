// Base tensors that a method trains as f32 copies of its own, in the base's place: full fine-tuning
// and its parts, BitFit, PEFT's modules_to_save and the biases of LoRA's `bias`. Modules: a tied
// head and the embedding are copied apart, as PEFT does. Non-goals: GPT-2's transposed linears,
// T5's embedding (PEFT's copy of `shared` is never read by transformers 5).
#ifndef PERMAFROST_PEFT_BASE_COPIES_H_
#define PERMAFROST_PEFT_BASE_COPIES_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/parameter.h"
#include "models/model.h"

namespace permafrost {

class BaseCopies {
 public:
  // Copies every tensor below a module whose name ends in one of `names`. Errors: a name that
  // matches nothing, a tensor that cannot be copied.
  absl::Status AddModules(const std::vector<std::string>& names, Context& c, const Model& model,
                          ParameterList& parameters);
  // Copies `tensor`, under `name` in the file, unless it is copied already; a vector needs no
  // context.
  void Add(TensorId tensor, const std::string& name, Context& c, const Model& model,
           ParameterList& parameters);
  void AddVector(TensorId tensor, const std::string& name, const Model& model,
                 ParameterList& parameters);

  bool empty() const { return copies_.empty(); }
  // The copy that stands for a base tensor, or null.
  const Var* Find(TensorId tensor) const;
  const Var* FindTiedHead() const { return Find(kTiedHead); }
  // Whether `p` is a copy, and its shape in the file.
  const std::vector<int64_t>* FileShape(const Parameter& p) const;
  // Whether a base's own tensors can hold the copies: no head or embedding that the base ties.
  bool mergeable(const Model& model) const;
  void MergeInto(std::vector<Tensor>& values) const;

 private:
  static constexpr TensorId kTiedHead = -2;
  struct Copy {
    const Parameter* parameter;
    std::vector<int64_t> shape;
  };

  std::map<TensorId, Copy> copies_;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_BASE_COPIES_H_
