// The vector code that attention's forward and backward share: packing, small matrix products on
// packed operands, exp, position bias and masks. Shapes as in kernels/cpu/attention_layout.h.
//
// Every product is acc[i][j] += a(i, p) * b[p][j] with a(i, p) broadcast and b's rows contiguous,
// aligned and padded to whole vectors. A key that a causal query does not see is computed where
// its tile has visible keys, and masked: keys and values of a span must be finite.
#if defined(PERMAFROST_KERNELS_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERMAFROST_KERNELS_CPU_ATTENTION_INL_H_
#undef PERMAFROST_KERNELS_CPU_ATTENTION_INL_H_
#else
#define PERMAFROST_KERNELS_CPU_ATTENTION_INL_H_
#endif

#include "hwy/cache_control.h"
#include "kernels/cpu/attention_layout.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {

using Int32Tag = hn::RebindToSigned<FloatTag>;
using FloatMask = hn::Mask<FloatTag>;

inline constexpr int64_t kLanes = HWY_LANES(float);

// Register tiles: rows x vectors of accumulators. 32 registers hold 24 of them besides the
// operands, 16 registers 12.
#if HWY_TARGET == HWY_AVX3
inline constexpr int kMaxVectors = 4;
inline constexpr int kPanelVectors = 3;
constexpr int TileRows(int vectors) { return vectors == 4 ? 6 : 8; }
#else
inline constexpr int kMaxVectors = 2;
inline constexpr int kPanelVectors = 2;
constexpr int TileRows(int vectors) { return vectors == 2 ? 6 : 8; }
#endif
// Keys of a panel.
inline constexpr int64_t kPanel = kPanelVectors * kLanes;
static_assert(kKeyBlock % kPanel == 0 && kMaxLanes % kLanes == 0);

// exp for arguments that are at most a rounding error above 0: relative error about 2e-7, 0 below
// the smallest normal result, NaN for NaN.
HWY_INLINE FloatVec ExpOfNonPositive(FloatVec x) {
  const FloatTag d;
  const Int32Tag di;
  // Adding 1.5 * 2^23 rounds to an integer in the low bits; 127 is the exponent's bias.
  const FloatVec magic = hn::Set(d, 12582912.0f + 127.0f);
  const FloatVec shifted = hn::MulAdd(x, hn::Set(d, 1.44269504f), magic);
  const FloatVec n = hn::Sub(shifted, magic);
  // ln 2 in two pieces; the first has 15 bits, so that its product with n is exact without FMA too.
  FloatVec r = hn::NegMulAdd(n, hn::Set(d, 0.693145751953125f), x);
  r = hn::NegMulAdd(n, hn::Set(d, 1.42860677e-6f), r);
  // exp(r) = 1 + r + r^2 p(r) for |r| <= ln(2) / 2, minimax: 1.05e-7.
  FloatVec p = hn::MulAdd(hn::Set(d, 8.312501568e-03f), r, hn::Set(d, 4.189033200e-02f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.666711539e-01f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.999923031e-01f));
  p = hn::Add(hn::MulAdd(hn::Mul(r, r), p, r), hn::Set(d, 1.0f));
  const FloatVec power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.3365f)), hn::Mul(p, power));
}

// c (kRows x kVectors) = or += a * b. a(i, p) is a[i * a_stride + p], or a[p * a_stride + i] if
// transposed.
template <int kRows, int kVectors, bool kTransposed>
HWY_INLINE void MultiplyTile(const float* HWY_RESTRICT a, int64_t a_stride,
                             const float* HWY_RESTRICT b, int64_t b_stride, int64_t depth,
                             float* HWY_RESTRICT c, int64_t c_stride, bool accumulate) {
  const FloatTag d;
  FloatVec acc[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      acc[i][j] = accumulate ? hn::Load(d, c + i * c_stride + j * kLanes) : hn::Zero(d);
    }
  }
  for (int64_t p = 0; p < depth; ++p) {
    FloatVec row[kVectors];
    for (int j = 0; j < kVectors; ++j) row[j] = hn::Load(d, b + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const FloatVec x = hn::Set(d, kTransposed ? a[i] : a[i * a_stride]);
      for (int j = 0; j < kVectors; ++j) acc[i][j] = hn::MulAdd(x, row[j], acc[i][j]);
    }
    a += kTransposed ? a_stride : 1;
    b += b_stride;
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      hn::Store(acc[i][j], d, c + i * c_stride + j * kLanes);
    }
  }
}

template <int kVectors, bool kTransposed>
HWY_NOINLINE void MultiplyColumns(const float* a, int64_t a_stride, const float* b,
                                  int64_t b_stride, int64_t depth, float* c, int64_t c_stride,
                                  int64_t rows, bool accumulate) {
  constexpr int kFull = TileRows(kVectors);
  const int64_t a_step = kTransposed ? 1 : a_stride;
  int64_t i = 0;
  for (; i + kFull <= rows; i += kFull) {
    MultiplyTile<kFull, kVectors, kTransposed>(a + i * a_step, a_stride, b, b_stride, depth,
                                               c + i * c_stride, c_stride, accumulate);
  }
  if (i + 4 <= rows) {
    MultiplyTile<4, kVectors, kTransposed>(a + i * a_step, a_stride, b, b_stride, depth,
                                           c + i * c_stride, c_stride, accumulate);
    i += 4;
  }
  for (; i + 2 <= rows; i += 2) {
    MultiplyTile<2, kVectors, kTransposed>(a + i * a_step, a_stride, b, b_stride, depth,
                                           c + i * c_stride, c_stride, accumulate);
  }
  if (i < rows) {
    MultiplyTile<1, kVectors, kTransposed>(a + i * a_step, a_stride, b, b_stride, depth,
                                           c + i * c_stride, c_stride, accumulate);
  }
}

// c [rows, vectors * kLanes] = or += a * b.
template <bool kTransposed>
void Multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
              float* c, int64_t c_stride, int64_t rows, int64_t vectors, bool accumulate) {
  while (vectors > 0) {
    // Groups of nearly equal width: 5 vectors are 3 + 2.
    const int64_t groups = (vectors + kMaxVectors - 1) / kMaxVectors;
    const int64_t width = (vectors + groups - 1) / groups;
    const auto columns = width == 1   ? &MultiplyColumns<1, kTransposed>
                         : width == 2 ? &MultiplyColumns<2, kTransposed>
                         : width == 3 ? &MultiplyColumns<HWY_MIN(3, kMaxVectors), kTransposed>
                                      : &MultiplyColumns<kMaxVectors, kTransposed>;
    columns(a, a_stride, b, b_stride, depth, c, c_stride, rows, accumulate);
    b += width * kLanes;
    c += width * kLanes;
    vectors -= width;
  }
}

// tile [rows, kKeyBlock] = x [rows, Kp] times the packed keys [begin, begin + count), begin a
// multiple of kKeyBlock. Writes whole vectors.
HWY_INLINE void MultiplyPanels(const float* x, int64_t padded, int64_t rows, const float* panels,
                               int64_t head_size, int64_t begin, int64_t count, float* tile) {
  for (int64_t j = 0; j < count; j += kPanel) {
    const int64_t keys = HWY_MIN(kPanel, count - j);
    Multiply<false>(x, padded, panels + (begin + j) * head_size, kPanel, head_size, tile + j,
                    kKeyBlock, rows, (keys + kLanes - 1) / kLanes, false);
  }
}

// Rows of one head lie far apart, which hardware prefetchers do not follow: packing fetches the row
// that comes kAhead rows later.
inline constexpr int64_t kAhead = 16;
HWY_INLINE void PrefetchRow(const float* from, int64_t head_size) {
  for (int64_t p = 0; p < head_size; p += kMaxLanes) hwy::Prefetch(from + p);
}

// Packs `count` rows of `head_size` elements, row r at from + row[r] * stride, into panels: key j's
// element p at panels[(j / kPanel) * kPanel * head_size + p * kPanel + j % kPanel]. Zero behind the
// last key up to a whole vector.
inline void PackPanels(const float* from, int64_t stride, const int64_t* row, int64_t count,
                       int64_t head_size, float* panels) {
  const hn::FixedTag<float, 4> d;
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const float* r0 = from + row[j] * stride;
    const float* r1 = from + row[j + 1] * stride;
    const float* r2 = from + row[j + 2] * stride;
    const float* r3 = from + row[j + 3] * stride;
    float* to = panels + j / kPanel * kPanel * head_size + j % kPanel;
    for (int64_t i = j + kAhead; i < HWY_MIN(j + 4 + kAhead, count); ++i) {
      PrefetchRow(from + row[i] * stride, head_size);
    }
    int64_t p = 0;
    for (; p + 4 <= head_size; p += 4, to += 4 * kPanel) {
      const auto x0 = hn::LoadU(d, r0 + p), x1 = hn::LoadU(d, r1 + p);
      const auto x2 = hn::LoadU(d, r2 + p), x3 = hn::LoadU(d, r3 + p);
      const auto lo02 = hn::InterleaveLower(d, x0, x2), lo13 = hn::InterleaveLower(d, x1, x3);
      const auto hi02 = hn::InterleaveUpper(d, x0, x2), hi13 = hn::InterleaveUpper(d, x1, x3);
      hn::Store(hn::InterleaveLower(d, lo02, lo13), d, to);
      hn::Store(hn::InterleaveUpper(d, lo02, lo13), d, to + kPanel);
      hn::Store(hn::InterleaveLower(d, hi02, hi13), d, to + 2 * kPanel);
      hn::Store(hn::InterleaveUpper(d, hi02, hi13), d, to + 3 * kPanel);
    }
    for (; p < head_size; ++p, to += kPanel) {
      to[0] = r0[p], to[1] = r1[p], to[2] = r2[p], to[3] = r3[p];
    }
  }
  for (; j % kLanes != 0 || j < count; ++j) {
    float* to = panels + j / kPanel * kPanel * head_size + j % kPanel;
    for (int64_t p = 0; p < head_size; ++p) {
      to[p * kPanel] = j < count ? from[row[j] * stride + p] : 0.0f;
    }
  }
}

// to [padded] = factor * from [head_size], zero behind.
HWY_INLINE void PackRow(const float* from, int64_t head_size, float factor, float* to) {
  const FloatTag d;
  const FloatVec f = hn::Set(d, factor);
  ForEachVector(head_size, [&](int64_t c, auto part) HWY_ATTR {
    hn::Store(hn::Mul(f, Load(from + c, part)), d, to + c);
  });
}

// to [count, padded] = rows of from [head_size], zero behind each.
inline void PackRows(const float* from, int64_t stride, const int64_t* row, int64_t count,
                     int64_t head_size, int64_t padded, float* to) {
  for (int64_t j = 0; j < count; ++j) {
    if (j + kAhead < count) PrefetchRow(from + row[j + kAhead] * stride, head_size);
    PackRow(from + row[j] * stride, head_size, 1.0f, to + j * padded);
  }
}

// to [head_size] = factor * from [padded].
HWY_INLINE void UnpackRow(const float* from, int64_t head_size, float factor, float* to) {
  const FloatTag d;
  const FloatVec f = hn::Set(d, factor);
  ForEachVector(head_size, [&](int64_t c, auto part) HWY_ATTR {
    Store(hn::Mul(f, hn::Load(d, from + c)), to + c, part);
  });
}

HWY_INLINE void ZeroFloats(float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0.0f;
}

// A tile of scores: which keys, and how its rows are masked.
struct ScoreTile {
  const int32_t* position;
  int64_t count;  // keys up to the last visible one
  bool masked;    // some lane of its vectors is invisible to some row
  bool run;       // positions are consecutive
};

// The part of tile t that queries at positions [first, last] see; count 0 if none.
inline ScoreTile VisibleTile(const KeyList& keys, int64_t t, bool causal, int64_t first,
                             int64_t last) {
  const int64_t begin = t * kKeyBlock;
  ScoreTile tile = {keys.position + begin, HWY_MIN(kKeyBlock, keys.count - begin), false,
                    keys.tile_run[t]};
  if (causal) {
    while (tile.count > 0 && tile.position[tile.count - 1] > last) --tile.count;
    tile.masked = keys.tile_max[t] > first;
  }
  tile.masked = tile.masked || tile.count % kLanes != 0;
  return tile;
}

// Lanes of keys j, j + 1, ... that are visible: those at positions below limit.
HWY_INLINE FloatMask VisibleLanes(const ScoreTile& tile, int64_t j, int32_t limit) {
  const Int32Tag di;
  return hn::RebindMask(FloatTag(), hn::Lt(hn::LoadU(di, tile.position + j), hn::Set(di, limit)));
}

// VisibleLanes' limit for a query position; without causality only padding is invisible.
HWY_INLINE int32_t VisibleLimit(bool causal, int64_t position) {
  return causal ? static_cast<int32_t>(position) + 1 : kNoPosition;
}

// Which distances of keys from a query the bias tells apart: those in [low, high]; farther ones
// count as the nearest of them.
struct BiasReach {
  int32_t low;
  int32_t high;
};
// Of a table of 2 M + 1 distances whose middle is at distance -shift.
HWY_INLINE BiasReach ReachOf(int64_t table_distance, int32_t shift) {
  const int32_t m = static_cast<int32_t>(table_distance);
  return {-m - shift, m - shift};
}

// Position bias of one head for the query at position i: zero[distance] in its reach.
struct BiasRow {
  const float* zero;
  BiasReach reach;
  int32_t position;
};

// Where the distances of a vector of keys fall: all in the table, all at its last or first entry.
enum class BiasLanes { kInTable, kAllAhead, kAllBehind, kMixed };

HWY_INLINE BiasLanes ClassifyLanes(bool run, const int32_t* position, int32_t query,
                                   BiasReach reach) {
  if (!run) return BiasLanes::kMixed;
  const int32_t lo = position[0] - query;
  const int32_t hi = lo + static_cast<int32_t>(kLanes) - 1;
  if (lo >= reach.low && hi <= reach.high) return BiasLanes::kInTable;
  if (lo >= reach.high) return BiasLanes::kAllAhead;
  if (hi <= reach.low) return BiasLanes::kAllBehind;
  return BiasLanes::kMixed;
}

HWY_INLINE auto ClampedDistances(const int32_t* position, int32_t query, BiasReach reach) {
  const Int32Tag di;
  const auto distance = hn::Sub(hn::LoadU(di, position), hn::Set(di, query));
  return hn::Min(hn::Max(distance, hn::Set(di, reach.low)), hn::Set(di, reach.high));
}

HWY_INLINE FloatVec BiasVector(const BiasRow& bias, bool run, const int32_t* position) {
  const FloatTag d;
  switch (ClassifyLanes(run, position, bias.position, bias.reach)) {
    case BiasLanes::kInTable:
      return hn::LoadU(d, bias.zero + (position[0] - bias.position));
    case BiasLanes::kAllAhead:
      return hn::Set(d, bias.zero[bias.reach.high]);
    case BiasLanes::kAllBehind:
      return hn::Set(d, bias.zero[bias.reach.low]);
    case BiasLanes::kMixed:
      break;
  }
  return hn::GatherIndex(d, bias.zero, ClampedDistances(position, bias.position, bias.reach));
}

}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // PERMAFROST_KERNELS_CPU_ATTENTION_INL_H_
