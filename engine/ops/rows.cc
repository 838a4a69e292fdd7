// Row and column selection: labelled rows, virtual tokens, the parts of a fused projection.
#include <algorithm>

#include "engine/check.h"
#include "engine/ops.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"

namespace permafrost {

using kernels::Write;

Var Columns(Context& c, const Var& x, int64_t begin, int64_t width) {
  PERMAFROST_CHECK(begin >= 0 && width >= 0 && begin + width <= x.columns())
      << "Columns: " << begin << " + " << width << " of " << ToString(x.shape());
  Tensor y({x.rows(), width});
  kernels::cpu::CopyRows({.x = x.value().f32() + begin,
                          .x_stride = x.columns(),
                          .y = y.f32(),
                          .y_stride = width,
                          .rows = x.rows(),
                          .width = width,
                          .write = Write::kOverwrite},
                         c.parallel());
  return Record(c, "Columns", {&x}, std::move(y), {},
                [begin](Context& ctx, const Saved&, const Tensor& dy, GradSink& g) {
                  const Tensor dx = g.Accumulator(0);
                  kernels::cpu::CopyRows({.x = dy.f32(),
                                          .x_stride = dy.columns(),
                                          .y = dx.f32() + begin,
                                          .y_stride = dx.columns(),
                                          .rows = dy.rows(),
                                          .width = dy.columns(),
                                          .write = Write::kAccumulate},
                                         ctx.parallel());
                });
}

Var GatherRows(Context& c, const Var& x, const std::vector<int32_t>& ids) {
  Tensor y({static_cast<int64_t>(ids.size()), x.columns()});
  kernels::cpu::GatherRows({.table = x.value().f32(),
                            .ids = ids.data(),
                            .out = y.f32(),
                            .count = y.rows(),
                            .width = y.columns()},
                           c.parallel());
  const int32_t* id_data = ids.data();
  return Record(c, "GatherRows", {&x}, std::move(y), {},
                [id_data](Context& ctx, const Saved&, const Tensor& dy, GradSink& g) {
                  kernels::cpu::ScatterAddRows({.dout = dy.f32(),
                                                .ids = id_data,
                                                .dtable = g.Accumulator(0).f32(),
                                                .count = dy.rows(),
                                                .width = dy.columns()},
                                               ctx.parallel());
                });
}

Var ReplaceRows(Context& c, Var x, const std::vector<int32_t>& rows, const Var& source,
                const std::vector<int32_t>& source_rows) {
  PERMAFROST_CHECK(rows.size() == source_rows.size() && x.columns() == source.columns())
      << "ReplaceRows: x " << ToString(x.shape()) << ", source " << ToString(source.shape()) << ", "
      << rows.size() << " rows from " << source_rows.size();
  const Var x_slot(Tensor(), x.slot());
  Tensor y = Tensor::Overwritable(x.TakeValue());
  for (size_t i = 0; i < rows.size(); ++i) {
    PERMAFROST_CHECK(source_rows[i] < source.rows() && rows[i] < y.rows())
        << "ReplaceRows: row " << rows[i] << " of " << y.rows() << " from row " << source_rows[i]
        << " of " << source.rows();
    std::copy_n(source.value().row(source_rows[i]), y.columns(), y.row(rows[i]));
  }
  const int32_t* to = rows.data();
  const int32_t* from = source_rows.data();
  const int64_t count = static_cast<int64_t>(rows.size());
  return Record(c, "ReplaceRows", {&x_slot, &source}, std::move(y), {},
                [to, from, count](Context& ctx, const Saved&, const Tensor& dy, GradSink& g) {
                  if (g.Needs(1)) {
                    Tensor picked({count, dy.columns()}, MemoryTag::kWorkspace);
                    kernels::cpu::GatherRows({.table = dy.f32(),
                                              .ids = to,
                                              .out = picked.f32(),
                                              .count = count,
                                              .width = dy.columns()},
                                             ctx.parallel());
                    kernels::cpu::ScatterAddRows({.dout = picked.f32(),
                                                  .ids = from,
                                                  .dtable = g.Accumulator(1).f32(),
                                                  .count = count,
                                                  .width = dy.columns()},
                                                 ctx.parallel());
                  }
                  if (g.Needs(0)) {
                    Tensor dx = dy.Clone();
                    for (int64_t i = 0; i < count; ++i) {
                      std::fill_n(dx.row(to[i]), dx.columns(), 0.0f);
                    }
                    g.Add(0, dx);
                  }
                });
}

Var SpreadBuckets(Context& c, const Var& table, const std::vector<int32_t>& buckets) {
  const int64_t heads = table.columns(), distances = static_cast<int64_t>(buckets.size());
  Tensor y({heads, distances});
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t d = 0; d < distances; ++d) {
      y.row(h)[d] = table.value().row(buckets[static_cast<size_t>(d)])[h];
    }
  }
  const int32_t* bucket = buckets.data();
  return Record(c, "SpreadBuckets", {&table}, std::move(y), {},
                [bucket](Context&, const Saved&, const Tensor& dy, GradSink& g) {
                  const Tensor dtable = g.Accumulator(0);
                  for (int64_t h = 0; h < dy.rows(); ++h) {
                    for (int64_t d = 0; d < dy.columns(); ++d) {
                      dtable.row(bucket[d])[h] += dy.row(h)[d];
                    }
                  }
                });
}

}  // namespace permafrost
