// Work on the rows of some tasks: what lets a batch mix methods.
#include <cstring>

#include "engine/check.h"
#include "engine/ops.h"
#include "engine/ops/internal.h"
#include "kernels/elementwise.h"

namespace permafrost {
namespace {

int64_t CountRows(absl::Span<const TaskSpan> spans) {
  int64_t rows = 0;
  for (const TaskSpan& s : spans) rows += s.end - s.begin;
  return rows;
}

void Copy(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row, int64_t rows) {
  std::memcpy(to.row(to_row), from.row(from_row),
              static_cast<size_t>(rows * to.columns()) * sizeof(float));
}

// The rows of `spans` packed.
Tensor Packed(const Tensor& x, const Tensor& spans, int64_t rows) {
  Tensor y({rows, x.columns()});
  ForEachSpan(spans,
              [&](int64_t begin, int64_t n, int64_t packed) { Copy(x, begin, y, packed, n); });
  return y;
}

}  // namespace

Var TakeRows(Context& c, const Var& x, absl::Span<const TaskSpan> task_spans) {
  const int64_t rows = CountRows(task_spans);
  if (rows == x.rows()) return x;
  const Tensor spans = SpanTensor(task_spans);
  Saved saved;
  saved.Keep(spans, WillRecord(c, {&x}));
  return Record(c, "TakeRows", {&x}, Packed(x.value(), spans, rows), std::move(saved),
                [](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  const Tensor dx = g.Accumulator(0);
                  ForEachSpan(s.tensors()[0], [&](int64_t begin, int64_t n, int64_t packed) {
                    kernels::cpu::Axpby({.alpha = 1,
                                         .x = dy.row(packed),
                                         .beta = 1,
                                         .y = dx.row(begin),
                                         .count = n * dx.columns()},
                                        ctx.parallel());
                  });
                });
}

Var PutRows(Context& c, Var x, const Var& rows, absl::Span<const TaskSpan> task_spans) {
  PERMAFROST_CHECK(rows.shape() == (Shape{CountRows(task_spans), x.columns()}))
      << "PutRows: rows " << ToString(rows.shape()) << " for " << CountRows(task_spans) << " of "
      << ToString(x.shape());
  if (rows.rows() == x.rows()) return rows;
  const Var x_slot(Tensor(), x.slot());
  const Tensor spans = SpanTensor(task_spans);
  Tensor y = Tensor::Overwritable(x.TakeValue());
  ForEachSpan(spans, [&](int64_t begin, int64_t n, int64_t packed) {
    Copy(rows.value(), packed, y, begin, n);
  });
  Saved saved;
  saved.Keep(spans, WillRecord(c, {&x_slot, &rows}));
  return Record(c, "PutRows", {&x_slot, &rows}, std::move(y), std::move(saved),
                [](Context&, const Saved& s, const Tensor& dy, GradSink& g) {
                  const Tensor span_list = s.tensors()[0];
                  if (g.Needs(1)) {
                    int64_t count = 0;
                    ForEachSpan(span_list, [&](int64_t, int64_t n, int64_t) { count += n; });
                    g.Add(1, Packed(dy, span_list, count));
                  }
                  if (!g.Needs(0)) return;
                  const Tensor dx = dy.Clone();
                  ForEachSpan(span_list, [&](int64_t begin, int64_t n, int64_t) {
                    std::memset(dx.row(begin), 0,
                                static_cast<size_t>(n * dx.columns()) * sizeof(float));
                  });
                  g.Add(0, dx);
                });
}

Var ScaleRows(Context& c, Var x, const Var& gate) {
  PERMAFROST_CHECK(gate.shape() == (Shape{x.rows(), 1}))
      << "ScaleRows: x " << ToString(x.shape()) << ", gate " << ToString(gate.shape());
  const Var x_slot(Tensor(), x.slot());
  Saved saved;  // before x is overwritten
  saved.KeepActivation(c, x.value(), WillRecord(c, {&gate}));
  saved.Keep(gate.value(), WillRecord(c, {&x_slot}));
  Tensor y = Tensor::Overwritable(x.TakeValue());
  const auto scale = [](const Tensor& rows, const Tensor& factors) {
    for (int64_t i = 0; i < rows.rows(); ++i) {
      for (int64_t j = 0; j < rows.columns(); ++j) rows.row(i)[j] *= factors.f32()[i];
    }
  };
  scale(y, gate.value());
  return Record(c, "ScaleRows", {&x_slot, &gate}, std::move(y), std::move(saved),
                [scale](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  if (g.Needs(1)) {
                    const Tensor kept = s.Get(ctx, 0), dgate = g.Accumulator(1);
                    for (int64_t i = 0; i < dy.rows(); ++i) {
                      float sum = 0;
                      for (int64_t j = 0; j < dy.columns(); ++j) {
                        sum += dy.row(i)[j] * kept.row(i)[j];
                      }
                      dgate.f32()[i] += sum;
                    }
                  }
                  if (!g.Needs(0)) return;
                  const Tensor dx = dy.Clone();
                  scale(dx, s.Get(ctx, 1));
                  g.Add(0, dx);
                });
}

}  // namespace permafrost
