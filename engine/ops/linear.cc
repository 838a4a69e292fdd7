// Products with a frozen weight and with a trainable one.
#include "engine/check.h"
#include "engine/ops.h"
#include "engine/ops/internal.h"
#include "kernels/elementwise.h"

namespace permafrost {

Var Linear(Context& c, const Var& x, const Weight& w, const Tensor& bias) {
  PERMAFROST_CHECK(x.columns() == w.inputs()) << "Linear: x " << ToString(x.shape()) << ", weight ["
                                              << w.outputs() << ", " << w.inputs() << "]";
  Tensor y({x.rows(), w.outputs()});
  {
    Tensor workspace(
        {1,
         kernels::cpu::PackedForwardWorkspace(w.packed(), x.rows(), c.parallel().workers) / 4 + 1},
        MemoryTag::kWorkspace);
    kernels::cpu::PackedForward({.x = x.value().f32(),
                                 .x_stride = x.columns(),
                                 .weight = w.packed(),
                                 .bias = bias ? bias.f32() : nullptr,
                                 .y = y.f32(),
                                 .y_stride = w.outputs(),
                                 .rows = x.rows(),
                                 .write = kernels::Write::kOverwrite,
                                 .workspace = workspace.raw()},
                                c.parallel());
  }
  const Weight* weight = &w;
  return Record(c, "Linear", {&x}, std::move(y), {},
                [weight](Context& ctx, const Saved&, const Tensor& dy, GradSink& g) {
                  GradSink::Target dx = g.Buffer(0);
                  Tensor workspace({1, kernels::cpu::PackedBackwardWorkspace(
                                           weight->packed(), dy.rows(), ctx.parallel().workers) /
                                               4 +
                                           1},
                                   MemoryTag::kWorkspace);
                  kernels::cpu::PackedBackward({.dy = dy.f32(),
                                                .dy_stride = dy.columns(),
                                                .weight = weight->packed(),
                                                .dx = dx.grad.f32(),
                                                .dx_stride = dx.grad.columns(),
                                                .rows = dy.rows(),
                                                .write = dx.write,
                                                .workspace = workspace.raw()},
                                               ctx.parallel());
                });
}

void MatMulInto(Context& c, const MatMulOperand& a, const MatMulOperand& b, const Tensor& out,
                float alpha, kernels::Write write) {
  const int64_t m = a.transpose ? a.tensor.columns() : a.tensor.rows();
  const int64_t k = a.transpose ? a.tensor.rows() : a.tensor.columns();
  const int64_t n = b.transpose ? b.tensor.rows() : b.tensor.columns();
  PERMAFROST_CHECK(k == (b.transpose ? b.tensor.columns() : b.tensor.rows()) &&
                   out.shape() == (Shape{m, n}))
      << "MatMul: " << ToString(a.tensor.shape()) << (a.transpose ? "^T" : "") << " times "
      << ToString(b.tensor.shape()) << (b.transpose ? "^T" : "") << " into "
      << ToString(out.shape());
  Tensor workspace({1, kernels::cpu::MatMulWorkspace(m, n, k, c.parallel().workers) / 4 + 1},
                   MemoryTag::kWorkspace);
  kernels::cpu::MatMul({.a = a.tensor.f32(),
                        .a_stride = a.tensor.columns(),
                        .transpose_a = a.transpose,
                        .b = b.tensor.f32(),
                        .b_stride = b.tensor.columns(),
                        .transpose_b = b.transpose,
                        .c = out.f32(),
                        .c_stride = n,
                        .m = m,
                        .n = n,
                        .k = k,
                        .alpha = alpha,
                        .write = write,
                        .workspace = workspace.raw()},
                       c.parallel());
}

Var MatMulTransposed(Context& c, const Var& x, const Var& w) {
  PERMAFROST_CHECK(x.columns() == w.columns())
      << "MatMulTransposed: x " << ToString(x.shape()) << ", w " << ToString(w.shape());
  Tensor y({x.rows(), w.rows()});
  MatMulInto(c, {x.value()}, {w.value(), true}, y, 1, kernels::Write::kOverwrite);
  Saved saved;
  saved.KeepActivation(c, x.value(), WillRecord(c, {&w}));
  saved.Keep(w.value(), WillRecord(c, {&x}));
  return Record(c, "MatMulTransposed", {&x, &w}, std::move(y), std::move(saved),
                [](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  if (g.Needs(0)) {
                    GradSink::Target dx = g.Buffer(0);
                    MatMulInto(ctx, {dy}, {s.Get(ctx, 1)}, dx.grad, 1, dx.write);
                  }
                  if (g.Needs(1)) {
                    GradSink::Target dw = g.Buffer(1);
                    MatMulInto(ctx, {dy, true}, {s.Get(ctx, 0)}, dw.grad, 1, dw.write);
                  }
                });
}

}  // namespace permafrost
