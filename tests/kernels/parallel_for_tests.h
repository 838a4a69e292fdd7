// A Parallel of plain threads, for kernel tests: as many workers as asked for, whatever the machine
// has, handing out indices in whatever order the scheduler likes.
#ifndef PERMAFROST_TESTS_KERNELS_PARALLEL_FOR_TESTS_H_
#define PERMAFROST_TESTS_KERNELS_PARALLEL_FOR_TESTS_H_

#include <atomic>
#include <thread>
#include <vector>

#include "kernels/types.h"

namespace permafrost::kernels {

inline Parallel ThreadsForTests(int workers) {
  Parallel parallel;
  parallel.workers = workers;
  // `pool` carries the worker count; nothing outlives a call.
  parallel.pool = reinterpret_cast<void*>(static_cast<intptr_t>(workers));
  parallel.run = [](void* pool, int64_t count, void (*task)(void*, int64_t, int), void* context) {
    const int threads = static_cast<int>(reinterpret_cast<intptr_t>(pool));
    std::atomic<int64_t> next{0};
    const auto work = [&](int worker) {
      for (int64_t i = next++; i < count; i = next++) task(context, i, worker);
    };
    std::vector<std::thread> others;
    for (int worker = 1; worker < threads; ++worker) others.emplace_back(work, worker);
    work(0);
    for (std::thread& thread : others) thread.join();
  };
  return parallel;
}

}  // namespace permafrost::kernels

#endif  // PERMAFROST_TESTS_KERNELS_PARALLEL_FOR_TESTS_H_
