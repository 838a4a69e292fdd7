#include "engine/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>

#include "engine/check.h"

#if defined(__SANITIZE_ADDRESS__)
#define PERMAFROST_PLAIN_ALLOCATION 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PERMAFROST_PLAIN_ALLOCATION 1
#endif
#endif

namespace permafrost {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSlab = size_t{64} << 20;
constexpr size_t kHugePage = size_t{2} << 20;

size_t RoundUp(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Best fit over slabs mapped from the system; neighbouring free blocks are merged. First-fit order
// by (size, address) makes the sequence of addresses a function of the sequence of requests.
class Pool {
 public:
  std::byte* Allocate(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto fit = free_.lower_bound({bytes, nullptr});
    if (fit == free_.end()) {
      AddSlab(bytes);
      fit = free_.lower_bound({bytes, nullptr});
    }
    const auto [size, address] = *fit;
    free_.erase(fit);
    Block& block = blocks_.at(address);
    block.free = false;
    if (size > bytes) {
      block.size = bytes;
      AddFree(address + bytes, size - bytes, block.slab);
    }
    return address;
  }

  void Free(std::byte* address) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = blocks_.find(address);
    it->second.free = true;
    if (auto next = std::next(it); next != blocks_.end() && Mergeable(*it, *next)) {
      free_.erase({next->second.size, next->first});
      it->second.size += next->second.size;
      blocks_.erase(next);
    }
    if (it != blocks_.begin()) {
      if (auto previous = std::prev(it); Mergeable(*previous, *it)) {
        free_.erase({previous->second.size, previous->first});
        previous->second.size += it->second.size;
        blocks_.erase(it);
        it = previous;
      }
    }
    free_.insert({it->second.size, it->first});
  }

  PoolStatistics statistics() {
    std::lock_guard<std::mutex> lock(mutex_);
    return statistics_;
  }

 private:
  struct Block {
    size_t size;
    bool free;
    int64_t slab;  // blocks of different slabs never merge
  };

  static bool Mergeable(const std::pair<std::byte* const, Block>& a,
                        const std::pair<std::byte* const, Block>& b) {
    return a.second.free && b.second.free && a.second.slab == b.second.slab &&
           a.first + a.second.size == b.first;
  }

  void AddFree(std::byte* address, size_t size, int64_t slab) {
    blocks_[address] = {size, true, slab};
    free_.insert({size, address});
  }

  void AddSlab(size_t bytes) {
    const size_t size = RoundUp(std::max(bytes, kSlab), kHugePage);
    // Room to start at a huge-page boundary.
    void* raw =
        mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    PERMAFROST_CHECK(raw != MAP_FAILED) << "out of memory: the system refused " << size << " bytes";
    const auto address = reinterpret_cast<uintptr_t>(raw);
    std::byte* start = static_cast<std::byte*>(raw) + (RoundUp(address, kHugePage) - address);
    madvise(start, size, MADV_HUGEPAGE);
    ++statistics_.requests;
    statistics_.bytes += static_cast<int64_t>(size);
    AddFree(start, size, statistics_.requests);
  }

  std::mutex mutex_;
  std::map<std::byte*, Block> blocks_;
  std::set<std::pair<size_t, std::byte*>> free_;
  PoolStatistics statistics_;
};

// Never destroyed: storages of static lifetime may outlive any order of destruction.
Pool& ThePool() {
  static Pool* pool = new Pool;
  return *pool;
}

struct AtomicCounter {
  std::atomic<int64_t> live{0};
  std::atomic<int64_t> peak{0};
};

AtomicCounter& CounterOf(MemoryTag tag) {
  static std::array<AtomicCounter, kMemoryTags> counters;
  return counters[static_cast<size_t>(tag)];
}

void Count(MemoryTag tag, int64_t bytes) {
  AtomicCounter& counter = CounterOf(tag);
  const int64_t live = counter.live.fetch_add(bytes) + bytes;
  int64_t peak = counter.peak.load();
  while (live > peak && !counter.peak.compare_exchange_weak(peak, live)) {
  }
}

}  // namespace

const char* MemoryTagName(MemoryTag tag) {
  switch (tag) {
    case MemoryTag::kWeight:
      return "weight";
    case MemoryTag::kActivation:
      return "activation";
    case MemoryTag::kGradient:
      return "gradient";
    case MemoryTag::kOptimizer:
      return "optimizer";
    case MemoryTag::kWorkspace:
      return "workspace";
  }
  return "";
}

MemoryCounter MemoryOf(MemoryTag tag) {
  return {CounterOf(tag).live.load(), CounterOf(tag).peak.load()};
}

void ResetPeakMemory() {
  for (int i = 0; i < kMemoryTags; ++i) {
    AtomicCounter& counter = CounterOf(static_cast<MemoryTag>(i));
    counter.peak.store(counter.live.load());
  }
}

PoolStatistics MemoryPoolStatistics() { return ThePool().statistics(); }

void Storage::Renew() {
  static std::atomic<uint64_t> next_id{1};
  id_ = next_id.fetch_add(1);
}

void Storage::Retag(MemoryTag tag) {
  Count(tag_, -static_cast<int64_t>(bytes_));
  tag_ = tag;
  Count(tag_, static_cast<int64_t>(bytes_));
}

Storage::Storage(size_t bytes, MemoryTag tag) : bytes_(bytes), tag_(tag) {
  Renew();
  const size_t rounded = RoundUp(std::max<size_t>(bytes, 1), kAlignment);
#ifdef PERMAFROST_PLAIN_ALLOCATION  // so that the sanitizer sees every overrun
  data_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
#else
  data_ = ThePool().Allocate(rounded);
#endif
  Count(tag_, static_cast<int64_t>(bytes_));
}

Storage::~Storage() {
  Count(tag_, -static_cast<int64_t>(bytes_));
#ifdef PERMAFROST_PLAIN_ALLOCATION
  std::free(data_);
#else
  ThePool().Free(data_);
#endif
}

}  // namespace permafrost
