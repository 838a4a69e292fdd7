// What kernels ask about the SIMD level beyond Highway's own dispatch.
#ifndef PERMAFROST_KERNELS_CPU_SIMD_STATE_H_
#define PERMAFROST_KERNELS_CPU_SIMD_STATE_H_

namespace permafrost::kernels::cpu {

// Whether the level in use includes AVX512-BF16 dot products.
bool UseAvx512Bf16();

}  // namespace permafrost::kernels::cpu

#endif  // PERMAFROST_KERNELS_CPU_SIMD_STATE_H_
