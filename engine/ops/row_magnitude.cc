// DoRA's parts (Liu et al. 2024, eq. 5): norms of the rows of a frozen weight with a low-rank
// change, and outputs rescaled to a trained magnitude.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/check.h"
#include "engine/ops.h"
#include "engine/ops/internal.h"
#include "kernels/elementwise.h"

namespace permafrost {
namespace {

using kernels::Write;

// sum_k (W_n + scale sum_r B_nr A_r)_k^2 from the row itself.
double SquaredRowNorm(const float* w, const Tensor& a, const float* b, double scale) {
  double sum = 0;
  for (int64_t k = 0; k < a.columns(); ++k) {
    double change = 0;
    for (int64_t r = 0; r < a.rows(); ++r) change += static_cast<double>(b[r]) * a.row(r)[k];
    const double element = static_cast<double>(w[k]) + scale * change;
    sum += element * element;
  }
  return sum;
}

// x = x * factors + offset on the rows of `spans` (offset may be empty).
void ScaleSpans(Context& c, const Tensor& x, const Tensor& factors, const Tensor& offset,
                const Tensor& spans) {
  ForEachSpan(spans, [&](int64_t begin, int64_t rows, int64_t) {
    float* part = x.row(begin);
    kernels::cpu::ScaleColumns(
        {.x = part, .scale = factors.f32(), .y = part, .rows = rows, .width = x.columns()},
        c.parallel());
    if (!offset) return;
    kernels::cpu::AddBias({.bias = offset.f32(),
                           .y = part,
                           .y_stride = x.columns(),
                           .rows = rows,
                           .width = x.columns()},
                          c.parallel());
  });
}

// out += the sum of the rows of `spans`.
void SumSpans(Context& c, const Tensor& x, const Tensor& out, const Tensor& spans) {
  const Tensor workspace({1, kernels::ColumnSumWorkspace(x.rows(), x.columns())},
                         MemoryTag::kWorkspace);
  ForEachSpan(spans, [&](int64_t begin, int64_t rows, int64_t) {
    kernels::cpu::ColumnSum({.x = x.row(begin),
                             .x_stride = x.columns(),
                             .out = out.f32(),
                             .rows = rows,
                             .width = x.columns(),
                             .workspace = workspace.f32()},
                            c.parallel());
  });
}

}  // namespace

std::vector<double> SquaredRowNorms(Context& c, const Weight& w) {
  constexpr int64_t kRows = 256;
  std::vector<double> squares(static_cast<size_t>(w.outputs()));
  std::vector<int32_t> ids;
  for (int64_t begin = 0; begin < w.outputs(); begin += kRows) {
    ids.resize(static_cast<size_t>(std::min(kRows, w.outputs() - begin)));
    std::iota(ids.begin(), ids.end(), static_cast<int32_t>(begin));
    const Tensor rows = w.Rows(c, ids);
    for (int64_t i = 0; i < rows.rows(); ++i) {
      squares[static_cast<size_t>(begin + i)] = kernels::cpu::SumOfSquares(rows.row(i), w.inputs());
    }
  }
  return squares;
}

Tensor ChangedRowNorms(Context& c, const Weight& w, absl::Span<const double> squares,
                       const Tensor& a, const Tensor& b, float scale) {
  const int64_t rank = a.rows(), outputs = w.outputs();
  PERMAFROST_CHECK(a.columns() == w.inputs() && b.shape() == (Shape{outputs, rank}) &&
                   static_cast<int64_t>(squares.size()) == outputs)
      << "ChangedRowNorms: weight [" << outputs << ", " << w.inputs() << "], A "
      << ToString(a.shape()) << ", B " << ToString(b.shape());
  // The tape is not concerned: the norm is a constant.
  const Tensor wa = Linear(c, Var(a), w).value();  // [r, N]
  Tensor aa({rank, rank}, MemoryTag::kWorkspace);
  MatMulInto(c, {a}, {a, true}, aa, 1, Write::kOverwrite);
  Tensor baa({outputs, rank}, MemoryTag::kWorkspace);
  MatMulInto(c, {b}, {aa}, baa, 1, Write::kOverwrite);
  Tensor norms({1, outputs});
  const double s = static_cast<double>(scale);
  for (int64_t n = 0; n < outputs; ++n) {
    const float *bn = b.row(n), *baan = baa.row(n);
    double cross = 0, own = 0;
    for (int64_t r = 0; r < rank; ++r) {
      cross += static_cast<double>(wa.row(r)[n]) * bn[r];
      own += static_cast<double>(baan[r]) * bn[r];
    }
    const double base = squares[static_cast<size_t>(n)];
    double square = base + 2 * s * cross + s * s * own;
    // Where the terms cancel, their roundings are all that is left.
    constexpr double kCancelled = 1e-2;
    if (square < kCancelled * (base + s * s * own)) {
      const int32_t id = static_cast<int32_t>(n);
      square = SquaredRowNorm(w.Rows(c, {&id, 1}).f32(), a, bn, s);
    }
    norms.f32()[n] = static_cast<float>(std::sqrt(square));
  }
  return norms;
}

Var SetMagnitude(Context& c, Var y, const Var& magnitude, const Tensor& norms, const Var& bias,
                 absl::Span<const TaskSpan> task_spans) {
  const int64_t width = y.columns();
  PERMAFROST_CHECK(magnitude.shape() == (Shape{1, width}) && norms.shape() == (Shape{1, width}) &&
                   (!bias || bias.shape() == (Shape{1, width})))
      << "SetMagnitude: y " << ToString(y.shape()) << ", magnitude " << ToString(magnitude.shape())
      << ", norms " << ToString(norms.shape());
  if (task_spans.empty()) return y;
  // y + (g - 1)(y - bias) = g y + (1 - g) bias, which is y exactly where g = 1.
  Tensor factors({1, width}), offset;
  if (bias) offset = Tensor({1, width}, MemoryTag::kWorkspace);
  for (int64_t n = 0; n < width; ++n) {
    const double g = static_cast<double>(magnitude.value().f32()[n]) / norms.f32()[n];
    factors.f32()[n] = static_cast<float>(g);
    if (bias) offset.f32()[n] = static_cast<float>((1 - g) * bias.value().f32()[n]);
  }
  const Var y_slot(Tensor(), y.slot());
  const bool record = WillRecord(c, {&y_slot, &magnitude, &bias});
  const bool trained = record && magnitude.needs_grad();
  const Tensor spans = SpanTensor(task_spans);
  Saved saved;  // before y is overwritten
  saved.KeepActivation(c, y.value(), trained);
  saved.Keep(norms, trained);
  saved.Keep(bias.value(), trained && bias);
  saved.Keep(factors, record && (y_slot.needs_grad() || bias.needs_grad()));
  saved.Keep(spans, record);
  Tensor out = Tensor::Overwritable(y.TakeValue());
  ScaleSpans(c, out, factors, offset, spans);
  return Record(c, "SetMagnitude", {&y_slot, &magnitude, &bias}, std::move(out), std::move(saved),
                [](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  const Tensor& span_list = s.tensors()[4];
                  const Tensor& bias_kept = s.tensors()[2];
                  const int64_t n = dy.columns();
                  const Tensor sum = Tensor::Zeros({1, n}, MemoryTag::kWorkspace);  // of dy
                  if (g.Needs(2) || (g.Needs(1) && bias_kept)) SumSpans(ctx, dy, sum, span_list);
                  if (g.Needs(1)) {
                    const Tensor kept = s.Get(ctx, 0), norm = s.Get(ctx, 1), dm = g.Accumulator(1);
                    const Tensor product = Tensor::Zeros({1, n}, MemoryTag::kWorkspace);
                    const Tensor workspace({1, kernels::ColumnSumWorkspace(dy.rows(), n)},
                                           MemoryTag::kWorkspace);
                    ForEachSpan(span_list, [&](int64_t begin, int64_t rows, int64_t) {
                      kernels::cpu::ColumnDot({.a = dy.row(begin),
                                               .b = kept.row(begin),
                                               .out = product.f32(),
                                               .rows = rows,
                                               .width = n,
                                               .workspace = workspace.f32()},
                                              ctx.parallel());
                    });
                    for (int64_t i = 0; i < n; ++i) {
                      const float shift = bias_kept ? bias_kept.f32()[i] * sum.f32()[i] : 0;
                      dm.f32()[i] += (product.f32()[i] - shift) / norm.f32()[i];
                    }
                  }
                  if (g.Needs(2)) {
                    const Tensor kept = s.Get(ctx, 3), dbias = g.Accumulator(2);
                    for (int64_t i = 0; i < n; ++i)
                      dbias.f32()[i] += (1 - kept.f32()[i]) * sum.f32()[i];
                  }
                  if (!g.Needs(0)) return;
                  const Tensor dx = dy.Clone();
                  ScaleSpans(ctx, dx, s.Get(ctx, 3), Tensor(), span_list);
                  g.Add(0, dx);
                });
}

}  // namespace permafrost
