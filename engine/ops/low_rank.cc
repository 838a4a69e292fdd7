// LoRA's term (Hu et al. 2021, eq. 3): y += scale * dropout(x) A^T B^T on the rows of some task
// spans.
#include "engine/check.h"
#include "engine/ops.h"
#include "engine/ops/internal.h"
#include "kernels/dropout.h"

namespace permafrost {
namespace {

using kernels::Write;

// Rows [begin, begin + rows) of x after dropout (or its gradient, which is the same function).
Tensor Dropped(Context& c, const Tensor& x, int64_t row_begin, const LowRank& options) {
  if (options.dropout == 0 || !c.training) return x;
  Tensor y(x.shape(), MemoryTag::kWorkspace);
  kernels::cpu::Dropout({.x = x.f32(),
                         .y = y.f32(),
                         .rows = x.rows(),
                         .width = x.columns(),
                         .row_begin = row_begin,
                         .rate = options.dropout,
                         .seed = c.seed,
                         .step = c.step,
                         .place = options.place},
                        c.parallel());
  return y;
}

}  // namespace

Var AddLowRank(Context& c, Var y, const Var& x, const Var& a, const Var& b, const LowRank& options,
               absl::Span<const TaskSpan> task_spans) {
  PERMAFROST_CHECK(x.rows() == y.rows() && x.columns() == a.columns() && b.columns() == a.rows() &&
                   b.rows() == y.columns())
      << "AddLowRank: y " << ToString(y.shape()) << ", x " << ToString(x.shape()) << ", A "
      << ToString(a.shape()) << ", B " << ToString(b.shape());
  const Tensor spans = SpanTensor(task_spans);
  int64_t rows = 0;
  for (const TaskSpan& s : task_spans) rows += s.end - s.begin;
  if (rows == 0) return y;

  Tensor h({rows, a.rows()});
  const auto y_slot = Var(Tensor(), y.slot());
  Tensor out = Tensor::Overwritable(y.TakeValue());
  ForEachSpan(spans, [&](int64_t begin, int64_t n, int64_t packed) {
    const Tensor xs = Dropped(c, x.value().RowRange(begin, n), begin, options);
    MatMulInto(c, {xs}, {a.value(), true}, h.RowRange(packed, n), 1, Write::kOverwrite);
    MatMulInto(c, {h.RowRange(packed, n)}, {b.value(), true}, out.RowRange(begin, n), options.scale,
               Write::kAccumulate);
  });

  Saved saved;
  const bool record = WillRecord(c, {&y_slot, &x, &a, &b});
  saved.KeepActivation(c, x.value(), record && a.needs_grad());
  saved.Keep(h, record && b.needs_grad());
  saved.Keep(a.value(), record && x.needs_grad());
  saved.Keep(b.value(), record && (x.needs_grad() || a.needs_grad()));
  saved.Keep(spans, record);
  return Record(c, "AddLowRank", {&y_slot, &x, &a, &b}, std::move(out), std::move(saved),
                [options](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  const Tensor& span_list = s.tensors()[4];
                  const Tensor x_kept = g.Needs(2) ? s.Get(ctx, 0) : Tensor();
                  const Tensor dx = g.Needs(1) ? g.Accumulator(1) : Tensor();
                  ForEachSpan(span_list, [&](int64_t begin, int64_t n, int64_t packed) {
                    const Tensor dys = dy.RowRange(begin, n);
                    if (g.Needs(3)) {
                      GradSink::Target db = g.Buffer(3);
                      MatMulInto(ctx, {dys, true}, {s.Get(ctx, 1).RowRange(packed, n)}, db.grad,
                                 options.scale, db.write);
                    }
                    if (!g.Needs(1) && !g.Needs(2)) return;
                    const Tensor b_kept = s.Get(ctx, 3);
                    Tensor dh({n, b_kept.columns()}, MemoryTag::kWorkspace);
                    MatMulInto(ctx, {dys}, {b_kept}, dh, options.scale, Write::kOverwrite);
                    if (g.Needs(2)) {
                      GradSink::Target da = g.Buffer(2);
                      const Tensor xs = Dropped(ctx, x_kept.RowRange(begin, n), begin, options);
                      MatMulInto(ctx, {dh, true}, {xs}, da.grad, 1, da.write);
                    }
                    if (g.Needs(1)) {
                      const Tensor dxs = dx.RowRange(begin, n);
                      if (options.dropout == 0 || !ctx.training) {
                        MatMulInto(ctx, {dh}, {s.Get(ctx, 2)}, dxs, 1, Write::kAccumulate);
                      } else {
                        Tensor undropped({n, dx.columns()}, MemoryTag::kWorkspace);
                        MatMulInto(ctx, {dh}, {s.Get(ctx, 2)}, undropped, 1, Write::kOverwrite);
                        const Tensor dropped = Dropped(ctx, undropped, begin, options);
                        for (int64_t i = 0; i < dropped.count(); ++i)
                          dxs.f32()[i] += dropped.f32()[i];
                      }
                    }
                  });
                  if (g.Needs(0)) g.Add(0, dy);
                });
}

}  // namespace permafrost
