// Softmax cross-entropy with z-loss. Definition: kernels/reference/cross_entropy.h.
//
// One row at a time, in two passes: maximum and sum of exponentials together, block by block, then
// the gradient. A row of 50,000 logits stays in the second-level cache between them.
#include "kernels/cross_entropy.h"

#include <cmath>
#include <limits>

#include "kernels/cpu/chunks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/cross_entropy.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

// Logits whose maximum is taken before their exponentials: half of a first-level cache.
constexpr int64_t kBlock = 4096;

float Maximum(const float* z, int64_t count) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const FloatVec lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  FloatVec m0 = lowest, m1 = lowest, m2 = lowest, m3 = lowest;
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    m0 = hn::Max(m0, hn::LoadU(d, z + i));
    m1 = hn::Max(m1, hn::LoadU(d, z + i + lanes));
    m2 = hn::Max(m2, hn::LoadU(d, z + i + 2 * lanes));
    m3 = hn::Max(m3, hn::LoadU(d, z + i + 3 * lanes));
  }
  for (; i + lanes <= count; i += lanes) m0 = hn::Max(m0, hn::LoadU(d, z + i));
  float max = hn::GetLane(hn::MaxOfLanes(d, hn::Max(hn::Max(m0, m1), hn::Max(m2, m3))));
  for (; i < count; ++i) max = z[i] > max ? z[i] : max;
  return max;
}

// exp(z - shift) for z <= shift. The lower end is all that needs a clamp.
HWY_INLINE FloatVec ExpBelow(FloatVec z, FloatVec shift) {
  const FloatTag d;
  const FloatVec x = hn::Sub(z, shift);
  return KeepNaN(x, ExpInRange(hn::Max(x, hn::Set(d, -110.0f)), hn::Zero(d)));
}

void LossRow(const CrossEntropyArgs& a, int64_t row) {
  const FloatTag d;
  const float* z = a.logits + row * a.stride;
  // sum is that of exp(z - max) over the blocks so far. A NaN among the logits ends up in it.
  float max = -std::numeric_limits<float>::infinity();
  double sum = 0;
  for (int64_t begin = 0; begin < a.vocabulary; begin += kBlock) {
    const int64_t count = HWY_MIN(kBlock, a.vocabulary - begin);
    const float block_max = Maximum(z + begin, count);
    if (block_max > max) {
      sum *= std::exp(static_cast<double>(max) - static_cast<double>(block_max));
      max = block_max;
    }
    // Only minus infinities so far: shift by 0 to add zeros instead of NaN.
    const bool empty = max == -std::numeric_limits<float>::infinity();
    const FloatVec shift = hn::Set(d, empty ? 0.0f : max);
    const float* block = z + begin;
    sum += SumOverVectors(count, [=](int64_t i, auto part)
                                     HWY_ATTR { return ExpBelow(Load(block + i, part), shift); });
  }
  const double lse = static_cast<double>(max) + std::log(sum);
  const int64_t label = a.labels[row];
  const double target = static_cast<double>(z[label]);
  const double z_loss = static_cast<double>(a.z_loss);
  a.loss[row] = static_cast<float>(lse - target + z_loss * lse * lse);
  if (a.dlogits == nullptr) return;

  const double row_scale = a.row_scale != nullptr ? static_cast<double>(a.row_scale[row]) : 1.0;
  const double lse_slope = 1.0 + 2.0 * z_loss * lse;
  const FloatVec factor = hn::Set(d, static_cast<float>(row_scale * lse_slope / sum));
  const FloatVec shift = hn::Set(d, max);
  float* dz = a.dlogits + row * a.stride;
  ForEachVector(a.vocabulary, [=](int64_t i, auto part) HWY_ATTR {
    Store(hn::Mul(ExpBelow(Load(z + i, part), shift), factor), dz + i, part);
  });
  // softmax - 1 cancels when the prediction is good: f64.
  const double softmax = std::exp(target - static_cast<double>(max)) / sum;
  dz[label] = static_cast<float>(row_scale * (lse_slope * softmax - 1.0));
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace permafrost::kernels::cpu {
namespace {
HWY_EXPORT(LossRow);
}  // namespace

void CrossEntropy(const CrossEntropyArgs& args, const Parallel& parallel) {
  const auto row = HWY_DYNAMIC_DISPATCH(LossRow);
  ParallelFor(parallel, args.rows, [&](int64_t i, int) { row(args, i); });
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
