// Rotary position embedding.
#include "kernels/rope.h"

#include "engine/check.h"
#include "engine/ops.h"

namespace permafrost {
namespace {

void Rotate(Context& c, const Tensor& x, const Tensor& y, const Tensor& cos, const Tensor& sin,
            const int32_t* positions, int64_t heads, kernels::Rotation rotation) {
  kernels::cpu::Rope({.x = x.f32(),
                      .y = y.f32(),
                      .positions = positions,
                      .cos = cos.f32(),
                      .sin = sin.f32(),
                      .rows = x.rows(),
                      .heads = heads,
                      .head_size = x.columns() / heads,
                      .rotation = rotation},
                     c.parallel());
}

}  // namespace

Var Rope(Context& c, Var x, const RopeTable& table, const std::vector<int32_t>& positions,
         int64_t heads) {
  PERMAFROST_CHECK(x.rows() == static_cast<int64_t>(positions.size()) &&
                   x.columns() == heads * table.cos.columns() * 2)
      << "Rope: x " << ToString(x.shape()) << ", " << positions.size() << " positions, " << heads
      << " heads of " << table.cos.columns() * 2;
  const Var x_slot(Tensor(), x.slot());
  Tensor y = Tensor::Overwritable(x.TakeValue());
  Rotate(c, y, y, table.cos, table.sin, positions.data(), heads, kernels::Rotation::kForward);
  const RopeTable* t = &table;
  const int32_t* p = positions.data();
  return Record(c, "Rope", {&x_slot}, std::move(y), {},
                [t, p, heads](Context& ctx, const Saved&, const Tensor& dy, GradSink& g) {
                  Tensor dx(dy.shape());
                  Rotate(ctx, dy, dx, t->cos, t->sin, p, heads, kernels::Rotation::kInverse);
                  g.Add(0, dx);
                });
}

}  // namespace permafrost
