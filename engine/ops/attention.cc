// Attention over the segments of a row forest, with trained prefixes.
//
// A prefix is a second pass of the same kernels over the rows that see it, merged with the first by
// the two log-sum-exps, as tiles of one attention are (Dao et al. 2022). The gates of a row
// multiply the prefix's keys and values as that row sees them, so the pass runs on queries times
// the keys' gate, and its output counts as many times as the values' gate says.
#include <algorithm>
#include <cmath>

#include "engine/check.h"
#include "engine/ops.h"

namespace permafrost {
namespace {

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

void RunForward(Context& c, kernels::AttentionForwardArgs args, const Tensor& out,
                const Tensor& lse) {
  args.out = out.f32();
  args.lse = lse ? lse.f32() : nullptr;
  const int64_t bytes = kernels::cpu::AttentionForwardWorkspace(args, c.parallel().workers);
  const Tensor workspace({1, bytes / 4 + 1}, MemoryTag::kWorkspace);
  args.workspace = workspace.raw();
  kernels::cpu::AttentionForward(args, c.parallel());
}

// What a backward call of the kernel reads and writes beside its forward arguments.
struct BackwardTensors {
  Tensor out;
  Tensor delta;  // [R, H] of partial segments
  Tensor lse;
  Tensor dout;
  Tensor dq, dk, dv, dbias;  // those wanted
};

void RunBackward(Context& c, const kernels::AttentionForwardArgs& f, const BackwardTensors& t) {
  const auto data = [](const Tensor& x) { return x ? x.f32() : nullptr; };
  kernels::AttentionBackwardArgs args{.q = f.q,
                                      .q_stride = f.q_stride,
                                      .k = f.k,
                                      .k_stride = f.k_stride,
                                      .v = f.v,
                                      .v_stride = f.v_stride,
                                      .out = data(t.out),
                                      .out_stride = f.q_stride,
                                      .lse = t.lse.f32(),
                                      .delta = data(t.delta),
                                      .dout = t.dout.f32(),
                                      .dout_stride = f.q_stride,
                                      .dq = data(t.dq),
                                      .dq_stride = f.q_stride,
                                      .dk = data(t.dk),
                                      .dk_stride = f.k_stride,
                                      .dv = data(t.dv),
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
                                      .dbias = data(t.dbias),
                                      .workspace = nullptr};
  const int64_t bytes = kernels::cpu::AttentionBackwardWorkspace(args, c.parallel().workers);
  const Tensor workspace({1, bytes / 4 + 1}, MemoryTag::kWorkspace);
  args.workspace = workspace.raw();
  kernels::cpu::AttentionBackward(args, c.parallel());
}

// One prefix of an attention as plain tensors: what both directions compute with.
struct PrefixPass {
  Tensor keys, values;  // [P, G K]
  Tensor gate;          // [R, 1], [R, 2] or empty
  // i32 [1 + n, 3]: position of the first slot, whether biased, 0; then of each run of rows that
  // sees the prefix: first row, rows, position of the first.
  Tensor layout;

  bool biased() const { return layout.i32()[1] != 0; }
  AttentionPlan Plan() const {
    AttentionPlan plan;
    for (int64_t i = 1; i < layout.rows(); ++i) {
      const int32_t* s = layout.i32() + 3 * i;
      plan.segments.push_back({s[0], s[1], s[2], 0, 1, 0, true});
    }
    plan.spans.push_back({0, keys.rows(), layout.i32()[0]});
    return plan;
  }
  AttentionOptions Options(AttentionOptions o) const {
    o.causal = false;
    if (!biased()) o.bias_distance = 0;
    return o;
  }
  float KeyGate(int64_t row) const { return gate ? gate.row(row)[0] : 1.0f; }
  float ValueGate(int64_t row) const { return gate ? gate.row(row)[gate.columns() - 1] : 1.0f; }

  // f(row) for every row that sees the prefix.
  template <class F>
  void ForEachRow(F f) const {
    for (int64_t i = 1; i < layout.rows(); ++i) {
      const int32_t* s = layout.i32() + 3 * i;
      for (int64_t row = s[0]; row < s[0] + s[1]; ++row) f(row);
    }
  }
  bool Overlaps(int64_t begin, int64_t end) const {
    for (int64_t i = 1; i < layout.rows(); ++i) {
      const int32_t* s = layout.i32() + 3 * i;
      if (begin < s[0] + s[1] && s[0] < end) return true;
    }
    return false;
  }
  // x with its rows multiplied by a gate; x itself where there is none.
  Tensor Gated(const Tensor& x, float (PrefixPass::*of)(int64_t) const) const {
    if (!gate) return x;
    const Tensor y(x.shape(), MemoryTag::kWorkspace);
    ForEachRow([&](int64_t row) {
      const float g = (this->*of)(row);
      for (int64_t j = 0; j < x.columns(); ++j) y.row(row)[j] = g * x.row(row)[j];
    });
    return y;
  }
};

struct Pass {
  Tensor out;  // [R, H K]
  Tensor lse;  // [R, H]
};

// The prefix alone, from gated queries.
Pass RunPrefix(Context& c, const PrefixPass& prefix, const Tensor& gated_q, const Tensor& bias,
               const AttentionOptions& o) {
  const Pass pass{Tensor(gated_q.shape(), MemoryTag::kWorkspace),
                  Tensor({gated_q.rows(), o.heads}, MemoryTag::kWorkspace)};
  const AttentionPlan plan = prefix.Plan();
  RunForward(c,
             ForwardArgs(gated_q, prefix.keys, prefix.values, prefix.biased() ? bias : Tensor(),
                         plan, prefix.Options(o)),
             pass.out, pass.lse);
  return pass;
}

// Adds the prefix to `total`, which so far holds the attention over the other keys.
void MergePrefix(Context& c, const PrefixPass& prefix, const Tensor& q, const Tensor& bias,
                 const AttentionOptions& o, const Pass& total) {
  const Pass pass = RunPrefix(c, prefix, prefix.Gated(q, &PrefixPass::KeyGate), bias, o);
  prefix.ForEachRow([&](int64_t row) {
    for (int64_t h = 0; h < o.heads; ++h) {
      float& lse = total.lse.row(row)[h];
      const float prefix_lse = pass.lse.row(row)[h];
      const float max = std::max(lse, prefix_lse);
      const float others = std::exp(lse - max), own = std::exp(prefix_lse - max);
      const float sum = others + own;
      const float keep = others / sum, add = own / sum * prefix.ValueGate(row);
      float* out = total.out.row(row) + h * o.head_size;
      const float* from = pass.out.row(row) + h * o.head_size;
      for (int64_t j = 0; j < o.head_size; ++j) out[j] = keep * out[j] + add * from[j];
      lse = max + std::log(sum);
    }
  });
}

float Dot(const float* x, const float* y, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

// The plan with the segments marked of which some row sees a prefix too.
AttentionPlan WithPartialSegments(AttentionPlan plan, absl::Span<const PrefixPass> prefixes) {
  for (const PrefixPass& prefix : prefixes) {
    for (kernels::QuerySegment& s : plan.segments) {
      s.partial = s.partial || prefix.Overlaps(s.begin, s.begin + s.length);
    }
  }
  return plan;
}

// rowsum(dout out) [R, H] of the rows of partial segments.
Tensor Delta(const AttentionPlan& plan, const Tensor& dout, const Tensor& out,
             const AttentionOptions& o) {
  Tensor delta({out.rows(), o.heads}, MemoryTag::kWorkspace);
  for (const kernels::QuerySegment& s : plan.segments) {
    for (int64_t row = s.begin; s.partial && row < s.begin + s.length; ++row) {
      for (int64_t h = 0; h < o.heads; ++h) {
        const int64_t column = h * o.head_size;
        delta.row(row)[h] = Dot(dout.row(row) + column, out.row(row) + column, o.head_size);
      }
    }
  }
  return delta;
}

// The gates' gradients: through the scores of the scaled queries, and of the share of the output.
void AddGateGradient(Context& c, const PrefixPass& prefix, const Tensor& q, const Tensor& gated_q,
                     const Tensor& bias, const AttentionOptions& o, const BackwardTensors& t,
                     const Tensor& dout, const Tensor& dgate) {
  const Pass pass = RunPrefix(c, prefix, gated_q, bias, o);
  prefix.ForEachRow([&](int64_t row) {
    float* dkeys = dgate.row(row);
    float* dvalues = dkeys + dgate.columns() - 1;
    *dkeys += Dot(q.row(row), t.dq.row(row), q.columns());
    float sum = 0;
    for (int64_t h = 0; h < o.heads; ++h) {
      const int64_t column = h * o.head_size;
      sum += std::exp(pass.lse.row(row)[h] - t.lse.row(row)[h]) *
             Dot(dout.row(row) + column, pass.out.row(row) + column, o.head_size);
    }
    *dvalues += sum;
  });
}

// Inputs of the node: q, k, v, bias, then keys, values and gate of each prefix. Kept tensors: the
// same with the output behind v and the log-sum-exp behind the output, and each prefix's segments.
constexpr size_t kPrefixInput = 4, kPrefixInputs = 3;
constexpr int kPrefixKept = 6, kPrefixTensors = 4;

PrefixPass KeptPrefix(const Saved& s, size_t i) {
  const size_t first = kPrefixKept + i * kPrefixTensors;
  const std::vector<Tensor>& t = s.tensors();
  return {t[first], t[first + 1], t[first + 2], t[first + 3]};
}

PrefixPass MakePass(const AttentionPrefix& p) {
  Tensor layout({1 + static_cast<int64_t>(p.segments.size()), 3}, MemoryTag::kWorkspace,
                DType::kI32);
  int32_t* to = layout.i32();
  const auto append = [&](int64_t x, int64_t y, int64_t z) {
    for (const int64_t value : {x, y, z}) *to++ = static_cast<int32_t>(value);
  };
  append(p.position, p.biased, 0);
  for (const PrefixRows& rows : p.segments) append(rows.begin, rows.length, rows.position);
  return {p.keys.value(), p.values.value(), p.gate.value(), layout};
}

}  // namespace

Var Attention(Context& c, const Var& q, const Var& k, const Var& v, const Var& bias,
              const AttentionPlan& plan, const AttentionOptions& o,
              absl::Span<const AttentionPrefix> prefixes) {
  PERMAFROST_CHECK(q.columns() == o.heads * o.head_size && k.shape() == v.shape() &&
                   k.columns() == o.key_heads * o.head_size && o.heads % o.key_heads == 0)
      << "Attention: q " << ToString(q.shape()) << ", k " << ToString(k.shape()) << ", v "
      << ToString(v.shape()) << ", heads " << o.heads << "/" << o.key_heads << " of "
      << o.head_size;
  std::vector<const Var*> inputs = {&q, &k, &v, &bias};
  for (const AttentionPrefix& p : prefixes) {
    PERMAFROST_CHECK(p.keys.shape() == p.values.shape() && p.keys.columns() == k.columns() &&
                     (!p.gate || (p.gate.rows() == q.rows() && p.gate.columns() <= 2)))
        << "Attention: prefix keys " << ToString(p.keys.shape()) << ", values "
        << ToString(p.values.shape()) << ", gate " << ToString(p.gate.shape()) << " for q "
        << ToString(q.shape()) << ", k " << ToString(k.shape());
    inputs.insert(inputs.end(), {&p.keys, &p.values, &p.gate});
  }
  const bool record = WillRecord(c, inputs);
  // The kernel rounds otherwise without a log-sum-exp: a row's bits must not depend on which other
  // rows of the batch need a gradient, nor on whether this is the first run of a recomputed part.
  const bool with_lse = c.tape.mode != TapeMode::kOff || !prefixes.empty();
  const Pass total{Tensor(q.shape()), with_lse ? Tensor({q.rows(), o.heads}) : Tensor()};
  RunForward(c, ForwardArgs(q.value(), k.value(), v.value(), bias.value(), plan, o), total.out,
             total.lse);

  std::vector<PrefixPass> passes;
  for (const AttentionPrefix& p : prefixes) {
    passes.push_back(MakePass(p));
    MergePrefix(c, passes.back(), q.value(), bias.value(), o, total);
  }

  Saved saved;
  saved.KeepActivation(c, q.value(), record);
  saved.KeepActivation(c, k.value(), record);
  saved.KeepActivation(c, v.value(), record);
  saved.KeepActivation(c, total.out, record);
  saved.Keep(total.lse, record);
  saved.Keep(bias.value(), record && bias);
  for (const PrefixPass& p : passes) {
    for (const Tensor* t : {&p.keys, &p.values, &p.gate, &p.layout}) {
      saved.Keep(*t, record && *t);
    }
  }
  const AttentionPlan* text = &plan;
  const size_t count = prefixes.size();
  return Record(
      c, "Attention", inputs, total.out, std::move(saved),
      [text, o, count](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
        const Tensor qs = s.Get(ctx, 0), ks = s.Get(ctx, 1), vs = s.Get(ctx, 2);
        const Tensor out = s.Get(ctx, 3), bias_kept = s.tensors()[5];
        // The kernel overwrites; rows that no segment names keep their zeros.
        const auto fresh = [](bool wanted, const Tensor& like) {
          return wanted ? Tensor::Zeros(like.shape()) : Tensor();
        };
        BackwardTensors t;
        t.lse = s.tensors()[4];
        t.dout = dy;
        t.dq = fresh(g.Needs(0), qs), t.dk = fresh(g.Needs(1), ks), t.dv = fresh(g.Needs(2), vs);
        t.dbias = g.Needs(3) ? g.Accumulator(3) : Tensor();
        t.out = out;
        std::vector<PrefixPass> prefixes_kept;
        for (size_t i = 0; i < count; ++i) prefixes_kept.push_back(KeptPrefix(s, i));
        const AttentionPlan marked =
            count > 0 ? WithPartialSegments(*text, prefixes_kept) : AttentionPlan();
        if (count > 0) t.delta = Delta(marked, dy, out, o);
        RunBackward(ctx, ForwardArgs(qs, ks, vs, bias_kept, count > 0 ? marked : *text, o), t);
        for (size_t i = 0; i < count; ++i) {
          const PrefixPass& prefix = prefixes_kept[i];
          const size_t input = kPrefixInput + i * kPrefixInputs;
          const bool gate_wanted = prefix.gate && g.Needs(input + 2);
          BackwardTensors p;
          p.lse = t.lse, p.delta = t.delta;
          const Tensor gated_q = prefix.Gated(qs, &PrefixPass::KeyGate);
          p.dout = prefix.Gated(dy, &PrefixPass::ValueGate);
          p.dq = fresh(g.Needs(0) || gate_wanted, qs);
          p.dk = fresh(g.Needs(input), prefix.keys);
          p.dv = fresh(g.Needs(input + 1), prefix.values);
          p.dbias = prefix.biased() ? t.dbias : Tensor();
          const AttentionPlan plan_of_prefix = prefix.Plan();
          RunBackward(ctx,
                      ForwardArgs(gated_q, prefix.keys, prefix.values,
                                  prefix.biased() ? bias_kept : Tensor(), plan_of_prefix,
                                  prefix.Options(o)),
                      p);
          if (gate_wanted) {
            AddGateGradient(ctx, prefix, qs, gated_q, bias_kept, o, p, dy,
                            g.Accumulator(input + 2));
          }
          if (t.dq) {
            prefix.ForEachRow([&](int64_t row) {
              const float gate = prefix.KeyGate(row);
              for (int64_t j = 0; j < qs.columns(); ++j)
                t.dq.row(row)[j] += gate * p.dq.row(row)[j];
            });
          }
          if (p.dk) g.Add(input, p.dk);
          if (p.dv) g.Add(input + 1, p.dv);
        }
        if (t.dq) g.Add(0, t.dq);
        if (t.dk) g.Add(1, t.dk);
        if (t.dv) g.Add(2, t.dv);
      });
}

}  // namespace permafrost
