// Which SIMD level the CPU kernels run at. Chosen once from what the CPU has; the environment
// variable PERMAFROST_SIMD (avx512bf16, avx512, avx2, sse4, emu128) lowers it, and tests force each
// level in turn.
#ifndef PERMAFROST_KERNELS_SIMD_H_
#define PERMAFROST_KERNELS_SIMD_H_

#include <string>
#include <vector>

namespace permafrost::kernels::cpu {

// The levels that this CPU can run, best first, e.g. {"avx512bf16", "avx512", "avx2", ...,
// "emu128"}. avx512bf16 differs from avx512 in the bf16 matrix product only.
std::vector<std::string> AvailableSimdLevels();

// Runs kernels at `level` from now on. Returns false, and changes nothing, if the CPU lacks it or
// the name is unknown. Not thread-safe: call it between kernels.
bool SetSimdLevel(const std::string& level);

// The level in use.
std::string CurrentSimdLevel();

}  // namespace permafrost::kernels::cpu

#endif  // PERMAFROST_KERNELS_SIMD_H_
