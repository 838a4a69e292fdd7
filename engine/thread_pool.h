// A fixed set of threads that run the pieces of one kernel at a time. Which thread runs a piece is
// not fixed; which pieces exist is, so results never depend on the number of threads.
#ifndef PERMAFROST_ENGINE_THREAD_POOL_H_
#define PERMAFROST_ENGINE_THREAD_POOL_H_

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/types.h"

namespace permafrost {

class ThreadPool {
 public:
  // `threads` >= 1, the caller's included.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // The handle that kernels take. Only one thread may use it at a time, and tasks must not nest.
  kernels::Parallel parallel();

 private:
  using Task = void (*)(void* context, int64_t index, int worker);
  void Run(int64_t count, Task task, void* context);
  void Work(int worker);
  void RunPieces(int worker);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_;
  // The job. `generation_` changes when a new one is posted; `pending_` counts workers still in it.
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> pending_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<bool> stop_{false};
  int64_t count_ = 0;
  Task task_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_THREAD_POOL_H_
