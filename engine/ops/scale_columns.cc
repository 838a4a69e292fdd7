// IA3's rescaling (Liu et al. 2022): x * l on the rows of some task spans.
#include "engine/check.h"
#include "engine/ops.h"
#include "engine/ops/internal.h"
#include "kernels/elementwise.h"

namespace permafrost {
namespace {

// x *= scale on the rows of `spans`.
void ScaleSpans(Context& c, const Tensor& x, const Tensor& scale, const Tensor& spans) {
  ForEachSpan(spans, [&](int64_t begin, int64_t rows, int64_t) {
    const Tensor part = x.RowRange(begin, rows);
    kernels::cpu::ScaleColumns({.x = part.f32(),
                                .scale = scale.f32(),
                                .y = part.f32(),
                                .rows = rows,
                                .width = x.columns()},
                               c.parallel());
  });
}

}  // namespace

Var ScaleColumns(Context& c, Var x, const Var& scale, absl::Span<const TaskSpan> task_spans) {
  PERMAFROST_CHECK(scale.shape() == (Shape{1, x.columns()}))
      << "ScaleColumns: x " << ToString(x.shape()) << ", scale " << ToString(scale.shape());
  if (task_spans.empty()) return x;
  const Var x_slot(Tensor(), x.slot());
  const bool record = WillRecord(c, {&x_slot, &scale});
  const Tensor spans = SpanTensor(task_spans);
  Saved saved;  // before x is overwritten
  saved.KeepActivation(c, x.value(), record && scale.needs_grad());
  saved.Keep(scale.value(), record && x_slot.needs_grad());
  saved.Keep(spans, record);
  Tensor y = Tensor::Overwritable(x.TakeValue());
  ScaleSpans(c, y, scale.value(), spans);
  return Record(c, "ScaleColumns", {&x_slot, &scale}, std::move(y), std::move(saved),
                [](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  const Tensor span_list = s.tensors()[2];
                  if (g.Needs(1)) {
                    const Tensor x_kept = s.Get(ctx, 0), dscale = g.Accumulator(1);
                    const Tensor workspace(
                        {1, kernels::ColumnSumWorkspace(dy.rows(), dy.columns())},
                        MemoryTag::kWorkspace);
                    ForEachSpan(span_list, [&](int64_t begin, int64_t rows, int64_t) {
                      kernels::cpu::ColumnDot({.a = dy.row(begin),
                                               .b = x_kept.row(begin),
                                               .out = dscale.f32(),
                                               .rows = rows,
                                               .width = dy.columns(),
                                               .workspace = workspace.f32()},
                                              ctx.parallel());
                    });
                  }
                  if (!g.Needs(0)) return;
                  const Tensor dx = dy.Clone();
                  ScaleSpans(ctx, dx, s.Get(ctx, 1), span_list);
                  g.Add(0, dx);
                });
}

}  // namespace permafrost
