#include "engine/thread_pool.h"

#include "engine/check.h"

namespace permafrost {
namespace {

// Polls before a waiting thread sleeps: kernels follow each other within microseconds.
constexpr int kSpins = 4000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  PERMAFROST_CHECK(threads >= 1) << "ThreadPool: " << threads << " threads";
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { Work(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1);
  }
  start_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

kernels::Parallel ThreadPool::parallel() {
  return {this, threads(), [](void* pool, int64_t count, Task task, void* context) {
            static_cast<ThreadPool*>(pool)->Run(count, task, context);
          }};
}

void ThreadPool::Run(int64_t count, Task task, void* context) {
  if (workers_.empty() || count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(context, i, 0);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    count_ = count;
    task_ = task;
    context_ = context;
    next_ = 0;
    pending_ = static_cast<int>(workers_.size());
    generation_.fetch_add(1, std::memory_order_release);
  }
  start_.notify_all();
  RunPieces(0);
  for (int spin = 0; pending_.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::RunPieces(int worker) {
  for (int64_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) {
    task_(context_, i, worker);
  }
}

void ThreadPool::Work(int worker) {
  uint64_t seen = 0;
  while (true) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen;
         ++spin) {
      Pause();
    }
    {
      std::unique_lock<std::mutex> lock(mutex_);
      start_.wait(lock, [&] { return generation_.load() != seen; });
      seen = generation_.load();
      if (stop_) return;
    }
    RunPieces(worker);
    pending_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace permafrost
