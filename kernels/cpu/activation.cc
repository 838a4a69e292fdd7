// Activations and their gated forms. Definition: kernels/reference/activation.h.
#include "kernels/activation.h"

#include "kernels/cpu/chunks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

struct ValueAndSlope {
  FloatVec value;
  FloatVec slope;
};

struct Relu {
  static PERMAFROST_MATH_INLINE FloatVec Value(FloatVec x) {
    return hn::IfThenZeroElse(hn::Lt(x, hn::Zero(FloatTag())), x);
  }
  static PERMAFROST_MATH_INLINE ValueAndSlope Both(FloatVec x) {
    const FloatTag d;
    return {Value(x), hn::IfThenElseZero(hn::Gt(x, hn::Zero(d)), hn::Set(d, 1.0f))};
  }
};

struct GeluErf {
  static PERMAFROST_MATH_INLINE FloatVec Value(FloatVec x) { return hn::Mul(x, Normal(x).cdf); }
  static PERMAFROST_MATH_INLINE ValueAndSlope Both(FloatVec x) {
    const NormalPair n = Normal(x);
    return {hn::Mul(x, n.cdf), hn::MulAdd(x, n.density, n.cdf)};
  }
};

struct GeluTanh {
  // 2 sqrt(2 / pi) and that times 0.044715, for (1 + tanh u) / 2 = sigmoid(2 u).
  static constexpr float kLinear = 1.59576912f;
  static constexpr float kCubic = 0.0713548163f;

  static HWY_INLINE FloatVec Argument(FloatVec x) {
    const FloatTag d;
    return hn::Mul(x, hn::MulAdd(hn::Set(d, kCubic), hn::Mul(x, x), hn::Set(d, kLinear)));
  }
  static PERMAFROST_MATH_INLINE FloatVec Value(FloatVec x) {
    return hn::Mul(x, Sigmoid(Argument(x)));
  }
  static PERMAFROST_MATH_INLINE ValueAndSlope Both(FloatVec x) {
    const FloatTag d;
    const SigmoidPair s = SigmoidBoth(Argument(x));
    // sigmoid's own slope is 0 long before |x| = 100; the clamp keeps infinity out of 0 * slope.
    const FloatVec limit = hn::Set(d, 100.0f);
    const FloatVec xc = hn::Min(hn::Max(x, hn::Neg(limit)), limit);
    const FloatVec du = hn::MulAdd(hn::Set(d, 3 * kCubic), hn::Mul(xc, xc), hn::Set(d, kLinear));
    const FloatVec bump = hn::Mul(hn::Mul(s.value, s.complement), hn::Mul(xc, du));
    return {hn::Mul(x, s.value), hn::Add(s.value, bump)};
  }
};

struct Silu {
  static PERMAFROST_MATH_INLINE FloatVec Value(FloatVec x) { return hn::Mul(x, Sigmoid(x)); }
  static PERMAFROST_MATH_INLINE ValueAndSlope Both(FloatVec x) {
    const SigmoidPair s = SigmoidBoth(x);
    const FloatVec value = hn::Mul(x, s.value);
    return {value, hn::MulAdd(value, s.complement, s.value)};
  }
};

struct TanhOp {
  static PERMAFROST_MATH_INLINE FloatVec Value(FloatVec x) { return Tanh(x); }
  static PERMAFROST_MATH_INLINE ValueAndSlope Both(FloatVec x) {
    // 1 - tanh^2 = 4 sigmoid(2x) (1 - sigmoid(2x)), without the cancellation.
    const SigmoidPair s = SigmoidBoth(hn::Add(x, x));
    return {Tanh(x), hn::Mul(hn::Set(FloatTag(), 4.0f), hn::Mul(s.value, s.complement))};
  }
};

struct LeakyRelu {
  static PERMAFROST_MATH_INLINE FloatVec Value(FloatVec x) {
    const FloatTag d;
    const FloatVec below = hn::Mul(x, hn::Set(d, static_cast<float>(kLeakySlope)));
    return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), below, x);
  }
  static PERMAFROST_MATH_INLINE ValueAndSlope Both(FloatVec x) {
    const FloatTag d;
    return {Value(x), hn::IfThenElse(hn::Gt(x, hn::Zero(d)), hn::Set(d, 1.0f),
                                     hn::Set(d, static_cast<float>(kLeakySlope)))};
  }
};

template <class Op>
void Forward(const ActivationForwardArgs& a, int64_t begin, int64_t end) {
  const float* x = a.x + begin;
  float* y = a.y + begin;
  ForEachVector(end - begin, [=](int64_t i, auto part)
                                 HWY_ATTR { Store(Op::Value(Load(x + i, part)), y + i, part); });
}

template <class Op>
void Backward(const ActivationBackwardArgs& a, int64_t begin, int64_t end) {
  const float* x = a.x + begin;
  const float* dy = a.dy + begin;
  float* dx = a.dx + begin;
  ForEachVector(end - begin, [=](int64_t i, auto part) HWY_ATTR {
    Store(hn::Mul(Op::Both(Load(x + i, part)).slope, Load(dy + i, part)), dx + i, part);
  });
}

template <class Op>
void Gated(const GatedForwardArgs& a, int64_t begin, int64_t end) {
  const float* gate = a.gate + begin;
  const float* up = a.up + begin;
  float* y = a.y + begin;
  ForEachVector(end - begin, [=](int64_t i, auto part) HWY_ATTR {
    Store(hn::Mul(Op::Value(Load(gate + i, part)), Load(up + i, part)), y + i, part);
  });
}

template <class Op>
void GatedGradient(const GatedBackwardArgs& a, int64_t begin, int64_t end) {
  ForEachVector(end - begin, [&a, begin](int64_t offset, auto part) HWY_ATTR {
    const int64_t i = begin + offset;
    const ValueAndSlope act = Op::Both(Load(a.gate + i, part));
    const FloatVec dy = Load(a.dy + i, part);
    // Read before any write: an output may be one of the inputs.
    const FloatVec dgate =
        a.dgate != nullptr ? hn::Mul(hn::Mul(act.slope, Load(a.up + i, part)), dy) : dy;
    if (a.dup != nullptr) Store(hn::Mul(act.value, dy), a.dup + i, part);
    if (a.dgate != nullptr) Store(dgate, a.dgate + i, part);
  });
}

// Calls F<Op>(args, begin, end) for the activation.
#define PERMAFROST_BY_ACTIVATION(F)       \
  switch (a.activation) {                 \
    case Activation::kRelu:               \
      return F<Relu>(a, begin, end);      \
    case Activation::kGeluErf:            \
      return F<GeluErf>(a, begin, end);   \
    case Activation::kGeluTanh:           \
      return F<GeluTanh>(a, begin, end);  \
    case Activation::kSilu:               \
      return F<Silu>(a, begin, end);      \
    case Activation::kTanh:               \
      return F<TanhOp>(a, begin, end);    \
    case Activation::kLeakyRelu:          \
      return F<LeakyRelu>(a, begin, end); \
  }
void ForwardRange(const ActivationForwardArgs& a, int64_t begin, int64_t end) {
  PERMAFROST_BY_ACTIVATION(Forward)
}
void BackwardRange(const ActivationBackwardArgs& a, int64_t begin, int64_t end) {
  PERMAFROST_BY_ACTIVATION(Backward)
}
void GatedForwardRange(const GatedForwardArgs& a, int64_t begin, int64_t end) {
  PERMAFROST_BY_ACTIVATION(Gated)
}
void GatedBackwardRange(const GatedBackwardArgs& a, int64_t begin, int64_t end) {
  PERMAFROST_BY_ACTIVATION(GatedGradient)
}
#undef PERMAFROST_BY_ACTIVATION

// begin is a multiple of kChunkElements: no byte of the mask is shared.
void ReluMaskForwardRange(const ReluMaskForwardArgs& a, int64_t begin, int64_t end) {
  const FloatTag d;
  for (int64_t i = begin; i < end; i += 8) a.mask[i / 8] = 0;
  ForEachVector(end - begin, [&a, begin, d](int64_t offset, auto part) HWY_ATTR {
    const int64_t i = begin + offset;
    const FloatVec x = Load(a.x + i, part);
    uint8_t bits[8] = {};
    hn::StoreMaskBits(d, hn::Gt(x, hn::Zero(d)), bits);
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    const int64_t count = i + lanes < a.count ? lanes : a.count - i;
    if (lanes < 8) {
      a.mask[i / 8] = static_cast<uint8_t>(a.mask[i / 8] | bits[0] << (i % 8));
    } else {
      for (int64_t k = 0; 8 * k < count; ++k) a.mask[i / 8 + k] = bits[k];
    }
    Store(Relu::Value(x), a.y + i, part);
  });
}

void ReluMaskBackwardRange(const ReluMaskBackwardArgs& a, int64_t begin, int64_t end) {
  const FloatTag d;
  ForEachVector(end - begin, [&a, begin, d](int64_t offset, auto part) HWY_ATTR {
    const int64_t i = begin + offset;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    const int64_t count = i + lanes < a.count ? lanes : a.count - i;
    uint8_t bits[8] = {};
    for (int64_t k = 0; 8 * k < count; ++k) bits[k] = a.mask[i / 8 + k];
    if (lanes < 8) bits[0] = static_cast<uint8_t>(bits[0] >> (i % 8));
    const auto positive = hn::LoadMaskBits(d, bits);
    Store(hn::IfThenElseZero(positive, Load(a.dy + i, part)), a.dx + i, part);
  });
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace permafrost::kernels::cpu {
namespace {
HWY_EXPORT(ForwardRange);
HWY_EXPORT(BackwardRange);
HWY_EXPORT(GatedForwardRange);
HWY_EXPORT(GatedBackwardRange);
HWY_EXPORT(ReluMaskForwardRange);
HWY_EXPORT(ReluMaskBackwardRange);

template <class Args>
void Run(const Args& args, const Parallel& parallel, void (*range)(const Args&, int64_t, int64_t)) {
  ParallelChunks(parallel, args.count, kChunkElements,
                 [&](int64_t begin, int64_t end) { range(args, begin, end); });
}
}  // namespace

void ActivationForward(const ActivationForwardArgs& args, const Parallel& parallel) {
  Run(args, parallel, HWY_DYNAMIC_DISPATCH(ForwardRange));
}
void ActivationBackward(const ActivationBackwardArgs& args, const Parallel& parallel) {
  Run(args, parallel, HWY_DYNAMIC_DISPATCH(BackwardRange));
}
void GatedForward(const GatedForwardArgs& args, const Parallel& parallel) {
  Run(args, parallel, HWY_DYNAMIC_DISPATCH(GatedForwardRange));
}
void GatedBackward(const GatedBackwardArgs& args, const Parallel& parallel) {
  Run(args, parallel, HWY_DYNAMIC_DISPATCH(GatedBackwardRange));
}
void ReluMaskForward(const ReluMaskForwardArgs& args, const Parallel& parallel) {
  Run(args, parallel, HWY_DYNAMIC_DISPATCH(ReluMaskForwardRange));
}
void ReluMaskBackward(const ReluMaskBackwardArgs& args, const Parallel& parallel) {
  Run(args, parallel, HWY_DYNAMIC_DISPATCH(ReluMaskBackwardRange));
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
