// The definition of attention over segments (kernels/attention.h), one query row and head at a
// time. Shape legend there. Segments name disjoint query rows. Non-goals: speed.
#ifndef PERMAFROST_KERNELS_REFERENCE_ATTENTION_H_
#define PERMAFROST_KERNELS_REFERENCE_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention.h"

namespace permafrost::kernels::reference {

// A key that a query row sees, and where its score's bias stands in the table.
struct VisibleKey {
  int64_t row;
  int64_t bucket;
};

// The keys that row i of a segment sees, in the order of its spans. Args is any attention argument
// struct.
template <class Args>
std::vector<VisibleKey> VisibleKeys(const Args& a, const QuerySegment& segment, int64_t i) {
  std::vector<VisibleKey> keys;
  for (int64_t s = segment.span_begin; s < segment.span_begin + segment.span_count; ++s) {
    const KeySpan& span = a.spans[s];
    for (int64_t j = 0; j < span.length; ++j) {
      const int64_t distance = span.position + j - (segment.position + i);
      if (a.causal && distance > 0) continue;
      const int64_t limit = a.bias_distance;
      keys.push_back(
          {span.begin + j, limit + std::clamp(distance + segment.bias_shift, -limit, limit)});
    }
  }
  return keys;
}

template <class T>
T Dot(const T* x, const T* y, int64_t n) {
  T sum = 0;
  for (int64_t c = 0; c < n; ++c) sum += x[c] * y[c];
  return sum;
}

template <class T, class Args>
T Score(const Args& a, int64_t row, int64_t h, const VisibleKey& key) {
  const int64_t g = h / (a.heads / a.key_heads);
  const T dot = Dot(a.q + row * a.q_stride + h * a.head_size,
                    a.k + key.row * a.k_stride + g * a.head_size, a.head_size);
  const T bias = a.bias != nullptr ? a.bias[h * (2 * a.bias_distance + 1) + key.bucket] : T(0);
  return a.scale * dot + bias;
}

template <class T>
void AttentionForward(const AttentionForwardArgsOf<T>& a) {
  for (int64_t s = 0; s < a.segment_count; ++s) {
    const QuerySegment& segment = a.segments[s];
    for (int64_t i = 0; i < segment.length; ++i) {
      const int64_t row = segment.begin + i;
      const std::vector<VisibleKey> keys = VisibleKeys(a, segment, i);
      for (int64_t h = 0; h < a.heads; ++h) {
        const int64_t g = h / (a.heads / a.key_heads);
        T* out = a.out + row * a.out_stride + h * a.head_size;
        std::fill(out, out + a.head_size, T(0));
        std::vector<T> weights;
        T max = -std::numeric_limits<T>::infinity();
        for (const VisibleKey& key : keys) {
          weights.push_back(Score<T>(a, row, h, key));
          max = std::max(max, weights.back());
        }
        T sum = 0;
        for (T& w : weights) {
          w = std::exp(w - max);
          sum += w;
        }
        for (size_t j = 0; j < keys.size(); ++j) {
          const T* v = a.v + keys[j].row * a.v_stride + g * a.head_size;
          for (int64_t c = 0; c < a.head_size; ++c) out[c] += weights[j] / sum * v[c];
        }
        if (a.lse != nullptr) a.lse[row * a.heads + h] = keys.empty() ? max : max + std::log(sum);
      }
    }
  }
}

template <class T>
void ZeroRows(T* x, int64_t stride, int64_t begin, int64_t length, int64_t width) {
  if (x == nullptr) return;
  for (int64_t i = begin; i < begin + length; ++i) {
    std::fill(x + i * stride, x + i * stride + width, T(0));
  }
}

template <class T>
void AttentionBackward(const AttentionBackwardArgsOf<T>& a) {
  for (int64_t s = 0; s < a.segment_count; ++s) {
    ZeroRows(a.dq, a.dq_stride, a.segments[s].begin, a.segments[s].length, a.heads * a.head_size);
  }
  for (int64_t s = 0; s < a.span_count; ++s) {
    const int64_t width = a.key_heads * a.head_size;
    ZeroRows(a.dk, a.dk_stride, a.spans[s].begin, a.spans[s].length, width);
    ZeroRows(a.dv, a.dv_stride, a.spans[s].begin, a.spans[s].length, width);
  }
  for (int64_t s = 0; s < a.segment_count; ++s) {
    const QuerySegment& segment = a.segments[s];
    for (int64_t i = 0; i < segment.length; ++i) {
      const int64_t row = segment.begin + i;
      const std::vector<VisibleKey> keys = VisibleKeys(a, segment, i);
      for (int64_t h = 0; h < a.heads; ++h) {
        const int64_t query_column = h * a.head_size;
        const int64_t key_column = h / (a.heads / a.key_heads) * a.head_size;
        const T* q = a.q + row * a.q_stride + query_column;
        const T* dout = a.dout + row * a.dout_stride + query_column;
        // The sum over the keys of p * dp, since out = sum p v.
        const T delta = segment.partial
                            ? a.delta[row * a.heads + h]
                            : Dot(dout, a.out + row * a.out_stride + query_column, a.head_size);
        for (const VisibleKey& key : keys) {
          const T* k = a.k + key.row * a.k_stride + key_column;
          const T* v = a.v + key.row * a.v_stride + key_column;
          const T p = std::exp(Score<T>(a, row, h, key) - a.lse[row * a.heads + h]);
          const T ds = p * (Dot(dout, v, a.head_size) - delta);
          for (int64_t c = 0; c < a.head_size; ++c) {
            if (a.dq != nullptr) a.dq[row * a.dq_stride + query_column + c] += a.scale * ds * k[c];
            if (a.dk != nullptr)
              a.dk[key.row * a.dk_stride + key_column + c] += a.scale * ds * q[c];
            if (a.dv != nullptr) a.dv[key.row * a.dv_stride + key_column + c] += p * dout[c];
          }
          if (a.dbias != nullptr) a.dbias[h * (2 * a.bias_distance + 1) + key.bucket] += ds;
        }
      }
    }
  }
}

}  // namespace permafrost::kernels::reference

#endif  // PERMAFROST_KERNELS_REFERENCE_ATTENTION_H_
