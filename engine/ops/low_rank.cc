// LoRA's term (Hu et al. 2021, eq. 3): y += scale * dropout(x) A^T B^T on the rows of some task
// spans.
#include "engine/check.h"
#include "engine/ops.h"
#include "engine/ops/internal.h"
#include "kernels/dropout.h"

namespace permafrost {
namespace {

using kernels::Write;

// Rows of x, which the mask counts from row_begin, after dropout (or its gradient, which is the
// same function).
Tensor Dropped(Context& c, const Tensor& x, int64_t row_begin, const LowRank& options) {
  if (options.dropout == 0 || !c.training) return x;
  Tensor y(x.shape(), MemoryTag::kWorkspace);
  kernels::cpu::Dropout({.x = x.f32(),
                         .y = y.f32(),
                         .rows = x.rows(),
                         .width = x.columns(),
                         .row_begin = row_begin,
                         .rate = options.dropout,
                         .seed = options.mask.seed,
                         .step = options.mask.step,
                         .place = options.mask.place},
                        c.parallel());
  return y;
}

// h with row i multiplied by gate[row_begin + i]; h itself without a gate.
Tensor Gated(const Tensor& h, const Tensor& gate, int64_t row_begin) {
  if (!gate) return h;
  const Tensor y(h.shape(), MemoryTag::kWorkspace);
  for (int64_t i = 0; i < h.rows(); ++i) {
    const float factor = gate.f32()[row_begin + i];
    for (int64_t j = 0; j < h.columns(); ++j) y.row(i)[j] = factor * h.row(i)[j];
  }
  return y;
}

// out [n, 1] += rowsum(x y).
void AddRowDots(const Tensor& x, const Tensor& y, const Tensor& out) {
  for (int64_t i = 0; i < x.rows(); ++i) {
    float sum = 0;
    for (int64_t j = 0; j < x.columns(); ++j) sum += x.row(i)[j] * y.row(i)[j];
    out.f32()[i] += sum;
  }
}

}  // namespace

Var AddLowRank(Context& c, Var y, const Var& x, const Var& a, const Var& b, const LowRank& options,
               absl::Span<const TaskSpan> task_spans, const Var& gate) {
  PERMAFROST_CHECK(x.rows() == y.rows() && x.columns() == a.columns() && b.columns() == a.rows() &&
                   b.rows() == y.columns() && (!gate || gate.shape() == (Shape{y.rows(), 1})))
      << "AddLowRank: y " << ToString(y.shape()) << ", x " << ToString(x.shape()) << ", A "
      << ToString(a.shape()) << ", B " << ToString(b.shape());
  const Tensor spans = SpanTensor(task_spans);
  int64_t rows = 0;
  for (const TaskSpan& s : task_spans) rows += s.end - s.begin;
  if (rows == 0) return y;

  Tensor h({rows, a.rows()});  // x A^T, before the gate
  const auto y_slot = Var(Tensor(), y.slot());
  Tensor out = Tensor::Overwritable(y.TakeValue());
  ForEachSpan(spans, [&](int64_t begin, int64_t n, int64_t packed) {
    const Tensor xs = Dropped(c, x.value().RowRange(begin, n), packed, options);
    const Tensor hs = h.RowRange(packed, n);
    MatMulInto(c, {xs}, {a.value(), true}, hs, 1, Write::kOverwrite);
    MatMulInto(c, {Gated(hs, gate.value(), begin)}, {b.value(), true}, out.RowRange(begin, n),
               options.scale, Write::kAccumulate);
  });

  Saved saved;
  const bool record = WillRecord(c, {&y_slot, &x, &a, &b, &gate});
  const bool inner = x.needs_grad() || a.needs_grad() || gate.needs_grad();
  saved.KeepActivation(c, x.value(), record && a.needs_grad());
  saved.Keep(h, record && (b.needs_grad() || gate.needs_grad()));
  saved.Keep(a.value(), record && x.needs_grad());
  saved.Keep(b.value(), record && inner);
  saved.Keep(spans, record);
  saved.Keep(gate.value(), record && gate);
  return Record(c, "AddLowRank", {&y_slot, &x, &a, &b, &gate}, std::move(out), std::move(saved),
                [options](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  const Tensor x_kept = g.Needs(2) ? s.Get(ctx, 0) : Tensor();
                  const Tensor gates = s.tensors()[5];
                  ForEachSpan(s.tensors()[4], [&](int64_t begin, int64_t n, int64_t packed) {
                    const Tensor dys = dy.RowRange(begin, n);
                    if (g.Needs(3)) {
                      const Tensor gated = Gated(s.Get(ctx, 1).RowRange(packed, n), gates, begin);
                      GradSink::Target db = g.Buffer(3);
                      MatMulInto(ctx, {dys, true}, {gated}, db.grad, options.scale, db.write);
                    }
                    if (!g.Needs(1) && !g.Needs(2) && !g.Needs(4)) return;
                    const Tensor b_kept = s.Get(ctx, 3);
                    Tensor dh({n, b_kept.columns()}, MemoryTag::kWorkspace);
                    MatMulInto(ctx, {dys}, {b_kept}, dh, options.scale, Write::kOverwrite);
                    if (g.Needs(4)) {
                      AddRowDots(dh, s.Get(ctx, 1).RowRange(packed, n),
                                 g.Accumulator(4).RowRange(begin, n));
                    }
                    dh = Gated(dh, gates, begin);
                    if (g.Needs(2)) {
                      GradSink::Target da = g.Buffer(2);
                      const Tensor xs = Dropped(ctx, x_kept.RowRange(begin, n), packed, options);
                      MatMulInto(ctx, {dh, true}, {xs}, da.grad, 1, da.write);
                    }
                    if (!g.Needs(1)) return;
                    const Tensor dxs = g.Accumulator(1).RowRange(begin, n);
                    if (options.dropout == 0 || !ctx.training) {
                      MatMulInto(ctx, {dh}, {s.Get(ctx, 2)}, dxs, 1, Write::kAccumulate);
                      return;
                    }
                    Tensor undropped({n, dxs.columns()}, MemoryTag::kWorkspace);
                    MatMulInto(ctx, {dh}, {s.Get(ctx, 2)}, undropped, 1, Write::kOverwrite);
                    const Tensor dropped = Dropped(ctx, undropped, packed, options);
                    for (int64_t i = 0; i < dropped.count(); ++i) {
                      dxs.f32()[i] += dropped.f32()[i];
                    }
                  });
                  if (g.Needs(0)) g.Add(0, dy);
                });
}

}  // namespace permafrost
