// Types that every kernel family shares. Plain data only, so that the same argument structs serve
// the scalar reference, the Highway kernels and the CUDA kernels.
//
// A CPU kernel is called as `cpu::F(args, parallel)`: it partitions the work itself and runs the
// pieces through `Parallel`, a C handle on the engine's thread pool. The partition never changes a
// result bit: a reduction over rows uses chunks whose size does not depend on the worker count.
//
// Non-goals: ownership, shape checks (the engine's ops do both), autograd.
#ifndef PERMAFROST_KERNELS_TYPES_H_
#define PERMAFROST_KERNELS_TYPES_H_

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace permafrost::kernels {

// Storage formats of array elements.
enum class DType : int32_t { kF32, kBF16, kI32 };

// bfloat16 as bits. Conversions round to nearest even (Highway 1.0.3's own conversion truncates).
struct BF16 {
  uint16_t bits;
};

inline float ToFloat(BF16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof(f));
  return f;
}

inline BF16 ToBF16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// Whether an output is overwritten or added to.
enum class Write : int32_t { kOverwrite, kAccumulate };

// A C handle on a thread pool: runs task(context, index, worker) for every index in [0, count) and
// returns when all are done. `worker` is in [0, workers) and is unique among running tasks.
struct Parallel {
  void* pool = nullptr;
  int workers = 1;
  void (*run)(void* pool, int64_t count, void (*task)(void* context, int64_t index, int worker),
              void* context) = nullptr;
};

// Calls f(index, worker) for every index in [0, count); in order on the caller if there is no pool.
template <class F>
void ParallelFor(const Parallel& parallel, int64_t count, F&& f) {
  if (parallel.run == nullptr || parallel.workers <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) f(i, 0);
    return;
  }
  parallel.run(
      parallel.pool, count,
      [](void* context, int64_t index, int worker) {
        (*static_cast<std::remove_reference_t<F>*>(context))(index, worker);
      },
      &f);
}

}  // namespace permafrost::kernels

#endif  // PERMAFROST_KERNELS_TYPES_H_
