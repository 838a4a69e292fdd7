// What the tests of the small kernels share: guarded buffers, seeded random data, comparison with
// an f64 oracle under a bound per element, gradient checks, a loop over SIMD levels.
#ifndef PERMAFROST_TESTS_KERNELS_KERNEL_TEST_UTIL_H_
#define PERMAFROST_TESTS_KERNELS_KERNEL_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/simd.h"
#include "kernels/types.h"

namespace permafrost::kernels {

// One unit in the last place of an f32 in [1, 2). A rounding step errs by half of it at most.
inline constexpr double kUlp = 1.1920928955078125e-7;

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Lengths around the vector widths (4, 8, 16), their multiples and the internal chunks.
inline const std::vector<int64_t>& EdgeLengths() {
  static const auto* const lengths = new std::vector<int64_t>{
      1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129, 1023, 1025};
  return *lengths;
}

// `count` values at `misalignment` elements behind a 64-byte boundary (as good as vectors allow),
// with NaN in front and behind: a kernel that reads there shows it, one that writes there is caught
// by Intact().
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count, int misalignment = 0)
      : count_(count), bytes_(static_cast<size_t>((count + 2 * kGuard + 64) * sizeof(T)), 0xff) {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data()) + kGuard * sizeof(T);
    const uintptr_t aligned = (address + 63) / 64 * 64 + misalignment * sizeof(T);
    data_ = reinterpret_cast<T*>(bytes_.data() +
                                 (aligned - reinterpret_cast<uintptr_t>(bytes_.data())));
  }
  Guarded(const std::vector<T>& values, int misalignment)
      : Guarded(static_cast<int64_t>(values.size()), misalignment) {
    if (count_ > 0) std::memcpy(data_, values.data(), values.size() * sizeof(T));
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return data_; }
  std::vector<T> values() const { return std::vector<T>(data_, data_ + count_); }
  // Whether every byte around the values is as it was.
  bool Intact() const {
    const auto* const begin = reinterpret_cast<const uint8_t*>(data_);
    const uint8_t* const end = begin + static_cast<size_t>(count_) * sizeof(T);
    for (const uint8_t& byte : bytes_) {
      if ((&byte < begin || &byte >= end) && byte != 0xff) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kGuard = 32;
  int64_t count_;
  std::vector<uint8_t> bytes_;
  T* data_;
};

inline std::vector<float> RandomFloats(int64_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

inline std::vector<double> Doubles(const std::vector<float>& values) {
  return std::vector<double>(values.begin(), values.end());
}

// Every |actual - expected| must be within bound(i); reports the worst element.
template <class Bound>
void ExpectWithin(const std::vector<float>& actual, const std::vector<double>& expected,
                  Bound bound, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double worst = 0;
  size_t at = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(static_cast<double>(actual[i]) - expected[i]);
    const double ratio = std::isnan(error) ? 1e300 : error == 0 ? 0 : error / bound(i);
    if (ratio > worst) {
      worst = ratio;
      at = i;
    }
  }
  EXPECT_LE(worst, 1.0) << what << ", level " << cpu::CurrentSimdLevel() << ": element " << at
                        << " is " << actual[at] << ", expected " << expected[at] << " within "
                        << bound(at);
}

inline void ExpectSameBits(const std::vector<float>& a, const std::vector<float>& b,
                           const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); ++i) {
    uint32_t x, y;
    std::memcpy(&x, &a[i], 4);
    std::memcpy(&y, &b[i], 4);
    ASSERT_EQ(x, y) << what << ", level " << cpu::CurrentSimdLevel() << ": element " << i << " is "
                    << a[i] << " and " << b[i];
  }
}

// Runs f at every SIMD level of this CPU, then goes back to the level there was.
template <class F>
void ForEachSimdLevel(F f) {
  const std::string before = cpu::CurrentSimdLevel();
  for (const std::string& level : cpu::AvailableSimdLevels()) {
    SCOPED_TRACE("level " + level);
    ASSERT_TRUE(cpu::SetSimdLevel(level));
    f();
  }
  ASSERT_TRUE(cpu::SetSimdLevel(before));
}

// Compares `gradient` with central differences of loss(), a function of *x, in f64. The error of a
// difference is h^2 f''' / 6 plus the rounding of the loss over h.
template <class Loss>
void ExpectGradient(Loss loss, std::vector<double>* x, const std::vector<double>& gradient,
                    const std::string& what) {
  ASSERT_EQ(x->size(), gradient.size());
  double norm = 0;
  for (double g : gradient) norm += g * g;
  const double h = 1e-5;
  for (size_t i = 0; i < x->size(); ++i) {
    const double kept = (*x)[i];
    (*x)[i] = kept + h;
    const double above = loss();
    (*x)[i] = kept - h;
    const double below = loss();
    (*x)[i] = kept;
    const double rounding = 1e-15 * (std::abs(above) + std::abs(below) + 10.0) / h;
    EXPECT_NEAR(gradient[i], (above - below) / (2 * h),
                100 * h * h * (1 + std::sqrt(norm)) + rounding)
        << what << " " << i;
  }
}

inline double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace permafrost::kernels

#endif  // PERMAFROST_TESTS_KERNELS_KERNEL_TEST_UTIL_H_
