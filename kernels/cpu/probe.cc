#include "kernels/probe.h"

#include <cstdint>

#include "kernels/cpu/gemm_tile.h"
#include "kernels/cpu/simd_state.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/probe.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Runs `steps` of 12 independent multiply-adds; returns their FLOPs. x -> a x + b stays finite.
double FmaLoop(int64_t steps, float* out) {
  const hn::ScalableTag<float> d;
  constexpr int kChains = 12;
  hn::Vec<decltype(d)> x[kChains];
  const auto a = hn::Set(d, 0.5f), b = hn::Set(d, out[0]);
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) x[i] = hn::Set(d, static_cast<float>(i));
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) x[i] = hn::MulAdd(x[i], a, b);
  }
  auto sum = x[0];
#pragma GCC unroll 12
  for (int i = 1; i < kChains; ++i) sum = hn::Add(sum, x[i]);
  out[0] = hn::GetLane(sum) * 1e-3f;
  return 2.0 * kChains * static_cast<double>(hn::Lanes(d)) * static_cast<double>(steps);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <chrono>

namespace permafrost::kernels::cpu {
HWY_EXPORT(FmaLoop);

namespace {

// loop(steps, out) returns FLOPs.
template <class Loop>
double Best(double seconds, Loop loop) {
  using Clock = std::chrono::steady_clock;
  const auto elapsed = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  volatile float sink = 0;
  double best = 0;
  const Clock::time_point start = Clock::now();
  do {
    float out = 1.0f;
    const Clock::time_point run = Clock::now();
    const double flops = loop(int64_t{100000}, &out);
    best = std::max(best, flops / std::max(1e-9, elapsed(run)));
    sink = sink + out;
  } while (elapsed(start) < seconds);
  return best * 1e-9;
}

}  // namespace

double FmaProbeGflops(double seconds) { return Best(seconds, HWY_DYNAMIC_DISPATCH(FmaLoop)); }

double Bf16DotProbeGflops(double seconds) {
  return UseAvx512Bf16() ? Best(seconds, DotLoopAvx512Bf16) : FmaProbeGflops(seconds);
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
