// Attention problems for tests: forests of segments with data, runs of the reference and of the CPU
// kernels, and bounds on the f32 result's distance from the f64 one.
#ifndef PERMAFROST_TESTS_KERNELS_ATTENTION_PROBLEM_H_
#define PERMAFROST_TESTS_KERNELS_ATTENTION_PROBLEM_H_

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "kernels/attention.h"
#include "kernels/reference/attention.h"

namespace permafrost::kernels {

inline constexpr double kEpsilon = 5.9604644775390625e-8;  // f32 rounding, half a unit
inline constexpr float kSentinel = 12345.0f;

struct AttentionProblem {
  int64_t heads = 1, key_heads = 1, head_size = 8;
  bool causal = false;
  int64_t bias_distance = -1;  // -1: no bias
  double scale = 0.25;
  double magnitude = 1.0;  // of q and k
  int64_t padding = 0;     // extra columns of each row
  std::vector<QuerySegment> segments;
  std::vector<KeySpan> spans;

  // A segment whose keys are the given spans; its rows follow those of the last one after a gap.
  void Add(int64_t length, int64_t position, const std::vector<KeySpan>& reads) {
    segments.push_back({QueryRows() + 1, length, position, static_cast<int64_t>(spans.size()),
                        static_cast<int64_t>(reads.size())});
    spans.insert(spans.end(), reads.begin(), reads.end());
  }
  int64_t QueryRows() const {
    int64_t rows = 0;
    for (const QuerySegment& s : segments) rows = std::max(rows, s.begin + s.length);
    return rows;
  }
  int64_t KeyRows() const {
    int64_t rows = 1;
    for (const KeySpan& s : spans) rows = std::max(rows, s.begin + s.length + 1);
    return rows;
  }
  int64_t QueryStride() const { return heads * head_size + padding; }
  int64_t KeyStride() const { return key_heads * head_size + padding; }
  int64_t Buckets() const { return 2 * bias_distance + 1; }
};

// Inputs, outputs and gradients, [rows + 1, stride] each so that a last row is never named.
template <class T>
struct AttentionData {
  std::vector<T> q, k, v, bias, dout;
  std::vector<T> out, lse, dq, dk, dv, dbias;
};

template <class To, class From>
std::vector<To> Convert(const std::vector<From>& x) {
  return std::vector<To>(x.begin(), x.end());
}

// Random inputs; NaN in the rows and columns that nothing names; sentinels in all outputs.
inline AttentionData<float> MakeData(const AttentionProblem& p, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<double> normal;
  const auto fill = [&](int64_t rows, int64_t stride, int64_t width, double magnitude,
                        const auto& ranges) {
    std::vector<float> x(rows * stride, std::numeric_limits<float>::quiet_NaN());
    for (const auto& range : ranges) {
      for (int64_t i = range.begin; i < range.begin + range.length; ++i) {
        for (int64_t c = 0; c < width; ++c) {
          x[i * stride + c] = static_cast<float>(magnitude * normal(rng));
        }
      }
    }
    return x;
  };
  AttentionData<float> data;
  const int64_t rows = p.QueryRows() + 1, key_rows = p.KeyRows() + 1;
  const int64_t width = p.heads * p.head_size, key_width = p.key_heads * p.head_size;
  data.q = fill(rows, p.QueryStride(), width, p.magnitude, p.segments);
  data.k = fill(key_rows, p.KeyStride(), key_width, p.magnitude, p.spans);
  data.v = fill(key_rows, p.KeyStride(), key_width, 1.0, p.spans);
  data.dout = fill(rows, p.QueryStride(), width, 1.0, p.segments);
  if (p.bias_distance >= 0) {
    for (int64_t i = 0; i < p.heads * p.Buckets(); ++i) {
      data.bias.push_back(static_cast<float>(normal(rng)));
    }
    data.dbias = data.bias;  // a value to accumulate to
  }
  data.out.assign(data.q.size(), kSentinel);
  data.lse.assign(rows * p.heads, kSentinel);
  data.dq.assign(data.q.size(), kSentinel);
  data.dk.assign(data.k.size(), kSentinel);
  data.dv.assign(data.v.size(), kSentinel);
  return data;
}

template <class T>
AttentionData<T> ConvertData(const AttentionData<float>& f) {
  return {Convert<T>(f.q),    Convert<T>(f.k),   Convert<T>(f.v),    Convert<T>(f.bias),
          Convert<T>(f.dout), Convert<T>(f.out), Convert<T>(f.lse),  Convert<T>(f.dq),
          Convert<T>(f.dk),   Convert<T>(f.dv),  Convert<T>(f.dbias)};
}

template <class T>
AttentionForwardArgsOf<T> ForwardArgs(const AttentionProblem& p, AttentionData<T>& d) {
  AttentionForwardArgsOf<T> a = {};
  a.q = d.q.data(), a.k = d.k.data(), a.v = d.v.data(), a.out = d.out.data();
  a.lse = d.lse.data();
  a.q_stride = a.out_stride = p.QueryStride();
  a.k_stride = a.v_stride = p.KeyStride();
  a.segments = p.segments.data(), a.segment_count = static_cast<int64_t>(p.segments.size());
  a.spans = p.spans.data(), a.span_count = static_cast<int64_t>(p.spans.size());
  a.heads = p.heads, a.key_heads = p.key_heads, a.head_size = p.head_size;
  a.scale = static_cast<T>(p.scale), a.causal = p.causal;
  a.bias = p.bias_distance >= 0 ? d.bias.data() : nullptr;
  a.bias_distance = std::max<int64_t>(p.bias_distance, 0);
  return a;
}

template <class T>
AttentionBackwardArgsOf<T> BackwardArgs(const AttentionProblem& p, AttentionData<T>& d) {
  AttentionBackwardArgsOf<T> a = {};
  a.q = d.q.data(), a.k = d.k.data(), a.v = d.v.data(), a.out = d.out.data();
  a.lse = d.lse.data(), a.dout = d.dout.data();
  a.dq = d.dq.data(), a.dk = d.dk.data(), a.dv = d.dv.data();
  a.q_stride = a.out_stride = a.dout_stride = a.dq_stride = p.QueryStride();
  a.k_stride = a.v_stride = a.dk_stride = a.dv_stride = p.KeyStride();
  a.segments = p.segments.data(), a.segment_count = static_cast<int64_t>(p.segments.size());
  a.spans = p.spans.data(), a.span_count = static_cast<int64_t>(p.spans.size());
  a.heads = p.heads, a.key_heads = p.key_heads, a.head_size = p.head_size;
  a.scale = static_cast<T>(p.scale), a.causal = p.causal;
  a.bias = p.bias_distance >= 0 ? d.bias.data() : nullptr;
  a.dbias = p.bias_distance >= 0 ? d.dbias.data() : nullptr;
  a.bias_distance = std::max<int64_t>(p.bias_distance, 0);
  return a;
}

// A pool that starts its threads anew for each call.
struct TestPool {
  int workers;

  Parallel Handle() {
    Parallel parallel;
    parallel.pool = this;
    parallel.workers = workers;
    parallel.run = [](void* pool, int64_t count, void (*task)(void*, int64_t, int), void* context) {
      std::atomic<int64_t> next{0};
      std::vector<std::thread> threads;
      for (int w = 0; w < static_cast<TestPool*>(pool)->workers; ++w) {
        threads.emplace_back([&, w] {
          for (int64_t i; (i = next.fetch_add(1)) < count;) task(context, i, w);
        });
      }
      for (std::thread& t : threads) t.join();
    };
    return parallel;
  }
};

// Exactly `bytes` aligned bytes, filled with NaN, so that sanitizers see an access behind them and
// results show a read of what was never written.
class Workspace {
 public:
  explicit Workspace(int64_t bytes)
      : memory_(std::aligned_alloc(64, std::max<int64_t>((bytes + 63) / 64 * 64, 64)), std::free) {
    std::memset(memory_.get(), 0xff, bytes);
  }
  void* get() { return memory_.get(); }

 private:
  std::unique_ptr<void, void (*)(void*)> memory_;
};

inline void RunForward(const AttentionProblem& p, AttentionData<float>& d, int workers = 1,
                       bool keep_lse = true) {
  AttentionForwardArgs args = ForwardArgs(p, d);
  if (!keep_lse) args.lse = nullptr;
  Workspace workspace(cpu::AttentionForwardWorkspace(args, workers));
  args.workspace = workspace.get();
  TestPool pool{workers};
  cpu::AttentionForward(args, pool.Handle());
}

inline void RunBackward(AttentionBackwardArgs args, int workers = 1) {
  Workspace workspace(cpu::AttentionBackwardWorkspace(args, workers));
  args.workspace = workspace.get();
  TestPool pool{workers};
  cpu::AttentionBackward(args, pool.Handle());
}

// Bounds on |f32 - f64| of each output: first-order sums of rounding steps times the magnitudes
// that they act on. out and lse of the f64 data are inputs of the backward.
inline AttentionData<double> ErrorBounds(const AttentionProblem& p, AttentionData<double>& d) {
  AttentionData<double> e = d;
  for (std::vector<double>* x : {&e.out, &e.lse, &e.dq, &e.dk, &e.dv, &e.dbias}) {
    std::fill(x->begin(), x->end(), 0.0);
  }
  const auto a = ForwardArgs(p, d);
  const int64_t size = p.head_size;
  // Additions into one key row or bias bucket.
  double additions = 0;
  for (const QuerySegment& s : p.segments) additions += static_cast<double>(s.length);
  additions = additions * static_cast<double>(p.heads / p.key_heads) + 20;
  std::vector<double> bucket_sum(d.dbias.size()), bucket_count(d.dbias.size());
  const auto abs_dot = [&](const double* x, const double* y) {
    double sum = 0;
    for (int64_t c = 0; c < size; ++c) sum += std::abs(x[c] * y[c]);
    return sum;
  };
  for (const QuerySegment& segment : p.segments) {
    for (int64_t i = 0; i < segment.length; ++i) {
      const int64_t row = segment.begin + i;
      const auto keys = reference::VisibleKeys(a, segment, i);
      const double key_steps = static_cast<double>(keys.size()) + 20;
      for (int64_t h = 0; h < p.heads; ++h) {
        const int64_t at = row * p.QueryStride() + h * size;
        const int64_t g = h / (p.heads / p.key_heads);
        const double lse = d.lse[row * p.heads + h];
        const double* dout = &d.dout[at];
        // Rounding of a score: the dot product's steps, scale and bias.
        double score = 0;
        for (const auto& key : keys) {
          const double* k = &d.k[key.row * p.KeyStride() + g * size];
          const double bias = a.bias ? std::abs(a.bias[h * p.Buckets() + key.bucket]) : 0.0;
          score = std::max(score, kEpsilon * (static_cast<double>(size) + 4) *
                                      (std::abs(p.scale) * abs_dot(&d.q[at], k) + bias));
        }
        e.lse[row * p.heads + h] = score + kEpsilon * (key_steps + std::abs(lse));
        const double p_forward = 2 * score + kEpsilon * 2 * key_steps;
        const double p_backward = score + kEpsilon * (20 + 2 * std::abs(lse));
        const double delta_error =
            kEpsilon * (static_cast<double>(size) + 4) * abs_dot(dout, &d.out[at]);
        for (const auto& key : keys) {
          const int64_t key_at = key.row * p.KeyStride() + g * size;
          const double* k = &d.k[key_at];
          const double* v = &d.v[key_at];
          const double weight = std::exp(reference::Score<double>(a, row, h, key) - lse);
          const double ds =
              weight * (reference::Dot(dout, v, size) - reference::Dot(dout, &d.out[at], size));
          const double ds_error =
              (p_backward + 4 * kEpsilon) * std::abs(ds) +
              weight *
                  (delta_error + kEpsilon * (static_cast<double>(size) + 4) * abs_dot(dout, v));
          for (int64_t c = 0; c < size; ++c) {
            e.out[at + c] += p_forward * weight * std::abs(v[c]);
            e.dq[at + c] +=
                std::abs(p.scale * k[c]) * (ds_error + kEpsilon * key_steps * std::abs(ds));
            e.dk[key_at + c] +=
                std::abs(p.scale * d.q[at + c]) * (ds_error + kEpsilon * additions * std::abs(ds));
            e.dv[key_at + c] += weight * std::abs(dout[c]) * (p_backward + kEpsilon * additions);
          }
          if (p.bias_distance >= 0) {
            e.dbias[h * p.Buckets() + key.bucket] += ds_error;
            bucket_sum[h * p.Buckets() + key.bucket] += std::abs(ds);
            bucket_count[h * p.Buckets() + key.bucket] += 1;
          }
        }
      }
    }
  }
  for (size_t b = 0; b < e.dbias.size(); ++b) {
    // The last step adds the sum to what was there, here the values of bias.
    e.dbias[b] += kEpsilon * ((bucket_count[b] + 8) * bucket_sum[b] + 2 * std::abs(d.bias[b]));
  }
  return e;
}

}  // namespace permafrost::kernels

#endif  // PERMAFROST_TESTS_KERNELS_ATTENTION_PROBLEM_H_
