// Attention at the shapes of real training steps. GF/s counts the visible (query, key) pairs only:
// 4 K flops a pair and head forward, 10 K backward. `of_peak` is over the f32 FMA probe.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/probe.h"

namespace permafrost::kernels {
namespace {

struct Shape {
  int64_t heads, key_heads, head_size;
  bool causal;
  int64_t bias_distance;  // -1: none
  std::vector<QuerySegment> segments;
  std::vector<KeySpan> spans;
  int64_t rows = 0, key_rows = 0;

  void Add(int64_t length, int64_t position, const std::vector<KeySpan>& reads) {
    segments.push_back({rows, length, position, static_cast<int64_t>(spans.size()),
                        static_cast<int64_t>(reads.size())});
    rows += length;
    for (const KeySpan& span : reads) {
      spans.push_back(span);
      key_rows = std::max(key_rows, span.begin + span.length);
    }
  }
  double Pairs() const {
    double pairs = 0;
    for (const QuerySegment& s : segments) {
      for (int64_t i = 0; i < s.length; ++i) {
        for (int64_t j = s.span_begin; j < s.span_begin + s.span_count; ++j) {
          const int64_t seen = causal ? s.position + i - spans[j].position + 1 : spans[j].length;
          pairs += static_cast<double>(std::clamp<int64_t>(seen, 0, spans[j].length));
        }
      }
    }
    return pairs * static_cast<double>(heads);
  }
};

// 16 texts of 128 tokens under one soft prompt of 100 (SmolLM2-135M).
Shape SharedPrompt() {
  Shape s = {9, 3, 64, true, -1, {}, {}};
  for (int64_t i = 0; i < 16; ++i) s.Add(128, 100, {{0, 100, 0}, {100 + 128 * i, 128, 100}});
  return s;
}
Shape Texts() {
  Shape s = {9, 3, 64, true, -1, {}, {}};
  for (int64_t i = 0; i < 16; ++i) s.Add(128, 0, {{128 * i, 128, 0}});
  return s;
}
Shape Long() {
  Shape s = {9, 3, 64, true, -1, {}, {}};
  s.Add(2048, 0, {{0, 2048, 0}});
  return s;
}
// T5-base: prompt of 100 and text of 128, both directions.
Shape T5Encoder() {
  Shape s = {12, 12, 64, false, 128, {}, {}};
  for (int64_t i = 0; i < 32; ++i) s.Add(228, 0, {{228 * i, 228, 0}});
  return s;
}
Shape T5Cross() {
  Shape s = {12, 12, 64, false, -1, {}, {}};
  for (int64_t i = 0; i < 32; ++i) s.Add(8, 0, {{228 * i, 228, 0}});
  return s;
}
Shape Generate(int64_t keys) {
  Shape s = {9, 3, 64, true, -1, {}, {}};
  s.Add(1, keys - 1, {{0, keys, 0}});
  return s;
}

struct Buffers {
  explicit Buffers(const Shape& shape) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, int64_t count) {
      x.resize(count);
      for (float& v : x) v = normal(rng);
    };
    const int64_t width = shape.heads * shape.head_size;
    const int64_t key_width = shape.key_heads * shape.head_size;
    for (auto* x : {&q, &out, &dout, &dq}) fill(*x, shape.rows * width);
    for (auto* x : {&k, &v, &dk, &dv}) fill(*x, shape.key_rows * key_width);
    lse.resize(shape.rows * shape.heads);
    if (shape.bias_distance >= 0) fill(bias, shape.heads * (2 * shape.bias_distance + 1));
  }
  std::vector<float> q, k, v, out, lse, dout, dq, dk, dv, bias;
};

template <class Args>
Args CommonArgs(const Shape& shape, Buffers& b) {
  Args a = {};
  const int64_t width = shape.heads * shape.head_size;
  const int64_t key_width = shape.key_heads * shape.head_size;
  a.q = b.q.data(), a.k = b.k.data(), a.v = b.v.data(), a.out = b.out.data(), a.lse = b.lse.data();
  a.q_stride = a.out_stride = width;
  a.k_stride = a.v_stride = key_width;
  a.segments = shape.segments.data(), a.segment_count = shape.segments.size();
  a.spans = shape.spans.data(), a.span_count = shape.spans.size();
  a.heads = shape.heads, a.key_heads = shape.key_heads, a.head_size = shape.head_size;
  a.scale = 0.125f, a.causal = shape.causal;
  if (shape.bias_distance >= 0) a.bias = b.bias.data(), a.bias_distance = shape.bias_distance;
  return a;
}

using Memory = std::unique_ptr<void, void (*)(void*)>;
Memory Allocate(int64_t bytes) {
  return Memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64), std::free);
}

void Report(benchmark::State& state, const Shape& shape, double flops_per_element) {
  const double flops = shape.Pairs() * static_cast<double>(shape.head_size) * flops_per_element;
  state.counters["GF/s"] =
      benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] = benchmark::Counter(flops * 1e-9 / cpu::FmaProbeGflops(0.05),
                                                 benchmark::Counter::kIsIterationInvariantRate);
}

void Forward(benchmark::State& state, const Shape& shape) {
  Buffers b(shape);
  auto args = CommonArgs<AttentionForwardArgs>(shape, b);
  if (shape.rows == 1) args.lse = nullptr;  // generation takes no gradient
  const Memory workspace = Allocate(cpu::AttentionForwardWorkspace(args, 1));
  args.workspace = workspace.get();
  for (auto _ : state) cpu::AttentionForward(args, Parallel());
  Report(state, shape, 4);
}

void Backward(benchmark::State& state, const Shape& shape) {
  Buffers b(shape);
  auto forward = CommonArgs<AttentionForwardArgs>(shape, b);
  const Memory forward_workspace = Allocate(cpu::AttentionForwardWorkspace(forward, 1));
  forward.workspace = forward_workspace.get();
  cpu::AttentionForward(forward, Parallel());
  auto args = CommonArgs<AttentionBackwardArgs>(shape, b);
  args.dout = b.dout.data(), args.dout_stride = args.q_stride;
  args.dq = b.dq.data(), args.dq_stride = args.q_stride;
  args.dk = b.dk.data(), args.dk_stride = args.k_stride;
  args.dv = b.dv.data(), args.dv_stride = args.v_stride;
  const Memory workspace = Allocate(cpu::AttentionBackwardWorkspace(args, 1));
  args.workspace = workspace.get();
  for (auto _ : state) cpu::AttentionBackward(args, Parallel());
  Report(state, shape, 10);
}

BENCHMARK_CAPTURE(Forward, shared_prompt, SharedPrompt());
BENCHMARK_CAPTURE(Forward, texts, Texts());
BENCHMARK_CAPTURE(Forward, long_text, Long());
BENCHMARK_CAPTURE(Forward, t5_encoder, T5Encoder());
BENCHMARK_CAPTURE(Forward, t5_cross, T5Cross());
BENCHMARK_CAPTURE(Forward, generate_100, Generate(100));
BENCHMARK_CAPTURE(Forward, generate_2000, Generate(2000));
BENCHMARK_CAPTURE(Backward, shared_prompt, SharedPrompt());
BENCHMARK_CAPTURE(Backward, texts, Texts());
BENCHMARK_CAPTURE(Backward, long_text, Long());
BENCHMARK_CAPTURE(Backward, t5_encoder, T5Encoder());
BENCHMARK_CAPTURE(Backward, t5_cross, T5Cross());

}  // namespace
}  // namespace permafrost::kernels
