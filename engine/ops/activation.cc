// Pointwise activations and gated forms.
#include "engine/check.h"
#include "engine/ops.h"

namespace permafrost {
namespace {

Var Relu(Context& c, Var x) {
  const Var x_slot(Tensor(), x.slot());
  Tensor y = Tensor::Overwritable(x.TakeValue());
  if (!WillRecord(c, {&x_slot})) {
    kernels::cpu::ActivationForward(
        {.activation = Activation::kRelu, .x = y.f32(), .y = y.f32(), .count = y.count()},
        c.parallel());
    return Record(c, "Relu", {&x_slot}, std::move(y), {},
                  [](Context&, const Saved&, const Tensor&, GradSink&) {});
  }
  Tensor mask({1, (y.count() + 31) / 32}, MemoryTag::kActivation, DType::kI32);
  kernels::cpu::ReluMaskForward({.x = y.f32(),
                                 .y = y.f32(),
                                 .mask = reinterpret_cast<uint8_t*>(mask.raw()),
                                 .count = y.count()},
                                c.parallel());
  Saved saved;
  saved.Keep(mask);
  return Record(c, "Relu", {&x_slot}, std::move(y), std::move(saved),
                [](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  Tensor dx(dy.shape());
                  kernels::cpu::ReluMaskBackward(
                      {.mask = reinterpret_cast<const uint8_t*>(s.tensors()[0].raw()),
                       .dy = dy.f32(),
                       .dx = dx.f32(),
                       .count = dy.count()},
                      ctx.parallel());
                  g.Add(0, dx);
                });
}

}  // namespace

Var Activate(Context& c, Activation activation, Var x) {
  if (activation == Activation::kRelu) return Relu(c, std::move(x));
  Tensor y(x.shape());
  kernels::cpu::ActivationForward(
      {.activation = activation, .x = x.value().f32(), .y = y.f32(), .count = y.count()},
      c.parallel());
  Saved saved;
  saved.KeepActivation(c, x.value(), WillRecord(c, {&x}));
  return Record(c, "Activate", {&x}, std::move(y), std::move(saved),
                [activation](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  Tensor dx(dy.shape());
                  const Tensor x_kept = s.Get(ctx, 0);
                  kernels::cpu::ActivationBackward({.activation = activation,
                                                    .x = x_kept.f32(),
                                                    .dy = dy.f32(),
                                                    .dx = dx.f32(),
                                                    .count = dy.count()},
                                                   ctx.parallel());
                  g.Add(0, dx);
                });
}

Var Gated(Context& c, Activation activation, const Var& gate, const Var& up) {
  PERMAFROST_CHECK(gate.shape() == up.shape())
      << "Gated: gate " << ToString(gate.shape()) << ", up " << ToString(up.shape());
  Tensor y(gate.shape());
  kernels::cpu::GatedForward({.activation = activation,
                              .gate = gate.value().f32(),
                              .up = up.value().f32(),
                              .y = y.f32(),
                              .count = y.count()},
                             c.parallel());
  Saved saved;
  const bool record = WillRecord(c, {&gate, &up});
  saved.KeepActivation(c, gate.value(), record);
  saved.KeepActivation(c, up.value(), record && gate.needs_grad());
  return Record(c, "Gated", {&gate, &up}, std::move(y), std::move(saved),
                [activation](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  const Tensor gate_kept = s.Get(ctx, 0);
                  const Tensor up_kept = g.Needs(0) ? s.Get(ctx, 1) : gate_kept;
                  Tensor dgate = g.Needs(0) ? Tensor(dy.shape()) : Tensor();
                  Tensor dup = g.Needs(1) ? Tensor(dy.shape()) : Tensor();
                  kernels::cpu::GatedBackward({.activation = activation,
                                               .gate = gate_kept.f32(),
                                               .up = up_kept.f32(),
                                               .dy = dy.f32(),
                                               .dgate = dgate ? dgate.f32() : nullptr,
                                               .dup = dup ? dup.f32() : nullptr,
                                               .count = dy.count()},
                                              ctx.parallel());
                  if (g.Needs(0)) g.Add(0, dgate);
                  if (g.Needs(1)) g.Add(1, dup);
                });
}

}  // namespace permafrost
