// LoRA on an embedding: x += scale * (B A)[:, ids]^T on the rows of some task spans.
#include "engine/check.h"
#include "engine/ops.h"
#include "engine/ops/internal.h"

namespace permafrost {
namespace {

using kernels::Write;

Tensor IdTensor(absl::Span<const int32_t> ids) {
  Tensor t({1, static_cast<int64_t>(ids.size())}, MemoryTag::kWorkspace, DType::kI32);
  std::copy(ids.begin(), ids.end(), t.i32());
  return t;
}

}  // namespace

Var AddEmbeddingLowRank(Context& c, Var x, const Var& a, const Var& b, float scale,
                        absl::Span<const int32_t> ids, absl::Span<const TaskSpan> task_spans) {
  PERMAFROST_CHECK(static_cast<int64_t>(ids.size()) == x.rows() && b.columns() == a.rows() &&
                   b.rows() == x.columns())
      << "AddEmbeddingLowRank: x " << ToString(x.shape()) << ", A " << ToString(a.shape()) << ", B "
      << ToString(b.shape()) << ", " << ids.size() << " ids";
  int64_t rows = 0;
  for (const TaskSpan& s : task_spans) rows += s.end - s.begin;
  if (rows == 0) return x;
  const Tensor spans = SpanTensor(task_spans), id_list = IdTensor(ids);

  Tensor h({rows, a.rows()});
  const Var x_slot(Tensor(), x.slot());
  Tensor out = Tensor::Overwritable(x.TakeValue());
  ForEachSpan(spans, [&](int64_t begin, int64_t n, int64_t packed) {
    for (int64_t i = 0; i < n; ++i) {
      const int32_t id = id_list.i32()[begin + i];
      PERMAFROST_CHECK(id >= 0 && id < a.columns()) << "AddEmbeddingLowRank: id " << id;
      for (int64_t r = 0; r < a.rows(); ++r) h.row(packed + i)[r] = a.value().row(r)[id];
    }
    MatMulInto(c, {h.RowRange(packed, n)}, {b.value(), true}, out.RowRange(begin, n), scale,
               Write::kAccumulate);
  });

  const bool record = WillRecord(c, {&x_slot, &a, &b});
  Saved saved;
  saved.Keep(h, record && b.needs_grad());
  saved.Keep(b.value(), record && a.needs_grad());
  saved.Keep(spans, record);
  saved.Keep(id_list, record && a.needs_grad());
  return Record(c, "AddEmbeddingLowRank", {&x_slot, &a, &b}, std::move(out), std::move(saved),
                [scale](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  ForEachSpan(s.tensors()[2], [&](int64_t begin, int64_t n, int64_t packed) {
                    const Tensor dys = dy.RowRange(begin, n);
                    if (g.Needs(2)) {
                      const GradSink::Target db = g.Buffer(2);
                      MatMulInto(ctx, {dys, true}, {s.Get(ctx, 0).RowRange(packed, n)}, db.grad,
                                 scale, db.write);
                    }
                    if (!g.Needs(1)) return;
                    const Tensor b_kept = s.Get(ctx, 1), da = g.Accumulator(1);
                    Tensor dh({n, b_kept.columns()}, MemoryTag::kWorkspace);
                    MatMulInto(ctx, {dys}, {b_kept}, dh, scale, Write::kOverwrite);
                    for (int64_t i = 0; i < n; ++i) {
                      const int32_t id = s.tensors()[3].i32()[begin + i];
                      for (int64_t r = 0; r < dh.columns(); ++r) da.row(r)[id] += dh.row(i)[r];
                    }
                  });
                  if (g.Needs(0)) g.Add(0, dy);
                });
}

}  // namespace permafrost
