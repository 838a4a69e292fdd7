// Rotary position embedding. Definition: kernels/reference/rope.h.
#include "kernels/rope.h"

#include "kernels/cpu/chunks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

template <Rotation kRotation>
void RotateRows(const RopeArgs& a, int64_t begin, int64_t end) {
  const int64_t half = a.head_size / 2;
  for (int64_t row = begin; row < end; ++row) {
    const float* cos = a.cos + a.positions[row] * half;
    const float* sin = a.sin + a.positions[row] * half;
    for (int64_t h = 0; h < a.heads; ++h) {
      const int64_t at = (row * a.heads + h) * a.head_size;
      const float* x = a.x + at;
      float* y = a.y + at;
      ForEachVector(half, [=](int64_t j, auto part) HWY_ATTR {
        const FloatVec low = Load(x + j, part), high = Load(x + j + half, part);
        const FloatVec c = Load(cos + j, part), s = Load(sin + j, part);
        if constexpr (kRotation == Rotation::kForward) {
          Store(hn::NegMulAdd(high, s, hn::Mul(low, c)), y + j, part);
          Store(hn::MulAdd(low, s, hn::Mul(high, c)), y + j + half, part);
        } else {
          Store(hn::MulAdd(high, s, hn::Mul(low, c)), y + j, part);
          Store(hn::NegMulAdd(low, s, hn::Mul(high, c)), y + j + half, part);
        }
      });
    }
  }
}

void RopeRows(const RopeArgs& a, int64_t begin, int64_t end) {
  if (a.rotation == Rotation::kForward) {
    RotateRows<Rotation::kForward>(a, begin, end);
  } else {
    RotateRows<Rotation::kInverse>(a, begin, end);
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace permafrost::kernels::cpu {
namespace {
HWY_EXPORT(RopeRows);
}  // namespace

void Rope(const RopeArgs& args, const Parallel& parallel) {
  const auto rows = HWY_DYNAMIC_DISPATCH(RopeRows);
  ParallelChunks(parallel, args.rows, ChunkRows(args.heads * args.head_size),
                 [&](int64_t begin, int64_t end) { rows(args, begin, end); });
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
