// Residual adds, scaling, trainable biases, dropout.
#include "kernels/elementwise.h"

#include "engine/check.h"
#include "engine/ops.h"
#include "kernels/dropout.h"

namespace permafrost {

Var Add(Context& c, Var x, const Var& y) {
  PERMAFROST_CHECK(x.shape() == y.shape())
      << "Add: " << ToString(x.shape()) << " and " << ToString(y.shape());
  const Var x_slot(Tensor(), x.slot());
  Tensor z = Tensor::Overwritable(x.TakeValue());
  kernels::cpu::Axpby(
      {.alpha = 1, .x = y.value().f32(), .beta = 1, .y = z.f32(), .count = z.count()},
      c.parallel());
  return Record(c, "Add", {&x_slot, &y}, std::move(z), {},
                [](Context&, const Saved&, const Tensor& dz, GradSink& g) {
                  if (g.Needs(0)) g.Add(0, dz);
                  if (g.Needs(1)) g.Add(1, dz);
                });
}

Var Scale(Context& c, Var x, float factor) {
  const Var x_slot(Tensor(), x.slot());
  Tensor y = Tensor::Overwritable(x.TakeValue());
  kernels::cpu::Axpby({.alpha = 0, .x = nullptr, .beta = factor, .y = y.f32(), .count = y.count()},
                      c.parallel());
  return Record(
      c, "Scale", {&x_slot}, std::move(y), {},
      [factor](Context& ctx, const Saved&, const Tensor& dy, GradSink& g) {
        GradSink::Target dx = g.Buffer(0);
        const float beta = dx.write == kernels::Write::kAccumulate ? 1 : 0;
        kernels::cpu::Axpby(
            {.alpha = factor, .x = dy.f32(), .beta = beta, .y = dx.grad.f32(), .count = dy.count()},
            ctx.parallel());
      });
}

Var AddBias(Context& c, Var y, const Var& bias) {
  PERMAFROST_CHECK(bias.shape() == (Shape{1, y.columns()}))
      << "AddBias: y " << ToString(y.shape()) << ", bias " << ToString(bias.shape());
  const Var y_slot(Tensor(), y.slot());
  Tensor z = Tensor::Overwritable(y.TakeValue());
  kernels::cpu::AddBias({.bias = bias.value().f32(),
                         .y = z.f32(),
                         .y_stride = z.columns(),
                         .rows = z.rows(),
                         .width = z.columns()},
                        c.parallel());
  return Record(c, "AddBias", {&y_slot, &bias}, std::move(z), {},
                [](Context& ctx, const Saved&, const Tensor& dz, GradSink& g) {
                  if (g.Needs(0)) g.Add(0, dz);
                  if (!g.Needs(1)) return;
                  Tensor workspace({1, kernels::ColumnSumWorkspace(dz.rows(), dz.columns())},
                                   MemoryTag::kWorkspace);
                  kernels::cpu::ColumnSum({.x = dz.f32(),
                                           .x_stride = dz.columns(),
                                           .out = g.Accumulator(1).f32(),
                                           .rows = dz.rows(),
                                           .width = dz.columns(),
                                           .workspace = workspace.f32()},
                                          ctx.parallel());
                });
}

namespace {

void ApplyDropout(Context& c, const Tensor& x, const Tensor& y, float rate,
                  const DropoutMask& mask) {
  kernels::cpu::Dropout({.x = x.f32(),
                         .y = y.f32(),
                         .rows = x.rows(),
                         .width = x.columns(),
                         .row_begin = 0,
                         .rate = rate,
                         .seed = mask.seed,
                         .step = mask.step,
                         .place = mask.place},
                        c.parallel());
}

}  // namespace

Var Dropout(Context& c, Var x, float rate, const DropoutMask& mask) {
  if (rate == 0 || !c.training) return x;
  const Var x_slot(Tensor(), x.slot());
  Tensor y = Tensor::Overwritable(x.TakeValue());
  ApplyDropout(c, y, y, rate, mask);
  return Record(c, "Dropout", {&x_slot}, std::move(y), {},
                [rate, mask](Context& ctx, const Saved&, const Tensor& dy, GradSink& g) {
                  Tensor dx(dy.shape());
                  ApplyDropout(ctx, dy, dx, rate, mask);
                  g.Add(0, dx);
                });
}

}  // namespace permafrost
