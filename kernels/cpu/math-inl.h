// exp, tanh, the logistic function and the normal distribution on f32 vectors, within about 3 units
// in the last place, NaN in NaN out. (Highway's contrib/math has no erf and its Tanh is looser.)
// The polynomials are minimax (Remez) fits for the relative error of the whole function; the error
// before rounding of the coefficients stands beside each.
#if defined(PERMAFROST_KERNELS_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERMAFROST_KERNELS_CPU_MATH_INL_H_
#undef PERMAFROST_KERNELS_CPU_MATH_INL_H_
#else
#define PERMAFROST_KERNELS_CPU_MATH_INL_H_
#endif

#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {

// Inlined where speed counts. Elsewhere (the portable floor, sanitizers) dozens of copies of an
// emulated exp in one file cost minutes of compile time.
#undef PERMAFROST_MATH_INLINE
#if HWY_TARGET == HWY_EMU128 || HWY_IS_ASAN || HWY_IS_MSAN || HWY_IS_TSAN
#define PERMAFROST_MATH_INLINE HWY_NOINLINE
#else
#define PERMAFROST_MATH_INLINE HWY_INLINE
#endif

// exp(a + b), |b| small against |a|: b extends the precision of the argument. The sum must lie in
// [-115, 90], where the result goes from 0 to infinity.
[[maybe_unused]] static PERMAFROST_MATH_INLINE FloatVec ExpInRange(FloatVec a, FloatVec b) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const FloatVec n = hn::Round(hn::Mul(hn::Add(a, b), hn::Set(d, 1.44269504f)));
  // ln 2 in two pieces; the first has 15 bits, so that its product with n is exact without FMA too.
  FloatVec r = hn::NegMulAdd(n, hn::Set(d, 0.693145751953125f), a);
  r = hn::Add(hn::NegMulAdd(n, hn::Set(d, 1.42860677e-6f), r), b);
  // exp(r) = 1 + r + r^2 p(r) for |r| <= ln(2) / 2: 3.3e-9.
  FloatVec p = hn::MulAdd(hn::Set(d, 0.00138131413f), r, hn::Set(d, 0.00836941879f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.041668456f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.166665152f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.49999994f));
  p = hn::Add(hn::MulAdd(hn::Mul(r, r), p, r), hn::Set(d, 1.0f));
  // 2^n in two factors: n may lie outside of the exponent range of either.
  const auto exponent = hn::ConvertTo(di, n);
  const auto half = hn::ShiftRight<1>(exponent);
  const auto bias = hn::Set(di, 127);
  const auto f0 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const auto f1 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(exponent, half), bias)));
  return hn::Mul(hn::Mul(p, f0), f1);
}

HWY_INLINE FloatVec KeepNaN(FloatVec from, FloatVec v) {
  return hn::IfThenElse(hn::IsNaN(from), from, v);
}

HWY_INLINE FloatVec Exp(FloatVec x) {
  const FloatTag d;
  const FloatVec clamped = hn::Min(hn::Max(x, hn::Set(d, -110.0f)), hn::Set(d, 90.0f));
  return KeepNaN(x, ExpInRange(clamped, hn::Zero(d)));
}

[[maybe_unused]] static PERMAFROST_MATH_INLINE FloatVec Tanh(FloatVec x) {
  const FloatTag d;
  const FloatVec magnitude = hn::Abs(x);
  const FloatVec one = hn::Set(d, 1.0f);
  // tanh(x) = x + x^3 p(x^2) for |x| <= 0.632: 4.7e-9.
  const FloatVec s = hn::Mul(x, x);
  FloatVec p = hn::MulAdd(hn::Set(d, -0.00566078583f), s, hn::Set(d, 0.0206020046f));
  p = hn::MulAdd(p, s, hn::Set(d, -0.0537292287f));
  p = hn::MulAdd(p, s, hn::Set(d, 0.133313283f));
  p = hn::MulAdd(p, s, hn::Set(d, -0.333332777f));
  const FloatVec small = hn::MulAdd(hn::Mul(x, s), p, x);
  // Else 1 - 2 e / (1 + e), e = exp(-2 |x|), where the fraction is below 0.45.
  const FloatVec e = Exp(hn::Mul(hn::Set(d, -2.0f), magnitude));
  const FloatVec large = hn::Sub(one, hn::Div(hn::Add(e, e), hn::Add(one, e)));
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.625f)), small, hn::CopySign(large, x));
}

// sigmoid(x) and 1 - sigmoid(x), both with full relative accuracy.
struct SigmoidPair {
  FloatVec value;
  FloatVec complement;
};
[[maybe_unused]] static PERMAFROST_MATH_INLINE SigmoidPair SigmoidBoth(FloatVec x) {
  const FloatTag d;
  const FloatVec one = hn::Set(d, 1.0f);
  const FloatVec e = Exp(hn::Neg(hn::Abs(x)));
  const FloatVec near = hn::Div(one, hn::Add(one, e));
  const FloatVec far = hn::Mul(e, near);
  const auto negative = hn::Lt(x, hn::Zero(d));
  return {hn::IfThenElse(negative, far, near), hn::IfThenElse(negative, near, far)};
}

[[maybe_unused]] static PERMAFROST_MATH_INLINE FloatVec Sigmoid(FloatVec x) {
  const FloatTag d;
  const FloatVec one = hn::Set(d, 1.0f);
  const FloatVec e = Exp(hn::Neg(hn::Abs(x)));
  return hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one), hn::Add(one, e));
}

// The standard normal distribution function and density.
struct NormalPair {
  FloatVec cdf;
  FloatVec density;
};
[[maybe_unused]] static PERMAFROST_MATH_INLINE NormalPair Normal(FloatVec x) {
  const FloatTag d;
  const hn::RebindToUnsigned<FloatTag> du;
  // Beyond 15 both are 0 in f32.
  const FloatVec m = hn::Min(hn::Abs(x), hn::Set(d, 15.0f));
  // m^2 / 2 to twice the precision: m = high + (m - high), high of 12 bits, whose square is exact.
  const FloatVec high = hn::BitCast(d, hn::And(hn::BitCast(du, m), hn::Set(du, 0xfffff000u)));
  const FloatVec minus_half = hn::Set(d, -0.5f);
  const FloatVec a = hn::Mul(minus_half, hn::Mul(high, high));
  const FloatVec b = hn::Mul(minus_half, hn::Mul(hn::Sub(m, high), hn::Add(m, high)));
  const FloatVec gauss = ExpInRange(a, b);
  // Upper tail = exp(-m^2 / 2) p(u) / (m + 4), u = (m - 4) / (m + 4), for 0 <= m <= 14.2: 8.4e-9.
  const FloatVec four = hn::Set(d, 4.0f);
  const FloatVec inverse = hn::Div(hn::Set(d, 1.0f), hn::Add(m, four));
  const FloatVec u = hn::Mul(hn::Sub(m, four), inverse);
  FloatVec p = hn::MulAdd(hn::Set(d, -0.00013053506f), u, hn::Set(d, 0.000182442542f));
  p = hn::MulAdd(p, u, hn::Set(d, 0.00157102908f));
  p = hn::MulAdd(p, u, hn::Set(d, -0.00351400068f));
  p = hn::MulAdd(p, u, hn::Set(d, -0.00752612064f));
  p = hn::MulAdd(p, u, hn::Set(d, 0.0604040213f));
  p = hn::MulAdd(p, u, hn::Set(d, -0.186523303f));
  p = hn::MulAdd(p, u, hn::Set(d, 0.387136906f));
  p = hn::MulAdd(p, u, hn::Set(d, -0.607896566f));
  p = hn::MulAdd(p, u, hn::Set(d, 0.755285144f));
  const FloatVec tail = hn::Mul(gauss, hn::Mul(p, inverse));
  const auto negative = hn::Lt(x, hn::Zero(d));
  const FloatVec cdf = hn::IfThenElse(negative, tail, hn::Sub(hn::Set(d, 1.0f), tail));
  return {KeepNaN(x, cdf), KeepNaN(x, hn::Mul(hn::Set(d, 0.398942280f), gauss))};
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // PERMAFROST_KERNELS_CPU_MATH_INL_H_
