#include "peft/unipelt.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"

namespace permafrost {

absl::StatusOr<std::unique_ptr<UniPelt>> UniPelt::Create(
    int task, std::vector<std::shared_ptr<Method>> parts) {
  if (parts.empty()) {
    return absl::InvalidArgumentError("UniPELT: expected at least one part, found none");
  }
  auto all = std::unique_ptr<UniPelt>(new UniPelt(task));
  std::set<std::string> names;
  for (const std::shared_ptr<Method>& part : parts) {
    for (const Parameter& p : part->parameters()) {
      if (!names.insert(p.name()).second) {
        return absl::InvalidArgumentError(
            absl::StrCat("UniPELT: two parts own a tensor ", p.name(),
                         "; expected parts that act at different places"));
      }
      all->parameters_.Share(p);
      all->owner_.push_back(part.get());
    }
  }
  all->parts_ = std::move(parts);
  return all;
}

int64_t UniPelt::FirstPosition(int task) const {
  int64_t first = 0;
  for (const auto& part : parts_) first = std::max(first, part->FirstPosition(task));
  return first;
}

int64_t UniPelt::BiasShift(int task, Stack stack) const {
  int64_t shift = 0;
  for (const auto& part : parts_) shift = std::max(shift, part->BiasShift(task, stack));
  return shift;
}

bool UniPelt::ReadsAllRows() const {
  return std::any_of(parts_.begin(), parts_.end(),
                     [](const auto& part) { return part->ReadsAllRows(); });
}

bool UniPelt::ReadsFuture(int task) const {
  return std::any_of(parts_.begin(), parts_.end(),
                     [task](const auto& part) { return part->ReadsFuture(task); });
}

const Var* UniPelt::Replacement(TensorId tensor, int task) const {
  for (const auto& part : parts_) {
    if (const Var* trained = part->Replacement(tensor, task)) return trained;
  }
  return nullptr;
}

const Var* UniPelt::TiedHeadReplacement(TensorId embedding, int task) const {
  for (const auto& part : parts_) {
    if (const Var* trained = part->TiedHeadReplacement(embedding, task)) return trained;
  }
  return nullptr;
}

Var UniPelt::OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) {
  for (const auto& part : parts_) x = part->OnEmbedding(c, stack, batch, std::move(x));
  return x;
}

void UniPelt::OnAttention(Context& c, const SiteId& site, const Var& x, const PlaceRows& rows,
                          std::vector<Prefix>& prefixes) {
  for (const auto& part : parts_) part->OnAttention(c, site, x, rows, prefixes);
}

Var UniPelt::OnLinearInput(Context& c, const LinearPlace& place, Var x, const PlaceRows& rows) {
  for (const auto& part : parts_) x = part->OnLinearInput(c, place, std::move(x), rows);
  return x;
}

Var UniPelt::OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
                      const PlaceRows& rows) {
  for (const auto& part : parts_) y = part->OnLinear(c, place, x, std::move(y), rows);
  return y;
}

Var UniPelt::OnSublayerOutput(Context& c, const SiteId& site, const Var& x_in, Var y,
                              const PlaceRows& rows) {
  for (const auto& part : parts_) {
    y = part->OnSublayerOutput(c, site, x_in, std::move(y), rows);
  }
  return y;
}

void UniPelt::SetRandom(uint64_t seed, uint32_t step) {
  for (const auto& part : parts_) part->SetRandom(seed, step);
}

std::vector<int64_t> UniPelt::FileShape(const Parameter& p) const {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (&parameters_[i] == &p) return owner_[i]->FileShape(p);
  }
  return Method::FileShape(p);
}

std::vector<FileTensor> UniPelt::FileTensors() const {
  std::vector<FileTensor> tensors;
  for (const auto& part : parts_) {
    const std::vector<FileTensor> own = part->FileTensors();
    tensors.insert(tensors.end(), own.begin(), own.end());
  }
  return tensors;
}

std::vector<GateMean> UniPelt::TakeGateMeans() {
  std::vector<GateMean> means;
  for (const auto& part : parts_) {
    const std::vector<GateMean> own = part->TakeGateMeans();
    means.insert(means.end(), own.begin(), own.end());
  }
  return means;
}

bool UniPelt::IsCopyOfBase(const TensorView& t) const {
  return std::any_of(parts_.begin(), parts_.end(),
                     [&](const auto& part) { return part->IsCopyOfBase(t); });
}

bool UniPelt::mergeable() const {
  return std::all_of(parts_.begin(), parts_.end(),
                     [](const auto& part) { return part->mergeable(); });
}

void UniPelt::MergeInto(const Model& model, std::vector<Tensor>& values) const {
  for (const auto& part : parts_) part->MergeInto(model, values);
}

}  // namespace permafrost
