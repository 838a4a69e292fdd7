// Attention forward with a streaming softmax: a tile of scores, its maximum, its exponentials, its
// product with the values, added to an output that is rescaled when the maximum grows. Definition:
// kernels/reference/attention.h. The method is FlashAttention's (Dao et al., 2022, algorithm 1).
#include "kernels/attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/attention_layout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention-inl.h"

#ifndef PERMAFROST_KERNELS_CPU_ATTENTION_ITEM_
#define PERMAFROST_KERNELS_CPU_ATTENTION_ITEM_
namespace permafrost::kernels::cpu {

// Logical rows [first, last) of a segment and key head.
struct ForwardItem {
  int64_t segment;
  int64_t key_head;
  int64_t first;
  int64_t last;
};

}  // namespace permafrost::kernels::cpu
#endif  // PERMAFROST_KERNELS_CPU_ATTENTION_ITEM_

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

// Adds the bias to a row of scores, masks it, and returns its maximum.
template <bool kMasked, bool kBias>
HWY_INLINE float FinishScores(const ScoreTile& tile, int32_t limit, const BiasRow& bias, float* s) {
  const FloatTag d;
  const FloatVec lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  FloatVec max = lowest;
  for (int64_t j = 0; j < tile.count; j += kLanes) {
    FloatVec v = hn::Load(d, s + j);
    if (kBias) v = hn::Add(v, BiasVector(bias, tile.run, tile.position + j));
    if (kMasked) v = hn::IfThenElse(VisibleLanes(tile, j, limit), v, lowest);
    if (kMasked || kBias) hn::Store(v, d, s + j);
    max = hn::Max(max, v);
  }
  return hn::GetLane(hn::MaxOfLanes(d, max));
}

// s = exp(s - shift); returns the sum.
HWY_INLINE float Exponentials(float shift, int64_t count, float* s) {
  const FloatTag d;
  const FloatVec x = hn::Set(d, shift);
  FloatVec sum = hn::Zero(d);
  for (int64_t j = 0; j < count; j += kLanes) {
    const FloatVec e = ExpOfNonPositive(hn::Sub(hn::Load(d, s + j), x));
    hn::Store(e, d, s + j);
    sum = hn::Add(sum, e);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// One tile for the block's first `rows` rows: scores -> exponentials, running maximum and sum,
// and the output so far brought to the new maximum.
template <bool kMasked, bool kBias>
HWY_NOINLINE void SoftmaxTile(const AttentionForwardArgs& args, const LogicalRows& block,
                              int64_t rows, const ScoreTile& tile, ForwardScratch& scratch) {
  const FloatTag d;
  const int64_t padded = RoundUp(args.head_size, kMaxLanes);
  const BiasReach reach = ReachOf(args.bias_distance, block.bias_shift);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t position = block.Position(r);
    const BiasRow bias = {
        kBias ? args.bias + block.Head(r) * (2 * args.bias_distance + 1) - reach.low : nullptr,
        reach, static_cast<int32_t>(position)};
    float* s = scratch.scores + r * kKeyBlock;
    const float tile_max =
        FinishScores<kMasked, kBias>(tile, VisibleLimit(args.causal, position), bias, s);
    const float old_max = scratch.max[r];
    const float max = tile_max > old_max ? tile_max : old_max;
    // No visible key so far: any finite shift makes the exponentials zero.
    const float shift = max == -std::numeric_limits<float>::infinity() ? 0.0f : max;
    const float sum = Exponentials(shift, tile.count, s);
    if (max == old_max) {
      scratch.sum[r] += sum;
      continue;
    }
    const FloatVec factor = ExpOfNonPositive(hn::Set(d, old_max - shift));
    scratch.sum[r] = scratch.sum[r] * hn::GetLane(factor) + sum;
    scratch.max[r] = max;
    float* out = scratch.out + r * padded;
    for (int64_t c = 0; c < args.head_size; c += kLanes) {
      hn::Store(hn::Mul(hn::Load(d, out + c), factor), d, out + c);
    }
  }
}

// Up to this many rows are fewer than what packing the keys would cost.
constexpr int64_t kInPlaceRows = 4;

// What ScoreInPlace and AddValuesInPlace read and write: kRows rows and one tile of keys.
struct InPlaceTile {
  const float* from;  // k or v, at the key head
  int64_t stride;
  const int64_t* row;  // of the tile's keys
  int64_t count;
  int64_t listed;  // keys from the tile's first to the segment's last
  float* scores;   // [kRows, kKeyBlock]
  float* x;        // q or out, [kRows, padded]
  int64_t head_size;
  int64_t padded;
};

// MultiplyPanels for few rows, from the unpacked keys: dot products along the head.
template <int kRows>
HWY_NOINLINE void ScoreInPlace(const InPlaceTile& tile) {
  const FloatTag d;
  const int64_t padded = tile.padded;
  const float* q = tile.x;
  for (int64_t j = 0; j < tile.count; ++j) {
    if (j + kAhead < tile.listed) {
      PrefetchRow(tile.from + tile.row[j + kAhead] * tile.stride, tile.head_size);
    }
    const float* k = tile.from + tile.row[j] * tile.stride;
    FloatVec sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = hn::Zero(d);
    ForEachVector(tile.head_size, [&](int64_t c, auto part) HWY_ATTR {
      const FloatVec key = Load(k + c, part);
      for (int r = 0; r < kRows; ++r) {
        sum[r] = hn::MulAdd(key, hn::Load(d, q + r * padded + c), sum[r]);
      }
    });
    for (int r = 0; r < kRows; ++r) {
      tile.scores[r * kKeyBlock + j] = hn::GetLane(hn::SumOfLanes(d, sum[r]));
    }
  }
}

// Columns [c, c + kVectors * kLanes) of AddValuesInPlace; the last vector may be a part.
template <int kRows, int kVectors, class Last>
HWY_INLINE void AddValueColumns(const InPlaceTile& tile, int64_t c, Last last) {
  const FloatTag d;
  FloatVec acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kVectors; ++i) {
      acc[r][i] = hn::Load(d, tile.x + r * tile.padded + c + i * kLanes);
    }
  }
  for (int64_t j = 0; j < tile.count; ++j) {
    if (j + kAhead < tile.listed) {
      PrefetchRow(tile.from + tile.row[j + kAhead] * tile.stride + c, kVectors * kLanes);
    }
    const float* v = tile.from + tile.row[j] * tile.stride + c;
    FloatVec value[kVectors];
    for (int i = 0; i + 1 < kVectors; ++i) value[i] = Load(v + i * kLanes, Whole());
    value[kVectors - 1] = Load(v + (kVectors - 1) * kLanes, last);
    for (int r = 0; r < kRows; ++r) {
      const FloatVec p = hn::Set(d, tile.scores[r * kKeyBlock + j]);
      for (int i = 0; i < kVectors; ++i) acc[r][i] = hn::MulAdd(p, value[i], acc[r][i]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kVectors; ++i) {
      hn::Store(acc[r][i], d, tile.x + r * tile.padded + c + i * kLanes);
    }
  }
}

// The product with the values for few rows, from the unpacked values.
template <int kRows>
HWY_NOINLINE void AddValuesInPlace(const InPlaceTile& tile) {
  int64_t c = 0;
  for (; c + kMaxVectors * kLanes <= tile.head_size; c += kMaxVectors * kLanes) {
    AddValueColumns<kRows, kMaxVectors>(tile, c, Whole());
  }
  for (; c < tile.head_size; c += kLanes) {
    AddValueColumns<kRows, 1>(tile, c, Part{HWY_MIN(kLanes, tile.head_size - c)});
  }
}

// Runs one of the two for a number of rows up to kInPlaceRows.
void RunInPlace(void (*const (&run)[kInPlaceRows])(const InPlaceTile&), const float* from,
                int64_t stride, int64_t rows, int64_t begin, int64_t count, float* x,
                const AttentionForwardArgs& args, ForwardScratch& scratch) {
  run[rows - 1]({from, stride, scratch.keys.row + begin, count, scratch.keys.count - begin,
                 scratch.scores, x, args.head_size, RoundUp(args.head_size, kMaxLanes)});
}

// The block's first `rows` rows, complete. More rows of the item follow if there are `left` > rows.
void AttendRows(const AttentionForwardArgs& args, const LogicalRows& block, int64_t rows,
                int64_t left, bool in_place, ForwardScratch& scratch) {
  const int64_t padded = RoundUp(args.head_size, kMaxLanes);
  for (int64_t r = 0; r < rows; ++r) {
    if (r + kAhead < left) {
      PrefetchRow(args.q + block.Offset(r + kAhead, args.q_stride), args.head_size);
    }
    PackRow(args.q + block.Offset(r, args.q_stride), args.head_size, args.scale,
            scratch.q + r * padded);
    scratch.max[r] = -std::numeric_limits<float>::infinity();
    scratch.sum[r] = 0.0f;
  }
  ZeroFloats(scratch.out, rows * padded);

  const int64_t vectors = (args.head_size + kLanes - 1) / kLanes;
  for (int64_t t = 0; t * kKeyBlock < scratch.keys.count; ++t) {
    const ScoreTile tile =
        VisibleTile(scratch.keys, t, args.causal, block.Position(0), block.Position(rows - 1));
    if (tile.count == 0) continue;
    const int64_t begin = t * kKeyBlock;
    if (in_place) {
      RunInPlace({&ScoreInPlace<1>, &ScoreInPlace<2>, &ScoreInPlace<3>, &ScoreInPlace<4>},
                 args.k + block.key_head * args.head_size, args.k_stride, rows, begin, tile.count,
                 scratch.q, args, scratch);
    } else {
      MultiplyPanels(scratch.q, padded, rows, scratch.packed_k, args.head_size, begin, tile.count,
                     scratch.scores);
    }
    const auto softmax =
        args.bias != nullptr
            ? (tile.masked ? &SoftmaxTile<true, true> : &SoftmaxTile<false, true>)
            : (tile.masked ? &SoftmaxTile<true, false> : &SoftmaxTile<false, false>);
    softmax(args, block, rows, tile, scratch);
    if (in_place) {
      RunInPlace(
          {&AddValuesInPlace<1>, &AddValuesInPlace<2>, &AddValuesInPlace<3>, &AddValuesInPlace<4>},
          args.v + block.key_head * args.head_size, args.v_stride, rows, begin, tile.count,
          scratch.out, args, scratch);
    } else {
      Multiply<false>(scratch.scores, kKeyBlock, scratch.packed_v + begin * padded, padded,
                      tile.count, scratch.out, padded, rows, vectors, true);
    }
  }

  for (int64_t r = 0; r < rows; ++r) {
    const float sum = scratch.sum[r];
    UnpackRow(scratch.out + r * padded, args.head_size, sum == 0.0f ? 0.0f : 1.0f / sum,
              args.out + block.Offset(r, args.out_stride));
    // With no visible key the maximum is still minus infinity.
    if (args.lse != nullptr) {
      args.lse[block.Row(r) * args.heads + block.Head(r)] =
          sum == 0.0f ? scratch.max[r] : scratch.max[r] + std::log(sum);
    }
  }
}

void RunForwardItem(const AttentionForwardArgs& args, const ForwardItem& item,
                    ForwardScratch& scratch) {
  const int64_t group = args.heads / args.key_heads;
  const int64_t padded = RoundUp(args.head_size, kMaxLanes);
  const QuerySegment& segment = args.segments[item.segment];
  KeyList& keys = scratch.keys;
  keys.Fill(segment, args.spans,
            args.causal ? (item.last - 1) / group : std::numeric_limits<int64_t>::max());
  // Generation. With a backward to come, scores must be those that it will compute: probabilities
  // above 1 by the rounding of huge scores would overflow.
  const bool in_place = item.last - item.first <= kInPlaceRows && args.lse == nullptr;
  if (!in_place) {
    PackPanels(args.k + item.key_head * args.head_size, args.k_stride, keys.row, keys.count,
               args.head_size, scratch.packed_k);
    PackRows(args.v + item.key_head * args.head_size, args.v_stride, keys.row, keys.count,
             args.head_size, padded, scratch.packed_v);
  }
  for (int64_t r = item.first; r < item.last; r += kRowBlock) {
    const LogicalRows block = {segment.begin,      item.key_head,  group, args.head_size, r,
                               BiasShift(segment), segment.partial};
    AttendRows(args, block, HWY_MIN(kRowBlock, item.last - r), item.last - r, in_place, scratch);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace permafrost::kernels::cpu {
namespace {

HWY_EXPORT(RunForwardItem);

int64_t ForwardScratchBytes(const AttentionForwardArgs& args) {
  Arena arena(nullptr);
  ForwardScratch().Take(arena, MaxSegmentKeys(args), args.head_size);
  return arena.used();
}

}  // namespace

int64_t AttentionForwardWorkspace(const AttentionForwardArgs& args, int workers) {
  return std::max(workers, 1) * ForwardScratchBytes(args);
}

void AttentionForward(const AttentionForwardArgs& args, const Parallel& parallel) {
  std::vector<ForwardItem> items;
  for (int64_t s = 0; s < args.segment_count; ++s) {
    const int64_t rows = args.segments[s].length * (args.heads / args.key_heads);
    for (int64_t g = 0; g < args.key_heads; ++g) {
      for (int64_t r = 0; r < rows; r += kRowChunk) {
        items.push_back({s, g, r, std::min(rows, r + kRowChunk)});
      }
    }
  }
  const auto run = HWY_DYNAMIC_DISPATCH(RunForwardItem);
  const int64_t scratch_bytes = ForwardScratchBytes(args);
  const int64_t max_keys = MaxSegmentKeys(args);
  ParallelFor(parallel, static_cast<int64_t>(items.size()), [&](int64_t index, int worker) {
    Arena arena(static_cast<char*>(args.workspace) + worker * scratch_bytes);
    ForwardScratch scratch;
    scratch.Take(arena, max_keys, args.head_size);
    run(args, items[index], scratch);
  });
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
