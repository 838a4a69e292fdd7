#include "peft/full.h"

#include "absl/strings/str_cat.h"

namespace permafrost {

Full::Full(int task, Context& c, const Model& model) : Method(task), tensors_(model.tensors()) {
  for (const BaseTensor& t : tensors_) {
    parameters_.Add(t.name, t.weight != nullptr ? t.weight->ToF32(c) : t.vector.Clone());
  }
}

const Var* Full::Replacement(TensorId tensor, int task) const {
  return task == task_ ? &parameters_[static_cast<size_t>(tensor)].var() : nullptr;
}

std::vector<int64_t> Full::FileShape(const Parameter& p) const {
  if (p.value().rows() == 1) return {p.value().columns()};
  return {p.value().rows(), p.value().columns()};
}

void Full::MergeInto(const Model&, std::vector<Tensor>& values) const {
  for (size_t i = 0; i < values.size(); ++i) values[i] = parameters_[i].value();
}

}  // namespace permafrost
