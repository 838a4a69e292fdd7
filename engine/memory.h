// Memory by purpose. Every tensor and weight is a block of one pool and carries a tag; live and
// peak bytes by tag are public. The pool keeps what it got from the system, so a steady training
// step neither allocates nor faults.
//
// Non-goals: returning memory to the system, device memory (a device gets a pool of its own).
#ifndef PERMAFROST_ENGINE_MEMORY_H_
#define PERMAFROST_ENGINE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

namespace permafrost {

enum class MemoryTag { kWeight, kActivation, kGradient, kOptimizer, kWorkspace };
inline constexpr int kMemoryTags = 5;
const char* MemoryTagName(MemoryTag tag);

struct MemoryCounter {
  int64_t live = 0;  // bytes
  int64_t peak = 0;  // largest `live` since the start or ResetPeakMemory
};
MemoryCounter MemoryOf(MemoryTag tag);
void ResetPeakMemory();

// Bytes that the pool has taken from the system, and how often it asked.
struct PoolStatistics {
  int64_t bytes = 0;
  int64_t requests = 0;
};
PoolStatistics MemoryPoolStatistics();

// A block of memory, 64-byte aligned, returned to the pool when destroyed. Contents are undefined.
class Storage {
 public:
  Storage(size_t bytes, MemoryTag tag);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  MemoryTag tag() const { return tag_; }
  // Counts these bytes under another purpose from now on.
  void Retag(MemoryTag tag);
  // Names the contents: never reused by another storage, and new after Renew.
  uint64_t id() const { return id_; }
  // The contents are about to be overwritten: copies made under the old id no longer stand for
  // them.
  void Renew();

 private:
  std::byte* data_;
  size_t bytes_;
  MemoryTag tag_;
  uint64_t id_;
};

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_MEMORY_H_
