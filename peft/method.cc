#include "peft/method.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace permafrost {

std::vector<TaskSpan> Method::Own(absl::Span<const TaskSpan> spans) const {
  std::vector<TaskSpan> own;
  for (const TaskSpan& s : spans) {
    if (s.task == task_) own.push_back(s);
  }
  return own;
}

std::vector<FileTensor> Method::FileTensors() const {
  std::vector<FileTensor> tensors;
  for (const Parameter& p : parameters_) tensors.push_back({p.name(), FileShape(p), p.value()});
  return tensors;
}

void AdapterSet::Add(std::string name, std::shared_ptr<Method> method) {
  names_.push_back(std::move(name));
  methods_.push_back(std::move(method));
}

absl::StatusOr<int> AdapterSet::TaskOf(const std::string& name) const {
  if (name.empty())
    return methods_.size() == 1 && names_[0].empty() ? methods_[0]->task() : kNoTask;
  for (size_t i = 0; i < names_.size(); ++i) {
    if (names_[i] == name) return methods_[i]->task();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown adapter \"", name,
                   names_ == std::vector<std::string>{""}
                       ? "\"; the loaded one has no name"
                       : "\"; loaded: " + (names_.empty() ? "none" : absl::StrJoin(names_, ", "))));
}

const Method* AdapterSet::MethodOf(int task) const {
  for (const auto& m : methods_) {
    if (m->task() == task) return m.get();
  }
  return nullptr;
}

int64_t AdapterSet::VirtualTokens(int task) const {
  const Method* m = MethodOf(task);
  return m == nullptr ? 0 : m->VirtualTokens(task);
}

int64_t AdapterSet::AnchoredTokens(int task) const {
  const Method* m = MethodOf(task);
  return m == nullptr ? 0 : m->AnchoredTokens(task);
}

int64_t AdapterSet::FirstPosition(int task) const {
  const Method* m = MethodOf(task);
  return m == nullptr ? 0 : m->FirstPosition(task);
}

int64_t AdapterSet::BiasShift(int task, Stack stack) const {
  const Method* m = MethodOf(task);
  return m == nullptr ? 0 : m->BiasShift(task, stack);
}

bool AdapterSet::ReadsAllRows() const {
  return std::any_of(methods_.begin(), methods_.end(),
                     [](const auto& m) { return m->ReadsAllRows(); });
}

bool AdapterSet::ReadsFuture(int task) const {
  const Method* m = MethodOf(task);
  return m != nullptr && m->ReadsFuture(task);
}

const Var* AdapterSet::Replacement(TensorId tensor, int task) const {
  const Method* m = MethodOf(task);
  return m == nullptr ? nullptr : m->Replacement(tensor, task);
}

const Var* AdapterSet::TiedHeadReplacement(TensorId embedding, int task) const {
  const Method* m = MethodOf(task);
  return m == nullptr ? nullptr : m->TiedHeadReplacement(embedding, task);
}

Var AdapterSet::OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) {
  for (const auto& m : methods_) x = m->OnEmbedding(c, stack, batch, std::move(x));
  return x;
}

void AdapterSet::OnAttention(Context& c, const SiteId& site, const Var& x, const PlaceRows& rows,
                             std::vector<Prefix>& prefixes) {
  for (const auto& m : methods_) m->OnAttention(c, site, x, rows, prefixes);
}

Var AdapterSet::OnLinearInput(Context& c, const LinearPlace& place, Var x, const PlaceRows& rows) {
  for (const auto& m : methods_) x = m->OnLinearInput(c, place, std::move(x), rows);
  return x;
}

Var AdapterSet::OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
                         const PlaceRows& rows) {
  for (const auto& m : methods_) y = m->OnLinear(c, place, x, std::move(y), rows);
  return y;
}

Var AdapterSet::OnSublayerOutput(Context& c, const SiteId& site, const Var& x_in, Var y,
                                 const PlaceRows& rows) {
  for (const auto& m : methods_) y = m->OnSublayerOutput(c, site, x_in, std::move(y), rows);
  return y;
}

}  // namespace permafrost
