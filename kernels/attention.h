// Attention over segments of rows. Query rows of a segment read the key rows of a list of spans:
// its own rows, those of its ancestors (a shared soft prompt, a common text), or, for cross
// attention, the encoder rows of its source. No padding, no mask matrix, no score matrix in memory.
//
// H query heads, G key/value heads (H a multiple of G; query head h reads head h / (H / G)), K head
// size. Score of query i and key j: scale * q_i . k_j + bias[h][distance]. A key is visible if
// !causal or position_j <= position_i. A query row with no visible key gives a zero output row and
// an lse of minus infinity.
#ifndef PERMAFROST_KERNELS_ATTENTION_H_
#define PERMAFROST_KERNELS_ATTENTION_H_

#include "kernels/types.h"

namespace permafrost::kernels {

// Consecutive rows of k and v. Row begin + i has position `position` + i.
struct KeySpan {
  int64_t begin;
  int64_t length;
  int64_t position;
};

// Consecutive rows of q that read spans [span_begin, span_begin + span_count).
struct QuerySegment {
  int64_t begin;
  int64_t length;
  int64_t position;
  int64_t span_begin;
  int64_t span_count;
  int64_t bias_shift = 0;  // added to distances where the bias is looked up, and only there
  // Whether its rows see keys of other calls too (a prefix beside the text): lse and delta are then
  // those over all keys.
  bool partial = false;
};

template <class T>
struct AttentionForwardArgsOf {
  const T* q;  // [R, H * K]
  int64_t q_stride;
  const T* k;  // [key rows, G * K]
  int64_t k_stride;
  const T* v;  // [key rows, G * K]
  int64_t v_stride;
  T* out;  // [R, H * K]
  int64_t out_stride;
  T* lse;  // [R, H] log-sum-exp of the scores; null if no gradient will be taken
  const QuerySegment* segments;
  int64_t segment_count;
  const KeySpan* spans;
  int64_t span_count;
  int64_t heads, key_heads, head_size;
  T scale;
  bool causal;
  // T5's relative position bias by distance: bias[h * (2 M + 1) + M + clamp(position_j -
  // position_i + bias_shift, -M, M)], M = bias_distance. Null for none.
  const T* bias;
  int64_t bias_distance;
  void*
      workspace;  // AttentionForwardWorkspace(...) bytes, 64-byte aligned; unused by the reference
};

// Gradients. dq, dk, dv are overwritten for every row that some segment or span names and must be
// zero-filled by the caller elsewhere (the kernel does not touch other rows); dbias accumulates.
// A key row read by several segments (a shared prompt) sums over them in segment order.
// Any of dq, dk, dv, dbias may be null.
template <class T>
struct AttentionBackwardArgsOf {
  const T* q;
  int64_t q_stride;
  const T* k;
  int64_t k_stride;
  const T* v;
  int64_t v_stride;
  const T* out;  // not read for partial segments
  int64_t out_stride;
  const T* lse;
  const T* delta;  // [R, H] rowsum(dout out) of partial segments' rows; null if there are none
  const T* dout;
  int64_t dout_stride;
  T* dq;
  int64_t dq_stride;
  T* dk;
  int64_t dk_stride;
  T* dv;
  int64_t dv_stride;
  const QuerySegment* segments;
  int64_t segment_count;
  const KeySpan* spans;
  int64_t span_count;
  int64_t heads, key_heads, head_size;
  T scale;
  bool causal;
  const T* bias;
  int64_t bias_distance;
  T* dbias;         // [H, 2 M + 1] or null
  void* workspace;  // AttentionBackwardWorkspace(...) bytes, 64-byte aligned
};

using AttentionForwardArgs = AttentionForwardArgsOf<float>;
using AttentionBackwardArgs = AttentionBackwardArgsOf<float>;

namespace cpu {
int64_t AttentionForwardWorkspace(const AttentionForwardArgs& args, int workers);
void AttentionForward(const AttentionForwardArgs& args, const Parallel& parallel);
int64_t AttentionBackwardWorkspace(const AttentionBackwardArgs& args, int workers);
void AttentionBackward(const AttentionBackwardArgs& args, const Parallel& parallel);
}  // namespace cpu

}  // namespace permafrost::kernels

#endif  // PERMAFROST_KERNELS_ATTENTION_H_
