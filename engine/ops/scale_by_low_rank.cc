// A table scaled elementwise by a low-rank matrix.
#include "engine/check.h"
#include "engine/ops.h"
#include "engine/ops/internal.h"

namespace permafrost {

Var ScaleByLowRank(Context& c, const Var& x, const Var& a, const Var& b, const LowRankScale& part) {
  const int64_t ranks = a.columns();
  PERMAFROST_CHECK(x.columns() == b.columns() && part.rows <= x.rows() &&
                   part.a_begin + part.rows <= a.rows() && part.b_begin + ranks <= b.rows())
      << "ScaleByLowRank: x " << ToString(x.shape()) << ", a " << ToString(a.shape()) << " from "
      << part.a_begin << ", b " << ToString(b.shape()) << " from " << part.b_begin;
  const Tensor scale({part.rows, x.columns()}), y({part.rows, x.columns()});
  MatMulInto(c, {a.value().RowRange(part.a_begin, part.rows)},
             {b.value().RowRange(part.b_begin, ranks)}, scale, 1, kernels::Write::kOverwrite);
  for (int64_t i = 0; i < y.count(); ++i) y.f32()[i] = x.value().f32()[i] * scale.f32()[i];
  const bool factors = a.needs_grad() || b.needs_grad();
  Saved saved;
  saved.Keep(x.value(), factors);
  saved.Keep(a.value(), b.needs_grad());
  saved.Keep(b.value(), a.needs_grad());
  saved.Keep(scale, x.needs_grad());
  return Record(c, "ScaleByLowRank", {&x, &a, &b}, y, std::move(saved),
                [part, ranks](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  if (g.Needs(0)) {
                    const Tensor scaled = s.Get(ctx, 3), dx = g.Accumulator(0);
                    for (int64_t i = 0; i < dy.count(); ++i)
                      dx.f32()[i] += dy.f32()[i] * scaled.f32()[i];
                  }
                  if (!g.Needs(1) && !g.Needs(2)) return;
                  const Tensor table = s.Get(ctx, 0), dscale(dy.shape(), MemoryTag::kWorkspace);
                  for (int64_t i = 0; i < dy.count(); ++i) {
                    dscale.f32()[i] = dy.f32()[i] * table.f32()[i];
                  }
                  if (g.Needs(1)) {
                    MatMulInto(ctx, {dscale}, {s.Get(ctx, 2).RowRange(part.b_begin, ranks), true},
                               g.Accumulator(1).RowRange(part.a_begin, part.rows), 1,
                               kernels::Write::kAccumulate);
                  }
                  if (g.Needs(2)) {
                    MatMulInto(ctx, {s.Get(ctx, 1).RowRange(part.a_begin, part.rows), true},
                               {dscale}, g.Accumulator(2).RowRange(part.b_begin, ranks), 1,
                               kernels::Write::kAccumulate);
                  }
                });
}

}  // namespace permafrost
