// Rounding of f32 vectors to bfloat16, nearest even, at every SIMD target. Highway 1.0.3's own
// conversions truncate, which biases weights and activations.
#if defined(PERMAFROST_KERNELS_CPU_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERMAFROST_KERNELS_CPU_BF16_INL_H_
#undef PERMAFROST_KERNELS_CPU_BF16_INL_H_
#else
#define PERMAFROST_KERNELS_CPU_BF16_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {

// The bf16 nearest to each lane of `v` in the upper 16 bits of the result, zeros below: the bits of
// the rounded value as f32. NaN stays NaN (its sign and upper payload bits are kept, made quiet).
template <class D, class V = hwy::HWY_NAMESPACE::VFromD<D>>
HWY_INLINE hwy::HWY_NAMESPACE::VFromD<hwy::HWY_NAMESPACE::RebindToUnsigned<D>> RoundToBF16Bits(
    D, V v) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto lsb = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(bits, hn::Add(lsb, hn::Set(du, 0x7fffu)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));
  const auto is_nan = hn::RebindMask(du, hn::IsNaN(v));
  return hn::And(hn::IfThenElse(is_nan, quiet, rounded), hn::Set(du, 0xffff0000u));
}

// The rounded value as f32.
template <class D, class V = hwy::HWY_NAMESPACE::VFromD<D>>
HWY_INLINE V RoundToBF16(D d, V v) {
  return hwy::HWY_NAMESPACE::BitCast(d, RoundToBF16Bits(d, v));
}

// Rounds one vector of f32 to bf16 and stores Lanes(d) values at `to`.
template <class D, class V = hwy::HWY_NAMESPACE::VFromD<D>>
HWY_INLINE void StoreBF16(D d, V v, uint16_t* HWY_RESTRICT to) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::Rebind<uint16_t, D> d16;
  hn::StoreU(hn::TruncateTo(d16, hn::ShiftRight<16>(RoundToBF16Bits(d, v))), d16, to);
}

// Loads Lanes(d) bf16 values as f32.
template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::VFromD<D> LoadBF16(D d, const uint16_t* HWY_RESTRICT from) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, from))));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // PERMAFROST_KERNELS_CPU_BF16_INL_H_
