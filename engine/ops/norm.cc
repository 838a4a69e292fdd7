// RMSNorm and LayerNorm. A frozen scale costs no gradient work and keeps nothing more.
#include "kernels/norm.h"

#include "engine/check.h"
#include "engine/ops.h"

namespace permafrost {
namespace {

Tensor ReductionWorkspace(bool needed, const Tensor& dy) {
  const int64_t count = needed ? kernels::NormBackwardWorkspace(dy.rows(), dy.columns()) : 0;
  return Tensor({1, count}, MemoryTag::kWorkspace);
}

}  // namespace

Var RmsNorm(Context& c, const Var& x, const Var& scale, float epsilon) {
  PERMAFROST_CHECK(scale.shape() == (Shape{1, x.columns()}))
      << "RmsNorm: x " << ToString(x.shape()) << ", scale " << ToString(scale.shape());
  Tensor y(x.shape());
  Tensor inv_rms({1, x.rows()});
  kernels::cpu::RmsNormForward({.x = x.value().f32(),
                                .scale = scale.value().f32(),
                                .y = y.f32(),
                                .inv_rms = inv_rms.f32(),
                                .rows = x.rows(),
                                .width = x.columns(),
                                .epsilon = epsilon},
                               c.parallel());
  const bool record = WillRecord(c, {&x, &scale});
  Saved saved;
  saved.KeepActivation(c, x.value(), record);
  saved.Keep(inv_rms, record);
  saved.Keep(scale.value(), record);
  return Record(c, "RmsNorm", {&x, &scale}, std::move(y), std::move(saved),
                [](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  const GradSink::Target dx = g.Needs(0) ? g.Buffer(0) : GradSink::Target{};
                  const Tensor dscale = g.Needs(1) ? g.Accumulator(1) : Tensor();
                  const Tensor workspace = ReductionWorkspace(g.Needs(1), dy);
                  const Tensor x_kept = s.Get(ctx, 0);
                  kernels::cpu::RmsNormBackward({.x = x_kept.f32(),
                                                 .scale = s.Get(ctx, 2).f32(),
                                                 .inv_rms = s.Get(ctx, 1).f32(),
                                                 .dy = dy.f32(),
                                                 .dx = dx.grad ? dx.grad.f32() : nullptr,
                                                 .write_dx = dx.write,
                                                 .dscale = dscale ? dscale.f32() : nullptr,
                                                 .rows = dy.rows(),
                                                 .width = dy.columns(),
                                                 .workspace = workspace.f32()},
                                                ctx.parallel());
                });
}

Var LayerNorm(Context& c, const Var& x, const Var& scale, const Var& bias, float epsilon) {
  PERMAFROST_CHECK(scale.shape() == (Shape{1, x.columns()}) && bias.shape() == scale.shape())
      << "LayerNorm: x " << ToString(x.shape()) << ", scale " << ToString(scale.shape())
      << ", bias " << ToString(bias.shape());
  Tensor y(x.shape());
  Tensor mean({1, x.rows()}), inv_std({1, x.rows()});
  kernels::cpu::LayerNormForward({.x = x.value().f32(),
                                  .scale = scale.value().f32(),
                                  .bias = bias.value().f32(),
                                  .y = y.f32(),
                                  .mean = mean.f32(),
                                  .inv_std = inv_std.f32(),
                                  .rows = x.rows(),
                                  .width = x.columns(),
                                  .epsilon = epsilon},
                                 c.parallel());
  const bool record = WillRecord(c, {&x, &scale, &bias});
  Saved saved;
  saved.KeepActivation(c, x.value(), record);
  saved.Keep(mean, record);
  saved.Keep(inv_std, record);
  saved.Keep(scale.value(), record);
  return Record(c, "LayerNorm", {&x, &scale, &bias}, std::move(y), std::move(saved),
                [](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  const GradSink::Target dx = g.Needs(0) ? g.Buffer(0) : GradSink::Target{};
                  const Tensor dscale = g.Needs(1) ? g.Accumulator(1) : Tensor();
                  const Tensor dbias = g.Needs(2) ? g.Accumulator(2) : Tensor();
                  const Tensor workspace = ReductionWorkspace(g.Needs(1) || g.Needs(2), dy);
                  const Tensor x_kept = s.Get(ctx, 0);
                  kernels::cpu::LayerNormBackward({.x = x_kept.f32(),
                                                   .scale = s.Get(ctx, 3).f32(),
                                                   .mean = s.Get(ctx, 1).f32(),
                                                   .inv_std = s.Get(ctx, 2).f32(),
                                                   .dy = dy.f32(),
                                                   .dx = dx.grad ? dx.grad.f32() : nullptr,
                                                   .write_dx = dx.write,
                                                   .dscale = dscale ? dscale.f32() : nullptr,
                                                   .dbias = dbias ? dbias.f32() : nullptr,
                                                   .rows = dy.rows(),
                                                   .width = dy.columns(),
                                                   .workspace = workspace.f32()},
                                                  ctx.parallel());
                });
}

}  // namespace permafrost
