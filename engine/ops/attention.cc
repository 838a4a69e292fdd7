// Attention over the segments of a row forest, and rotary position embedding.
#include <cstring>

#include "engine/check.h"
#include "engine/ops.h"
#include "kernels/rope.h"

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

kernels::AttentionForwardArgs ForwardArgs(const Tensor& q, const Tensor& k, const Tensor& v,
                                          const Tensor& bias, const AttentionPlan& plan,
                                          const AttentionOptions& o) {
  return {.q = q.f32(),
          .q_stride = q.columns(),
          .k = k.f32(),
          .k_stride = k.columns(),
          .v = v.f32(),
          .v_stride = v.columns(),
          .out = nullptr,
          .out_stride = q.columns(),
          .lse = nullptr,
          .segments = plan.segments.data(),
          .segment_count = static_cast<int64_t>(plan.segments.size()),
          .spans = plan.spans.data(),
          .span_count = static_cast<int64_t>(plan.spans.size()),
          .heads = o.heads,
          .key_heads = o.key_heads,
          .head_size = o.head_size,
          .scale = o.scale,
          .causal = o.causal,
          .bias = bias ? bias.f32() : nullptr,
          .bias_distance = o.bias_distance,
          .workspace = nullptr};
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

Var Attention(Context& c, const Var& q, const Var& k, const Var& v, const Var& bias,
              const AttentionPlan& plan, const AttentionOptions& o) {
  PERMAFROST_CHECK(q.columns() == o.heads * o.head_size && k.shape() == v.shape() &&
                   k.columns() == o.key_heads * o.head_size && o.heads % o.key_heads == 0)
      << "Attention: q " << ToString(q.shape()) << ", k " << ToString(k.shape()) << ", v "
      << ToString(v.shape()) << ", heads " << o.heads << "/" << o.key_heads << " of "
      << o.head_size;
  const bool record = WillRecord(c, {&q, &k, &v, &bias});
  // Also in the first run of a recomputed part: the kernel rounds otherwise without a log-sum-exp,
  // and both runs must give the same bits.
  const bool with_lse = c.tape.mode != TapeMode::kOff &&
                        (q.needs_grad() || k.needs_grad() || v.needs_grad() || bias.needs_grad());
  Tensor out(q.shape());
  Tensor lse = with_lse ? Tensor({q.rows(), o.heads}) : Tensor();
  {
    kernels::AttentionForwardArgs args =
        ForwardArgs(q.value(), k.value(), v.value(), bias.value(), plan, o);
    args.out = out.f32();
    args.lse = with_lse ? lse.f32() : nullptr;
    const int64_t bytes = kernels::cpu::AttentionForwardWorkspace(args, c.parallel().workers);
    Tensor workspace({1, bytes / 4 + 1}, MemoryTag::kWorkspace);
    args.workspace = workspace.raw();
    kernels::cpu::AttentionForward(args, c.parallel());
  }
  Saved saved;
  saved.KeepActivation(c, q.value(), record);
  saved.KeepActivation(c, k.value(), record);
  saved.KeepActivation(c, v.value(), record);
  saved.KeepActivation(c, out, record);
  saved.Keep(lse, record);
  saved.Keep(bias.value(), record && bias);
  const AttentionPlan* p = &plan;
  return Record(c, "Attention", {&q, &k, &v, &bias}, std::move(out), std::move(saved),
                [p, o](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
                  const Tensor qs = s.Get(ctx, 0), ks = s.Get(ctx, 1), vs = s.Get(ctx, 2),
                               outs = s.Get(ctx, 3);
                  const Tensor bias_kept = s.tensors()[5];
                  // The kernel overwrites; rows that no segment names keep their zeros.
                  auto fresh = [&](size_t input, const Tensor& like) {
                    return g.Needs(input) ? Tensor::Zeros(like.shape()) : Tensor();
                  };
                  const Tensor dq = fresh(0, qs), dk = fresh(1, ks), dv = fresh(2, vs);
                  const Tensor dbias = g.Needs(3) ? g.Accumulator(3) : Tensor();
                  const kernels::AttentionForwardArgs f = ForwardArgs(qs, ks, vs, bias_kept, *p, o);
                  kernels::AttentionBackwardArgs args{.q = f.q,
                                                      .q_stride = f.q_stride,
                                                      .k = f.k,
                                                      .k_stride = f.k_stride,
                                                      .v = f.v,
                                                      .v_stride = f.v_stride,
                                                      .out = outs.f32(),
                                                      .out_stride = outs.columns(),
                                                      .lse = s.tensors()[4].f32(),
                                                      .dout = dy.f32(),
                                                      .dout_stride = dy.columns(),
                                                      .dq = dq ? dq.f32() : nullptr,
                                                      .dq_stride = f.q_stride,
                                                      .dk = dk ? dk.f32() : nullptr,
                                                      .dk_stride = f.k_stride,
                                                      .dv = dv ? dv.f32() : nullptr,
                                                      .dv_stride = f.v_stride,
                                                      .segments = f.segments,
                                                      .segment_count = f.segment_count,
                                                      .spans = f.spans,
                                                      .span_count = f.span_count,
                                                      .heads = f.heads,
                                                      .key_heads = f.key_heads,
                                                      .head_size = f.head_size,
                                                      .scale = f.scale,
                                                      .causal = f.causal,
                                                      .bias = f.bias,
                                                      .bias_distance = f.bias_distance,
                                                      .dbias = dbias ? dbias.f32() : nullptr,
                                                      .workspace = nullptr};
                  const int64_t bytes =
                      kernels::cpu::AttentionBackwardWorkspace(args, ctx.parallel().workers);
                  Tensor workspace({1, bytes / 4 + 1}, MemoryTag::kWorkspace);
                  args.workspace = workspace.raw();
                  kernels::cpu::AttentionBackward(args, ctx.parallel());
                  if (dq) g.Add(0, dq);
                  if (dk) g.Add(1, dk);
                  if (dv) g.Add(2, dv);
                });
}

}  // namespace permafrost
