// A trained bias on the rows of some task spans.
#include "engine/check.h"
#include "engine/ops.h"
#include "engine/ops/internal.h"
#include "kernels/elementwise.h"

namespace permafrost {

Var AddSpanBias(Context& c, Var y, const Var& bias, float scale,
                absl::Span<const TaskSpan> task_spans) {
  PERMAFROST_CHECK(bias.shape() == (Shape{1, y.columns()}))
      << "AddSpanBias: y " << ToString(y.shape()) << ", bias " << ToString(bias.shape());
  if (task_spans.empty()) return y;
  const Tensor spans = SpanTensor(task_spans);
  const Var y_slot(Tensor(), y.slot());
  Tensor out = Tensor::Overwritable(y.TakeValue());
  Tensor scaled({1, out.columns()}, MemoryTag::kWorkspace);
  for (int64_t i = 0; i < scaled.count(); ++i) scaled.f32()[i] = scale * bias.value().f32()[i];
  ForEachSpan(spans, [&](int64_t begin, int64_t rows, int64_t) {
    kernels::cpu::AddBias({.bias = scaled.f32(),
                           .y = out.row(begin),
                           .y_stride = out.columns(),
                           .rows = rows,
                           .width = out.columns()},
                          c.parallel());
  });
  Saved saved;
  saved.Keep(spans, WillRecord(c, {&bias}));
  return Record(c, "AddSpanBias", {&y_slot, &bias}, std::move(out), std::move(saved),
                [scale](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  if (g.Needs(1)) {
                    const int64_t width = dy.columns();
                    const Tensor sum = Tensor::Zeros({1, width}, MemoryTag::kWorkspace);
                    const Tensor workspace({1, kernels::ColumnSumWorkspace(dy.rows(), width)},
                                           MemoryTag::kWorkspace);
                    ForEachSpan(s.tensors()[0], [&](int64_t begin, int64_t rows, int64_t) {
                      kernels::cpu::ColumnSum({.x = dy.row(begin),
                                               .x_stride = width,
                                               .out = sum.f32(),
                                               .rows = rows,
                                               .width = width,
                                               .workspace = workspace.f32()},
                                              ctx.parallel());
                    });
                    const Tensor dbias = g.Accumulator(1);
                    for (int64_t i = 0; i < width; ++i) dbias.f32()[i] += scale * sum.f32()[i];
                  }
                  if (g.Needs(0)) g.Add(0, dy);
                });
}

}  // namespace permafrost
