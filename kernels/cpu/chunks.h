// How elementwise kernels split their work: into pieces whose size depends on the shape alone, so
// that no result bit depends on the number of workers.
#ifndef PERMAFROST_KERNELS_CPU_CHUNKS_H_
#define PERMAFROST_KERNELS_CPU_CHUNKS_H_

#include "kernels/types.h"

namespace permafrost::kernels::cpu {

// Elements in one piece: 64 KiB of f32, long against the cost of handing a piece to a worker.
inline constexpr int64_t kChunkElements = 16384;

// Columns in one piece of a sum over rows.
inline constexpr int64_t kColumnsPerTask = 256;

// Calls f(begin, end) for the pieces of [0, count) of `size` each, in parallel.
template <class F>
void ParallelChunks(const Parallel& parallel, int64_t count, int64_t size, F&& f) {
  ParallelFor(parallel, (count + size - 1) / size, [&](int64_t chunk, int) {
    const int64_t begin = chunk * size;
    f(begin, begin + size < count ? begin + size : count);
  });
}

// Rows of `width` elements in one piece.
inline int64_t ChunkRows(int64_t width) {
  return width >= kChunkElements || width <= 0 ? 1 : kChunkElements / width;
}

}  // namespace permafrost::kernels::cpu

#endif  // PERMAFROST_KERNELS_CPU_CHUNKS_H_
