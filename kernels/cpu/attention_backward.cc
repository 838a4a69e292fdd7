// Attention backward. The probabilities are recomputed tile by tile from the saved log-sum-exp
// (Dao et al., 2022, algorithm 4):
//   p = exp(s - lse), dv += p^T dout, dp = dout v^T, ds = p (dp - delta), delta = rowsum(dout out),
//   dq = scale ds k, dk += scale ds^T q, dbias += ds by distance.
// An item owns all rows of its (segment, key head). Key rows that other segments read too get
// partial gradients per segment, which are then added in segment order.
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/attention_layout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_backward.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

// dbias zero[clamped distance] += ds for a vector of keys; invisible lanes of ds are zero.
HWY_INLINE void AddBiasGradient(FloatVec ds, bool run, const int32_t* position, int32_t query,
                                BiasReach reach, float* zero) {
  const FloatTag d;
  const Int32Tag di;
  switch (ClassifyLanes(run, position, query, reach)) {
    case BiasLanes::kInTable: {
      float* to = zero + (position[0] - query);
      hn::StoreU(hn::Add(hn::LoadU(d, to), ds), d, to);
      return;
    }
    case BiasLanes::kAllAhead:
      zero[reach.high] += hn::GetLane(hn::SumOfLanes(d, ds));
      return;
    case BiasLanes::kAllBehind:
      zero[reach.low] += hn::GetLane(hn::SumOfLanes(d, ds));
      return;
    case BiasLanes::kMixed:
      break;
  }
  HWY_ALIGN float value[kLanes];
  HWY_ALIGN int32_t bucket[kLanes];
  hn::Store(ds, d, value);
  hn::Store(ClampedDistances(position, query, reach), di, bucket);
  for (int64_t i = 0; i < kLanes; ++i) zero[bucket[i]] += value[i];
}

// A tile for the block's first `rows` rows: turns scores in scratch.p into probabilities and
// dp in scratch.ds into ds. dbias: [H, 2 M + 1] of this segment, or
// null.
template <bool kMasked, bool kBias>
HWY_NOINLINE void SoftmaxBackwardTile(const AttentionBackwardArgs& args, const LogicalRows& block,
                                      int64_t rows, const ScoreTile& tile, float* dbias,
                                      BackwardScratch& scratch) {
  const FloatTag d;
  const int64_t buckets = 2 * args.bias_distance + 1;
  const BiasReach reach = ReachOf(args.bias_distance, block.bias_shift);
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t query = static_cast<int32_t>(block.Position(r));
    const int32_t limit = VisibleLimit(args.causal, query);
    const int64_t zero = block.Head(r) * buckets - reach.low;
    const BiasRow bias = {kBias ? args.bias + zero : nullptr, reach, query};
    const FloatVec lse = hn::Set(d, scratch.lse[r]);
    const FloatVec delta = hn::Set(d, scratch.delta[r]);
    float* p = scratch.p + r * kKeyBlock;
    float* ds = scratch.ds + r * kKeyBlock;
    for (int64_t j = 0; j < tile.count; j += kLanes) {
      FloatVec s = hn::Load(d, p + j);
      if (kBias) s = hn::Add(s, BiasVector(bias, tile.run, tile.position + j));
      FloatVec e = ExpOfNonPositive(hn::Sub(s, lse));
      FloatVec g = hn::Sub(hn::Load(d, ds + j), delta);
      if (kMasked) {
        // Also where lse is minus infinity.
        const FloatMask visible = VisibleLanes(tile, j, limit);
        e = hn::IfThenElseZero(visible, e);
        g = hn::IfThenElseZero(visible, g);
      }
      g = hn::Mul(e, g);
      hn::Store(e, d, p + j);
      hn::Store(g, d, ds + j);
      if (dbias != nullptr) {
        AddBiasGradient(g, tile.run, tile.position + j, query, reach, dbias + zero);
      }
    }
  }
}

// Packs the block's first `rows` rows of q and dout, delta and lse.
HWY_INLINE void PackQueryRows(const AttentionBackwardArgs& args, const LogicalRows& block,
                              int64_t rows, int64_t left, BackwardScratch& scratch) {
  const int64_t padded = RoundUp(args.head_size, kMaxLanes);
  for (int64_t r = 0; r < rows; ++r) {
    if (r + kAhead < left) {
      PrefetchRow(args.q + block.Offset(r + kAhead, args.q_stride), args.head_size);
      PrefetchRow(args.dout + block.Offset(r + kAhead, args.dout_stride), args.head_size);
      if (!block.partial) {
        PrefetchRow(args.out + block.Offset(r + kAhead, args.out_stride), args.head_size);
      }
    }
    const float* dout = args.dout + block.Offset(r, args.dout_stride);
    PackRow(args.q + block.Offset(r, args.q_stride), args.head_size, args.scale,
            scratch.q + r * padded);
    PackRow(dout, args.head_size, 1.0f, scratch.dout + r * padded);
    const int64_t head = block.Row(r) * args.heads + block.Head(r);
    scratch.lse[r] = args.lse[head];
    if (block.partial) {
      scratch.delta[r] = args.delta[head];
      continue;
    }
    const float* out = args.out + block.Offset(r, args.out_stride);
    scratch.delta[r] =
        static_cast<float>(SumOverVectors(args.head_size, [&](int64_t c, auto part) HWY_ATTR {
          return hn::Mul(Load(dout + c, part), Load(out + c, part));
        }));
  }
}

// A row that sees one key has no gradient through its probability of 1: delta is made that key's
// dp in every bit, as rounding noise is all that Adam would see of its query and key.
HWY_INLINE void MatchLoneKey(const AttentionBackwardArgs& args, const LogicalRows& block,
                             int64_t rows, int64_t tile_begin, BackwardScratch& scratch) {
  const KeyList& keys = scratch.keys;
  const int64_t column = keys.lowest - tile_begin;
  if (block.partial || column < 0 || column >= kKeyBlock) return;
  for (int64_t r = 0; r < rows; ++r) {
    if (keys.count == 1 || (args.causal && block.Position(r) < keys.second)) {
      scratch.delta[r] = scratch.ds[r * kKeyBlock + column];
    }
  }
}

// Gradients of the block's first `rows` rows: dq complete, dk and dv of the scratch added to. More
// rows of the item follow if there are `left` > rows.
void BackwardRows(const AttentionBackwardArgs& args, const LogicalRows& block, int64_t rows,
                  int64_t left, float* dbias, BackwardScratch& scratch) {
  const int64_t padded = RoundUp(args.head_size, kMaxLanes);
  const int64_t vectors = (args.head_size + kLanes - 1) / kLanes;
  PackQueryRows(args, block, rows, left, scratch);
  if (args.dq != nullptr) ZeroFloats(scratch.dq, rows * padded);
  for (int64_t t = 0; t * kKeyBlock < scratch.keys.count; ++t) {
    const ScoreTile tile =
        VisibleTile(scratch.keys, t, args.causal, block.Position(0), block.Position(rows - 1));
    if (tile.count == 0) continue;
    const int64_t begin = t * kKeyBlock;
    MultiplyPanels(scratch.q, padded, rows, scratch.packed_k, args.head_size, begin, tile.count,
                   scratch.p);
    MultiplyPanels(scratch.dout, padded, rows, scratch.packed_v, args.head_size, begin, tile.count,
                   scratch.ds);
    MatchLoneKey(args, block, rows, begin, scratch);
    const auto softmax =
        args.bias != nullptr
            ? (tile.masked ? &SoftmaxBackwardTile<true, true> : &SoftmaxBackwardTile<false, true>)
            : (tile.masked ? &SoftmaxBackwardTile<true, false>
                           : &SoftmaxBackwardTile<false, false>);
    softmax(args, block, rows, tile, dbias, scratch);
    if (args.dv != nullptr) {
      Multiply<true>(scratch.p, kKeyBlock, scratch.dout, padded, rows, scratch.dv + begin * padded,
                     padded, tile.count, vectors, true);
    }
    if (args.dk != nullptr) {
      Multiply<true>(scratch.ds, kKeyBlock, scratch.q, padded, rows, scratch.dk + begin * padded,
                     padded, tile.count, vectors, true);
    }
    if (args.dq != nullptr) {
      Multiply<false>(scratch.ds, kKeyBlock, scratch.k + begin * padded, padded, tile.count,
                      scratch.dq, padded, rows, vectors, true);
    }
  }
  if (args.dq == nullptr) return;
  for (int64_t r = 0; r < rows; ++r) {
    UnpackRow(scratch.dq + r * padded, args.head_size, args.scale,
              args.dq + block.Offset(r, args.dq_stride));
  }
}

// All rows of a segment and key head; leaves its dk and dv in the scratch, one row per listed key.
void RunBackwardItem(const AttentionBackwardArgs& args, int64_t s, int64_t key_head, float* dbias,
                     BackwardScratch& scratch) {
  const int64_t padded = RoundUp(args.head_size, kMaxLanes);
  const int64_t column = key_head * args.head_size;
  const QuerySegment& segment = args.segments[s];
  KeyList& keys = scratch.keys;
  keys.Fill(segment, args.spans, std::numeric_limits<int64_t>::max());
  PackPanels(args.k + column, args.k_stride, keys.row, keys.count, args.head_size,
             scratch.packed_k);
  PackPanels(args.v + column, args.v_stride, keys.row, keys.count, args.head_size,
             scratch.packed_v);
  if (args.dq != nullptr) {
    PackRows(args.k + column, args.k_stride, keys.row, keys.count, args.head_size, padded,
             scratch.k);
  }
  if (args.dk != nullptr) ZeroFloats(scratch.dk, keys.count * padded);
  if (args.dv != nullptr) ZeroFloats(scratch.dv, keys.count * padded);
  const int64_t group = args.heads / args.key_heads;
  const int64_t rows = segment.length * group;
  for (int64_t r = 0; r < rows; r += kRowBlock) {
    const LogicalRows block = {segment.begin,      key_head,       group, args.head_size, r,
                               BiasShift(segment), segment.partial};
    BackwardRows(args, block, HWY_MIN(kRowBlock, rows - r), rows - r, dbias, scratch);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace permafrost::kernels::cpu {
namespace {

HWY_EXPORT(RunBackwardItem);

// Key rows that one item of the final sums covers.
constexpr int64_t kSumRows = 16;

int64_t BackwardScratchBytes(const AttentionBackwardArgs& args) {
  Arena arena(nullptr);
  BackwardScratch().Take(arena, MaxSegmentKeys(args), args.head_size);
  return arena.used();
}

// Memory of a call: the gradients of shared key rows and of the bias, by segment; the scratch.
struct BackwardMemory {
  float* dk;     // [partial rows, G * K]
  float* dv;     // [partial rows, G * K]
  float* dbias;  // [segments, H, 2 M + 1]
  char* scratch;

  BackwardMemory(Arena& arena, const AttentionBackwardArgs& args, int64_t partial_rows,
                 int64_t scratch_bytes) {
    const int64_t width = args.key_heads * args.head_size;
    dk = arena.Take<float>(args.dk != nullptr ? partial_rows * width : 0);
    dv = arena.Take<float>(args.dv != nullptr ? partial_rows * width : 0);
    dbias = arena.Take<float>(
        args.dbias != nullptr ? args.segment_count * args.heads * (2 * args.bias_distance + 1) : 0);
    scratch = arena.Take<char>(scratch_bytes);
  }
};

void ZeroRows(float* x, int64_t stride, const KeySpan& span, int64_t width) {
  if (x == nullptr) return;
  for (int64_t i = span.begin; i < span.begin + span.length; ++i) {
    std::fill(x + i * stride, x + i * stride + width, 0.0f);
  }
}

// Spans that no segment reads still get zero gradients.
void ZeroUnreadSpans(const AttentionBackwardArgs& args) {
  std::vector<bool> read(args.span_count);
  for (int64_t s = 0; s < args.segment_count; ++s) {
    const auto first = read.begin() + args.segments[s].span_begin;
    std::fill(first, first + args.segments[s].span_count, true);
  }
  const int64_t width = args.key_heads * args.head_size;
  for (int64_t i = 0; i < args.span_count; ++i) {
    if (read[i]) continue;
    ZeroRows(args.dk, args.dk_stride, args.spans[i], width);
    ZeroRows(args.dv, args.dv_stride, args.spans[i], width);
  }
}

// Copies an item's key gradients to their place: the output or the use's partial rows.
void StoreKeyGradients(const AttentionBackwardArgs& args, const KeyUsePlan& plan, int64_t s,
                       int64_t key_head, const float* from, float* partial, float* to,
                       int64_t to_stride) {
  if (to == nullptr) return;
  const int64_t padded = RoundUp(args.head_size, kMaxLanes);
  const int64_t width = args.key_heads * args.head_size;
  for (int64_t i = 0; i < args.segments[s].span_count; ++i) {
    const KeyUse& use = plan.uses[plan.first_use[s] + i];
    const bool direct = use.partial < 0;
    const int64_t stride = direct ? to_stride : width;
    float* row = (direct ? to + use.begin * stride : partial + use.partial * stride) +
                 key_head * args.head_size;
    for (int64_t j = 0; j < use.length; ++j, row += stride, from += padded) {
      std::copy(from, from + args.head_size, row);
    }
  }
}

// to = the sum over the group's uses, in order, for key rows [begin, end).
void SumSharedRows(const KeyUsePlan& plan, const SharedRows& group, int64_t begin, int64_t end,
                   int64_t width, const float* partial, float* to, int64_t to_stride) {
  if (to == nullptr) return;
  for (int64_t row = begin; row < end; ++row) {
    float* sum = to + row * to_stride;
    std::fill(sum, sum + width, 0.0f);
    for (int64_t u : group.uses) {
      const KeyUse& use = plan.uses[u];
      if (row < use.begin || row >= use.begin + use.length) continue;
      const float* term = partial + (use.partial + row - use.begin) * width;
      for (int64_t c = 0; c < width; ++c) sum[c] += term[c];
    }
  }
}

}  // namespace

int64_t AttentionBackwardWorkspace(const AttentionBackwardArgs& args, int workers) {
  Arena arena(nullptr);
  BackwardMemory(arena, args, PlanKeyUses(args).partial_rows,
                 std::max(workers, 1) * BackwardScratchBytes(args));
  return arena.used();
}

void AttentionBackward(const AttentionBackwardArgs& args, const Parallel& parallel) {
  const KeyUsePlan plan = PlanKeyUses(args);
  const int64_t scratch_bytes = BackwardScratchBytes(args);
  const int64_t max_keys = MaxSegmentKeys(args);
  const int64_t width = args.key_heads * args.head_size;
  const int64_t group = args.heads / args.key_heads;
  const int64_t buckets = 2 * args.bias_distance + 1;
  Arena arena(args.workspace);
  const BackwardMemory memory(arena, args, plan.partial_rows,
                              std::max(parallel.workers, 1) * scratch_bytes);

  ZeroUnreadSpans(args);
  const auto run = HWY_DYNAMIC_DISPATCH(RunBackwardItem);
  ParallelFor(parallel, args.segment_count * args.key_heads, [&](int64_t index, int worker) {
    const int64_t s = index / args.key_heads, g = index % args.key_heads;
    Arena own(memory.scratch + worker * scratch_bytes);
    BackwardScratch scratch;
    scratch.Take(own, max_keys, args.head_size);
    float* dbias = nullptr;
    if (args.dbias != nullptr) {
      dbias = memory.dbias + s * args.heads * buckets;
      std::fill(dbias + g * group * buckets, dbias + (g + 1) * group * buckets, 0.0f);
    }
    run(args, s, g, dbias, scratch);
    StoreKeyGradients(args, plan, s, g, scratch.dk, memory.dk, args.dk, args.dk_stride);
    StoreKeyGradients(args, plan, s, g, scratch.dv, memory.dv, args.dv, args.dv_stride);
  });

  std::vector<std::pair<const SharedRows*, int64_t>> sums;
  for (const SharedRows& rows : plan.shared) {
    for (int64_t row = rows.begin; row < rows.end; row += kSumRows) sums.emplace_back(&rows, row);
  }
  ParallelFor(parallel, static_cast<int64_t>(sums.size()), [&](int64_t index, int) {
    const auto& [rows, begin] = sums[index];
    const int64_t end = std::min(begin + kSumRows, rows->end);
    SumSharedRows(plan, *rows, begin, end, width, memory.dk, args.dk, args.dk_stride);
    SumSharedRows(plan, *rows, begin, end, width, memory.dv, args.dv, args.dv_stride);
  });
  if (args.dbias == nullptr) return;
  ParallelFor(parallel, args.heads, [&](int64_t h, int) {
    for (int64_t s = 0; s < args.segment_count; ++s) {
      const float* term = memory.dbias + (s * args.heads + h) * buckets;
      for (int64_t b = 0; b < buckets; ++b) args.dbias[h * buckets + b] += term[b];
    }
  });
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
