// Peak arithmetic rates of one core, measured, to put a benchmark's numbers in proportion.
#ifndef PERMAFROST_KERNELS_PROBE_H_
#define PERMAFROST_KERNELS_PROBE_H_

namespace permafrost::kernels::cpu {

// GFLOP/s of f32 multiply-adds on registers at the current SIMD level: the best of several runs
// that together take about `seconds`.
double FmaProbeGflops(double seconds);

// The same for bf16 dot products, or for f32 where the level has none.
double Bf16DotProbeGflops(double seconds);

}  // namespace permafrost::kernels::cpu

#endif  // PERMAFROST_KERNELS_PROBE_H_
