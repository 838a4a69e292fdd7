// How the attention kernels cut their work and their workspace: what does not depend on the SIMD
// target. Forward items are (segment, key head, chunk of query rows), backward items (segment, key
// head); neither depends on the number of workers, so no result bit does.
//
// "Logical row" r of a segment and key head g: query row r / group of query head g * group +
// r % group, group = H / G. All query heads of a key head are then rows of one product, and a block
// of logical rows covers few positions.
#ifndef PERMAFROST_KERNELS_CPU_ATTENTION_LAYOUT_H_
#define PERMAFROST_KERNELS_CPU_ATTENTION_LAYOUT_H_

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/attention.h"

namespace permafrost::kernels::cpu {

// Scores exist for one tile of kRowBlock logical rows x kKeyBlock keys at a time. Both are
// multiples of every register tile and vector.
inline constexpr int64_t kRowBlock = 48;
inline constexpr int64_t kKeyBlock = 96;
// Logical rows of a forward item: enough that packing the keys is cheap.
inline constexpr int64_t kRowChunk = 384;
// Padding of packed head vectors: the widest SIMD vector.
inline constexpr int64_t kMaxLanes = 16;
// Positions are kept relative to the segment and clamped to +-kFarPosition: far beyond any query
// row or bias distance, and differences still fit.
inline constexpr int64_t kFarPosition = int64_t{1} << 29;
// Position of padding behind the last key: later than any query.
inline constexpr int32_t kNoPosition = std::numeric_limits<int32_t>::max();

inline int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// A shift beyond any position acts as one at kFarPosition.
inline int32_t BiasShift(const QuerySegment& segment) {
  return static_cast<int32_t>(std::clamp(segment.bias_shift, -kFarPosition, kFarPosition));
}

// The logical rows of a segment and key head, from one of them on.
struct LogicalRows {
  int64_t begin;  // the segment's first query row
  int64_t key_head;
  int64_t group;
  int64_t head_size;
  int64_t first;
  int32_t bias_shift;
  bool partial;

  int64_t Position(int64_t r) const { return (first + r) / group; }
  int64_t Row(int64_t r) const { return begin + Position(r); }
  int64_t Head(int64_t r) const { return key_head * group + (first + r) % group; }
  // Offset of a row's head in an array [R, H * K] of the given stride.
  int64_t Offset(int64_t r, int64_t stride) const { return Row(r) * stride + Head(r) * head_size; }
};

// Hands out 64-byte aligned pieces of a workspace; with a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* Take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += RoundUp(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// The keys of a segment: its spans one after another.
struct KeyList {
  int64_t count;
  int64_t* row;       // in k and v
  int32_t* position;  // relative to the segment's first query row; kNoPosition behind the last
  int32_t* tile_max;  // largest position of each tile of kKeyBlock keys
  bool* tile_run;     // whether a tile's positions are consecutive
  int64_t lowest;     // the key of the smallest position
  int32_t second;     // smallest position of the others; queries before it see `lowest` at most

  void Take(Arena& arena, int64_t max_keys) {
    row = arena.Take<int64_t>(max_keys);
    position = arena.Take<int32_t>(RoundUp(max_keys, kKeyBlock));
    tile_max = arena.Take<int32_t>(RoundUp(max_keys, kKeyBlock) / kKeyBlock);
    tile_run = arena.Take<bool>(RoundUp(max_keys, kKeyBlock) / kKeyBlock);
  }

  // Lists the keys with a relative position of at most last_position.
  void Fill(const QuerySegment& segment, const KeySpan* spans, int64_t last_position) {
    count = 0;
    for (int64_t s = segment.span_begin; s < segment.span_begin + segment.span_count; ++s) {
      const int64_t first = spans[s].position - segment.position;
      for (int64_t j = 0; j < spans[s].length && first + j <= last_position; ++j) {
        row[count] = spans[s].begin + j;
        position[count++] =
            static_cast<int32_t>(std::clamp(first + j, -kFarPosition, kFarPosition));
      }
    }
    for (int64_t t = 0; t < count; t += kKeyBlock) {
      int32_t hi = position[t];
      bool run = true;
      for (int64_t j = t + 1; j < std::min(count, t + kKeyBlock); ++j) {
        hi = std::max(hi, position[j]);
        run = run && position[j] == position[j - 1] + 1;
      }
      tile_max[t / kKeyBlock] = hi;
      tile_run[t / kKeyBlock] = run;
    }
    std::fill(position + count, position + RoundUp(count, kKeyBlock), kNoPosition);
    lowest = 0;
    second = kNoPosition;
    for (int64_t j = 1; j < count; ++j) {
      second = std::min(second, std::max(position[j], position[lowest]));
      if (position[j] < position[lowest]) lowest = j;
    }
  }
};

template <class Args>
int64_t SegmentKeys(const Args& args, const QuerySegment& segment) {
  int64_t keys = 0;
  for (int64_t s = 0; s < segment.span_count; ++s) {
    keys += args.spans[segment.span_begin + s].length;
  }
  return keys;
}

template <class Args>
int64_t MaxSegmentKeys(const Args& args) {
  int64_t keys = 0;
  for (int64_t s = 0; s < args.segment_count; ++s) {
    keys = std::max(keys, SegmentKeys(args, args.segments[s]));
  }
  return keys;
}

// One worker's memory. Kp: head size rounded up to kMaxLanes. Keys are packed in panels of some
// multiple of the vector width, [panel][K][panel width].
struct ForwardScratch {
  KeyList keys;
  float* packed_k;  // panels
  float* packed_v;  // [keys, Kp]
  float* q;         // [kRowBlock, Kp], times scale
  float* scores;    // [kRowBlock, kKeyBlock]
  float* out;       // [kRowBlock, Kp]
  float* max;       // [kRowBlock]
  float* sum;       // [kRowBlock]

  void Take(Arena& arena, int64_t max_keys, int64_t head_size) {
    const int64_t padded = RoundUp(head_size, kMaxLanes);
    keys.Take(arena, max_keys);
    packed_k = arena.Take<float>(RoundUp(max_keys, kKeyBlock) * head_size);
    packed_v = arena.Take<float>(max_keys * padded);
    q = arena.Take<float>(kRowBlock * padded);
    scores = arena.Take<float>(kRowBlock * kKeyBlock);
    out = arena.Take<float>(kRowBlock * padded);
    max = arena.Take<float>(kRowBlock);
    sum = arena.Take<float>(kRowBlock);
  }
};

struct BackwardScratch {
  KeyList keys;
  float* packed_k;  // panels
  float* packed_v;  // panels
  float* k;         // [keys, Kp]
  float* dk;        // [keys, Kp]
  float* dv;        // [keys, Kp]
  float* q;         // [kRowBlock, Kp], times scale
  float* dout;      // [kRowBlock, Kp]
  float* dq;        // [kRowBlock, Kp]
  float* p;         // [kRowBlock, kKeyBlock]
  float* ds;        // [kRowBlock, kKeyBlock]
  float* lse;       // [kRowBlock]
  float* delta;     // [kRowBlock]

  void Take(Arena& arena, int64_t max_keys, int64_t head_size) {
    const int64_t padded = RoundUp(head_size, kMaxLanes);
    keys.Take(arena, max_keys);
    packed_k = arena.Take<float>(RoundUp(max_keys, kKeyBlock) * head_size);
    packed_v = arena.Take<float>(RoundUp(max_keys, kKeyBlock) * head_size);
    for (float** rows : {&k, &dk, &dv}) *rows = arena.Take<float>(max_keys * padded);
    for (float** rows : {&q, &dout, &dq}) *rows = arena.Take<float>(kRowBlock * padded);
    for (float** tile : {&p, &ds}) *tile = arena.Take<float>(kRowBlock * kKeyBlock);
    for (float** column : {&lse, &delta}) *column = arena.Take<float>(kRowBlock);
  }
};

// A span as one segment reads it.
struct KeyUse {
  int64_t begin;
  int64_t length;
  // First row of its own partial gradients in the workspace; -1 if no other use reads its rows and
  // the gradients can go straight to dk and dv.
  int64_t partial;
};

// Key rows [begin, end) that several uses read, uses in segment order.
struct SharedRows {
  int64_t begin;
  int64_t end;
  std::vector<int64_t> uses;
};

struct KeyUsePlan {
  std::vector<KeyUse> uses;        // by segment, then by its spans
  std::vector<int64_t> first_use;  // of a segment
  std::vector<SharedRows> shared;
  int64_t partial_rows = 0;
};

inline KeyUsePlan PlanKeyUses(const AttentionBackwardArgs& args) {
  KeyUsePlan plan;
  for (int64_t s = 0; s < args.segment_count; ++s) {
    plan.first_use.push_back(static_cast<int64_t>(plan.uses.size()));
    for (int64_t i = 0; i < args.segments[s].span_count; ++i) {
      const KeySpan& span = args.spans[args.segments[s].span_begin + i];
      plan.uses.push_back({span.begin, span.length, -1});
    }
  }
  std::vector<int64_t> order;
  for (size_t u = 0; u < plan.uses.size(); ++u) {
    if (plan.uses[u].length > 0) order.push_back(static_cast<int64_t>(u));
  }
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::pair(plan.uses[a].begin, a) < std::pair(plan.uses[b].begin, b);
  });
  // Uses whose rows overlap, directly or through others, form one group.
  for (size_t i = 0; i < order.size();) {
    SharedRows group = {plan.uses[order[i]].begin, plan.uses[order[i]].begin, {}};
    for (; i < order.size() && (group.uses.empty() || plan.uses[order[i]].begin < group.end); ++i) {
      const KeyUse& use = plan.uses[order[i]];
      group.end = std::max(group.end, use.begin + use.length);
      group.uses.push_back(order[i]);
    }
    if (group.uses.size() == 1) continue;
    std::sort(group.uses.begin(), group.uses.end());
    for (int64_t u : group.uses) {
      plan.uses[u].partial = plan.partial_rows;
      plan.partial_rows += plan.uses[u].length;
    }
    plan.shared.push_back(std::move(group));
  }
  return plan;
}

}  // namespace permafrost::kernels::cpu

#endif  // PERMAFROST_KERNELS_CPU_ATTENTION_LAYOUT_H_
