#include "peft/base_copies.h"

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace permafrost {
namespace {

const char kHead[] = "lm_head";

// "a.b.weight" of modules a, a.b: whether one of them ends in `name`. An empty name is none.
bool BelowModule(const std::string& tensor, const std::string& name) {
  if (name.empty()) return false;
  for (size_t dot = tensor.find('.'); dot != std::string::npos; dot = tensor.find('.', dot + 1)) {
    if (absl::EndsWith(tensor.substr(0, dot), name)) return true;
  }
  return false;
}

std::string Leaf(const std::string& tensor) {
  const std::string module = tensor.substr(0, tensor.rfind('.'));
  return module.substr(module.rfind('.') + 1);
}

}  // namespace

absl::Status BaseCopies::AddModules(const std::vector<std::string>& names, Context& c,
                                    const Model& model, ParameterList& parameters) {
  const bool tied = model.head_tensor() == model.embedding_tensor();
  std::set<std::string> unused(names.begin(), names.end()), leaves;
  if (tied) leaves.insert(kHead);
  const auto can_copy = [](const BaseTensor& t) { return !t.conv1d && t.name != "shared.weight"; };
  for (const BaseTensor& t : model.tensors()) {
    if (can_copy(t)) leaves.insert(Leaf(t.name));
  }
  for (TensorId id = 0; id < static_cast<TensorId>(model.tensors().size()); ++id) {
    const BaseTensor& t = model.tensors()[static_cast<size_t>(id)];
    for (const std::string& name : names) {
      if (!BelowModule(t.name, name)) continue;
      if (!can_copy(t)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "modules_to_save ", name, ": ", t.name,
            t.conv1d ? " is stored transposed and cannot be trained as a whole"
                     : " is read by nothing in transformers 5, which gives each stack an embedding "
                       "of its own",
            "; expected some of ", absl::StrJoin(leaves, ", ")));
      }
      unused.erase(name);
      Add(id, absl::StrCat("base_model.model.", t.name), c, model, parameters);
    }
  }
  for (const std::string& name : names) {
    if (!tied || name.empty() || !absl::EndsWith(kHead, name)) continue;
    unused.erase(name);
    if (Find(kTiedHead) != nullptr) continue;
    const Parameter& p =
        parameters.Add(absl::StrCat("base_model.model.", kHead, ".weight"), model.head().ToF32(c));
    copies_[kTiedHead] = {&p, {model.head().outputs(), model.head().inputs()}};
  }
  if (unused.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("modules_to_save ", absl::StrJoin(unused, ", "), ": matches no module of this ",
                   model.info().model_type, " base; it has ", absl::StrJoin(leaves, ", ")));
}

void BaseCopies::Add(TensorId tensor, const std::string& name, Context& c, const Model& model,
                     ParameterList& parameters) {
  const BaseTensor& t = model.tensors()[static_cast<size_t>(tensor)];
  if (t.weight == nullptr) return AddVector(tensor, name, model, parameters);
  if (Find(tensor) == nullptr) {
    copies_[tensor] = {&parameters.Add(name, t.weight->ToF32(c)), t.shape};
  }
}

void BaseCopies::AddVector(TensorId tensor, const std::string& name, const Model& model,
                           ParameterList& parameters) {
  if (Find(tensor) != nullptr) return;
  const BaseTensor& t = model.tensors()[static_cast<size_t>(tensor)];
  copies_[tensor] = {&parameters.Add(name, t.vector.Clone()), t.shape};
}

const Var* BaseCopies::Find(TensorId tensor) const {
  const auto it = copies_.find(tensor);
  return it == copies_.end() ? nullptr : &it->second.parameter->var();
}

const std::vector<int64_t>* BaseCopies::FileShape(const Parameter& p) const {
  for (const auto& [tensor, copy] : copies_) {
    if (copy.parameter == &p) return &copy.shape;
  }
  return nullptr;
}

bool BaseCopies::mergeable(const Model& model) const {
  const bool tied = model.head_tensor() == model.embedding_tensor();
  return !tied || (Find(kTiedHead) == nullptr && Find(model.embedding_tensor()) == nullptr);
}

void BaseCopies::MergeInto(std::vector<Tensor>& values) const {
  for (const auto& [tensor, copy] : copies_) {
    if (tensor >= 0) values[static_cast<size_t>(tensor)] = copy.parameter->value().Clone();
  }
}

}  // namespace permafrost
