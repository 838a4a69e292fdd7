#include "peft/dora.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace permafrost {

absl::StatusOr<DoraPlace> DoraPlace::Create(Context& c, const Model& model,
                                            const LinearPlace& place) {
  DoraPlace dora;
  dora.weight_ = model.tensors()[static_cast<size_t>(place.weight)].weight;
  if (place.bias != kNoTensor) {
    dora.bias_ = model.tensors()[static_cast<size_t>(place.bias)].vector;
  }
  dora.squares_ = SquaredRowNorms(c, *dora.weight_);
  for (size_t n = 0; n < dora.squares_.size(); ++n) {
    if (dora.squares_[n] > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "DoRA on ", place.module, ": expected rows with a direction, found that output ", n,
        " has no weight but zeros; leave the module out of the targets"));
  }
  return dora;
}

Tensor DoraPlace::Norms(Context& c, const Tensor& a, const Tensor& b, float scale) {
  const auto same = [](const Tensor& x, const Tensor& y) {
    return x && x.shape() == y.shape() && std::memcmp(x.raw(), y.raw(), x.bytes()) == 0;
  };
  if (!same(a_, a) || !same(b_, b)) {
    norms_ = ChangedRowNorms(c, *weight_, squares_, a, b, scale);
    a_ = a.Clone(MemoryTag::kWorkspace);
    b_ = b.Clone(MemoryTag::kWorkspace);
  }
  return norms_;
}

Var DoraPlace::Apply(Context& c, const Var& x, Var y, const Var& a, const Var& b,
                     const Var& magnitude, const Var* bias, const LowRank& options,
                     absl::Span<const TaskSpan> spans) {
  if (spans.empty()) return y;
  const Tensor norms = Norms(c, a.value(), b.value(), options.scale);
  if (options.dropout == 0 || !c.training) {
    y = AddLowRank(c, std::move(y), x, a, b, options, spans);
    return SetMagnitude(c, std::move(y), magnitude, norms, bias != nullptr ? *bias : Var(bias_),
                        spans);
  }
  const LowRank undropped{.scale = options.scale, .dropout = 0, .mask = {}};
  const Var d = Dropout(c, TakeRows(c, x, spans), options.dropout, options.mask);
  const std::vector<TaskSpan> all = {{0, d.rows(), spans[0].task}};
  const Var wd = Linear(c, d, *weight_);
  Var adapted = AddLowRank(c, wd, d, a, b, undropped, all);
  adapted = SetMagnitude(c, std::move(adapted), magnitude, norms, Var(), all);
  const Var change = Add(c, std::move(adapted), Scale(c, wd, -1));
  const Var own = Add(c, TakeRows(c, y, spans), change);
  return PutRows(c, std::move(y), own, spans);
}

void MergeMagnitude(const Tensor& magnitude, const Tensor& w) {
  for (int64_t n = 0; n < w.rows(); ++n) {
    double square = 0;
    for (int64_t k = 0; k < w.columns(); ++k) {
      square += static_cast<double>(w.row(n)[k]) * w.row(n)[k];
    }
    const double factor = static_cast<double>(magnitude.f32()[n]) / std::sqrt(square);
    for (int64_t k = 0; k < w.columns(); ++k) {
      w.row(n)[k] = static_cast<float>(factor * w.row(n)[k]);
    }
  }
}

}  // namespace permafrost
