// A counter-based random stream (Philox): the same seed and stream give the same numbers on every
// machine, and its whole state is one counter, which a checkpoint can hold.
#ifndef PERMAFROST_ENGINE_RANDOM_H_
#define PERMAFROST_ENGINE_RANDOM_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace permafrost {

class Random {
 public:
  explicit Random(uint64_t seed, uint32_t stream = 0) : seed_(seed), stream_(stream) {}

  uint32_t Word();
  double Uniform();              // [0, 1), 32 bits
  double Normal();               // Box-Muller
  int64_t Below(int64_t limit);  // uniform on [0, limit), limit >= 1

  template <class T>
  void Shuffle(std::vector<T>& values) {  // Fisher-Yates
    for (size_t i = values.size(); i > 1; --i) {
      std::swap(values[i - 1], values[static_cast<size_t>(Below(static_cast<int64_t>(i)))]);
    }
  }

 private:
  uint64_t seed_;
  uint32_t stream_;
  uint64_t counter_ = 0;
};

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_RANDOM_H_
