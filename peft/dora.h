// DoRA (Liu et al. 2024): the row norms of W + s B A are trained apart from the rows' directions.
// With m the magnitude [N] and n_j = ||(W + s B A)_j||, held constant in the gradient
// (section 4.3):
//
//   y = W x + bias + (m / n - 1) W d + (m / n) s B A d,   d = dropout(x),
//
// as PEFT computes it: dropout acts in both added terms, the bias is never scaled. m starts at n.
// N outputs, D inputs, r rank. Non-goals: DoRA on embeddings.
#ifndef PERMAFROST_PEFT_DORA_H_
#define PERMAFROST_PEFT_DORA_H_

#include <vector>

#include "absl/status/statusor.h"
#include "models/model.h"

namespace permafrost {

// One linear's part of DoRA beside its low-rank pair.
class DoraPlace {
 public:
  // Error: a row of W that is zero, which has no direction.
  static absl::StatusOr<DoraPlace> Create(Context& c, const Model& model, const LinearPlace& place);

  // n [1, N] for A [r, D], B [N, r]. Kept until A or B is another: a step that computes a layer
  // again, and generation, ask for the same one.
  Tensor Norms(Context& c, const Tensor& a, const Tensor& b, float scale);

  // y = linear(x) to DoRA's y on the rows of `spans`. `bias` stands for the base's if not null.
  Var Apply(Context& c, const Var& x, Var y, const Var& a, const Var& b, const Var& magnitude,
            const Var* bias, const LowRank& options, absl::Span<const TaskSpan> spans);

 private:
  const Weight* weight_ = nullptr;
  Tensor bias_;
  std::vector<double> squares_;  // ||W_j||^2
  Tensor a_, b_, norms_;         // of the last call
};

// w [N, D], already W + s B A, to (m / n) w.
void MergeMagnitude(const Tensor& magnitude, const Tensor& w);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_DORA_H_
