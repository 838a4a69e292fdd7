// Philox dropout. Definition: kernels/reference/dropout.h; equal to it bit for bit.
#include "kernels/dropout.h"

#include <cmath>

#include "kernels/cpu/chunks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/dropout.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

using WordTag = hn::RebindToUnsigned<FloatTag>;
using WordVec = hn::Vec<WordTag>;

// The 64-bit products of the lanes of v with a constant, as their high and low words.
struct Product {
  WordVec high;
  WordVec low;
};
HWY_INLINE Product Multiply(WordVec v, uint32_t multiplier) {
  const WordTag d;
  const hn::RepartitionToWide<WordTag> dw;
  const WordVec m = hn::Set(d, multiplier);
  const auto even = hn::MulEven(v, m);
  const auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(dw, v))), m);
  return {hn::OddEven(hn::BitCast(d, odd), hn::BitCast(d, hn::ShiftRight<32>(even))),
          hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even))};
}

// Philox of `lanes` counters {first, first + 1, ...} at once: writes 4 * lanes words to `words`,
// the four of a counter together.
HWY_INLINE void PhiloxBlock(const DropoutArgs& a, int64_t row, uint32_t first, uint32_t* words) {
  const WordTag d;
  WordVec c0 = hn::Iota(d, first);
  WordVec c1 = hn::Set(d, static_cast<uint32_t>(a.row_begin + row));
  WordVec c2 = hn::Set(d, a.place);
  WordVec c3 = hn::Set(d, a.step);
  uint32_t k0 = static_cast<uint32_t>(a.seed), k1 = static_cast<uint32_t>(a.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Product p0 = Multiply(c0, 0xD2511F53u);
    const Product p1 = Multiply(c2, 0xCD9E8D57u);
    c0 = hn::Xor(hn::Xor(p1.high, c1), hn::Set(d, k0));
    c2 = hn::Xor(hn::Xor(p0.high, c3), hn::Set(d, k1));
    c1 = p1.low;
    c3 = p0.low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  hn::StoreInterleaved4(c0, c1, c2, c3, d, words);
}

// Words below `threshold` drop their element.
void DropoutRows(const DropoutArgs& a, uint32_t threshold, int64_t begin, int64_t end) {
  const FloatTag d;
  const WordTag dw;
  const int64_t group = 4 * static_cast<int64_t>(hn::Lanes(d));
  const FloatVec keep_rate = hn::Set(d, 1.0f - a.rate);
  const WordVec limit = hn::Set(dw, threshold);
  HWY_ALIGN uint32_t words[4 * hn::MaxLanes(FloatTag())];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t c = 0; c < a.width; c += group) {
      PhiloxBlock(a, row, static_cast<uint32_t>(c / 4), words);
      const float* x = a.x + row * a.width + c;
      float* y = a.y + row * a.width + c;
      const uint32_t* from = words;
      ForEachVector(HWY_MIN(group, a.width - c), [=](int64_t i, auto part) HWY_ATTR {
        const auto drop = hn::RebindMask(FloatTag(), hn::Lt(hn::Load(WordTag(), from + i), limit));
        Store(hn::IfThenZeroElse(drop, hn::Div(Load(x + i, part), keep_rate)), y + i, part);
      });
    }
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
HWY_EXPORT(DropoutRows);
}  // namespace

void Dropout(const DropoutArgs& args, const Parallel& parallel) {
  const auto rows = HWY_DYNAMIC_DISPATCH(DropoutRows);
  // word / 2^32 < rate as integers. rate is an f32 below 1, so the product is exact and fits.
  const uint32_t threshold =
      static_cast<uint32_t>(std::ceil(static_cast<double>(args.rate) * 4294967296.0));
  ParallelChunks(parallel, args.rows, ChunkRows(args.width),
                 [&](int64_t begin, int64_t end) { rows(args, threshold, begin, end); });
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
