// The SIMD targets that every CPU kernel file is compiled for. A kernel file includes this header
// before any Highway header, so that all files agree on the set; simd.cc and the tests then speak
// of targets that really exist.
//
// AVX3 (AVX-512 F, BW, CD, DQ, VL), AVX2 with FMA, SSE4 and, as the portable floor, EMU128. Left
// out: SSSE3 (no machine of interest stops there) and SCALAR (lacks operations that kernels use).
// Highway 1.0.3 has no target for AVX512-BF16; gemm_avx512bf16.cc covers it.
//
// A kernel file `kernels/cpu/scale.cc` looks like this:
//
//   // What it computes, shapes.
//   #include "kernels/scale.h"  // ScaleArgs, cpu::Scale
//
//   #undef HWY_TARGET_INCLUDE
//   #define HWY_TARGET_INCLUDE "kernels/cpu/scale.cc"  // this file, from the repository root
//   #include "kernels/cpu/targets.h"
//   // Needs the target set.           (a comment here keeps clang-format from sorting across it)
//   #include "hwy/foreach_target.h"  // compiles this file once per target
//   #include "hwy/highway.h"
//
//   HWY_BEFORE_NAMESPACE();
//   namespace permafrost::kernels::cpu {
//   namespace HWY_NAMESPACE {
//   namespace {
//   namespace hn = hwy::HWY_NAMESPACE;
//
//   // A whole row range per call, so that the dispatch costs nothing. Lambdas do not inherit the
//   // target's attributes with every compiler: keep vector code in functions, and give lambdas
//   // that must hold vectors HWY_ATTR.
//   void ScaleRows(const ScaleArgs& args, int64_t begin, int64_t end) {
//     const hn::ScalableTag<float> d;
//     ...
//   }
//
//   }  // namespace
//   }  // namespace HWY_NAMESPACE
//   }  // namespace permafrost::kernels::cpu
//   HWY_AFTER_NAMESPACE();
//
//   #if HWY_ONCE
//   namespace permafrost::kernels::cpu {
//   HWY_EXPORT(ScaleRows);
//   void Scale(const ScaleArgs& args, const Parallel& parallel) {
//     const auto rows = HWY_DYNAMIC_DISPATCH(ScaleRows);
//     ParallelFor(parallel, blocks, [&](int64_t i, int) { rows(args, ...); });
//   }
//   }  // namespace permafrost::kernels::cpu
//   #endif  // HWY_ONCE
//
// Rules for the part above HWY_ONCE: it is compiled with the target's instructions, so it may not
// call inline functions of the standard library that are not inlined away, and types that it
// defines must live inside HWY_NAMESPACE. Highway 1.0.3 truncates in DemoteTo(bf16): round with
// RoundToBF16 of "kernels/cpu/bf16-inl.h". There are no LoadN and StoreN: finish a row with a
// scalar loop, or with MaskedLoad and BlendedStore where reading and rewriting the lanes behind the
// row is allowed (BlendedStore writes them back on most targets, so it must never cross into
// memory that another thread writes or that lies behind the array).
#ifndef PERMAFROST_KERNELS_CPU_TARGETS_H_
#define PERMAFROST_KERNELS_CPU_TARGETS_H_

#if defined(HIGHWAY_HWY_DETECT_TARGETS_H_)
#error "Include kernels/cpu/targets.h before any Highway header"
#endif

// The scalable vectors of SVE and RVV cannot be array elements, which the product tiles need; their
// machines run NEON or EMU128.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
// Highway avoids EMU128 with g++ before 12.3 for a compiler bug in vectorized 16-bit multiply-high
// (GCC 106322), an operation that no kernel here uses.
#define HWY_BROKEN_EMU128 0

#include "hwy/detect_targets.h"

namespace permafrost::kernels::cpu {

// Applies PERMAFROST_SIMD; exits with a message if it names a level that the CPU lacks. Runs once.
bool InitSimdLevel();

// Every kernel file holds this initializer, so the variable counts for any program with kernels.
[[maybe_unused]] static const bool kSimdLevelInitialized = InitSimdLevel();

}  // namespace permafrost::kernels::cpu

#endif  // PERMAFROST_KERNELS_CPU_TARGETS_H_
