// What every elementwise and row kernel is made of: whole and partial f32 vectors, a loop over an
// array whose last, partial vector runs through the same code as the others, and sums that stay
// accurate for any length.
#if defined(PERMAFROST_KERNELS_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERMAFROST_KERNELS_CPU_VECTOR_INL_H_
#undef PERMAFROST_KERNELS_CPU_VECTOR_INL_H_
#else
#define PERMAFROST_KERNELS_CPU_VECTOR_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;

// How much of a vector an access covers: all of it, or the first `count` lanes.
struct Whole {};
struct Part {
  int64_t count;
};

HWY_INLINE FloatVec Load(const float* from, Whole) { return hn::LoadU(FloatTag(), from); }
HWY_INLINE void Store(FloatVec v, float* to, Whole) { hn::StoreU(v, FloatTag(), to); }

// Lanes beyond the part are zero when loaded, untouched (not even rewritten) when stored.
HWY_INLINE FloatVec Load(const float* from, Part part) {
  const FloatTag d;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
  return hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(part.count)), d, from);
#else
  HWY_ALIGN float lanes[hn::MaxLanes(FloatTag())] = {};
  for (int64_t i = 0; i < part.count; ++i) lanes[i] = from[i];
  return hn::Load(d, lanes);
#endif
}
HWY_INLINE void Store(FloatVec v, float* to, Part part) {
  const FloatTag d;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
  hn::BlendedStore(v, hn::FirstN(d, static_cast<size_t>(part.count)), d, to);
#else
  HWY_ALIGN float lanes[hn::MaxLanes(FloatTag())];
  hn::Store(v, d, lanes);
  for (int64_t i = 0; i < part.count; ++i) to[i] = lanes[i];
#endif
}

// Calls f(i, Whole()) for every whole vector at [i, i + lanes) below count, then f(i, Part) for the
// rest, so that an element's result does not depend on where a chunk ends. f needs HWY_ATTR.
template <class F>
HWY_INLINE void ForEachVector(int64_t count, F f) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) f(i, Whole());
  if (i < count) f(i, Part{count - i});
}

// Elements that one f32 partial sum covers: each lane adds at most this / 4 terms at the narrowest
// target, in four interleaved sums, so that the relative error stays near 1e-6 / 4 at any length.
inline constexpr int64_t kSumChunk = 1024;

// Sum of the lanes of term(i, Whole or Part) over [0, count): f32 within chunks, f64 across them.
template <class F>
HWY_INLINE double SumOverVectors(int64_t count, F term) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kSumChunk) {
    const int64_t end = begin + kSumChunk < count ? begin + kSumChunk : count;
    FloatVec s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
    int64_t i = begin;
    for (; i + 4 * lanes <= end; i += 4 * lanes) {
      s0 = hn::Add(s0, term(i, Whole()));
      s1 = hn::Add(s1, term(i + lanes, Whole()));
      s2 = hn::Add(s2, term(i + 2 * lanes, Whole()));
      s3 = hn::Add(s3, term(i + 3 * lanes, Whole()));
    }
    for (; i + lanes <= end; i += lanes) s0 = hn::Add(s0, term(i, Whole()));
    if (i < end) {
      // A term of zeros need not be zero.
      const auto first = hn::FirstN(d, static_cast<size_t>(end - i));
      s1 = hn::Add(s1, hn::IfThenElseZero(first, term(i, Part{end - i})));
    }
    const FloatVec sum = hn::Add(hn::Add(s0, s1), hn::Add(s2, s3));
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  return total;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // PERMAFROST_KERNELS_CPU_VECTOR_INL_H_
