// What the tests of matrix products share: guarded matrices and memory, the error bound, SIMD
// levels.
//
// Bounds: a sum of n products in f32, in whatever order, is within (n + 4) eps sum |a b| of the
// exact value (alpha, bias and the accumulated c are among the terms; n more eps for a level
// without fused multiply-adds, whose products round too). Both sides round bf16 operands alike, so
// no bf16 eps appears.
#ifndef PERMAFROST_TESTS_KERNELS_GEMM_TEST_UTIL_H_
#define PERMAFROST_TESTS_KERNELS_GEMM_TEST_UTIL_H_

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/gemm.h"
#include "kernels/simd.h"

namespace permafrost::kernels {

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kSentinel = -12345.5f;

// A [rows, cols] matrix inside NaN: wide stride, misaligned start, nothing valid around it.
struct Matrix {
  Matrix(int64_t rows, int64_t cols, uint32_t seed, float fill = kNaN)
      : rows(rows),
        cols(cols),
        stride(cols + 3),
        storage(static_cast<size_t>(rows * stride + 2), fill) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) at(r, c) = normal(random);
    }
  }
  float* data() { return storage.data() + 1; }
  const float* data() const { return storage.data() + 1; }
  float& at(int64_t r, int64_t c) { return data()[r * stride + c]; }
  float at(int64_t r, int64_t c) const { return data()[r * stride + c]; }
  int64_t rows, cols, stride;
  std::vector<float> storage;
};

// An output: sentinels around it, and NaN inside when it is to be overwritten.
inline Matrix Output(int64_t rows, int64_t cols, Write write) {
  Matrix m(rows, cols, 99, kSentinel);
  if (write == Write::kOverwrite) {
    for (int64_t r = 0; r < rows; ++r) std::fill(&m.at(r, 0), &m.at(r, 0) + cols, kNaN);
  }
  return m;
}

inline void ExpectSentinels(const Matrix& m) {
  for (size_t i = 0; i < m.storage.size(); ++i) {
    const int64_t at = static_cast<int64_t>(i) - 1;
    const bool inside = at >= 0 && at / m.stride < m.rows && at % m.stride < m.cols;
    if (!inside) {
      ASSERT_EQ(m.storage[i], kSentinel) << "behind the output, at " << at;
    }
  }
}

// 64-byte aligned memory with a canary behind it.
class Aligned {
 public:
  explicit Aligned(int64_t bytes)
      : bytes_(bytes), storage_(static_cast<size_t>(bytes) + 128, 0x5a) {}
  void* get() {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(storage_.data()) + 63) / 64 * 64);
  }
  bool Intact() {
    const unsigned char* end = static_cast<unsigned char*>(get()) + bytes_;
    while (end < storage_.data() + storage_.size()) {
      if (*end++ != 0x5a) return false;
    }
    return true;
  }

 private:
  int64_t bytes_;
  std::vector<unsigned char> storage_;
};

// Compares with `exact` [rows, cols] under the bound of the file's head; `terms` are sum |a b|.
inline void ExpectClose(const Matrix& actual, const std::vector<double>& exact,
                        const std::vector<double>& terms, int64_t steps) {
  for (int64_t r = 0; r < actual.rows; ++r) {
    for (int64_t c = 0; c < actual.cols; ++c) {
      const size_t i = static_cast<size_t>(r * actual.cols + c);
      const double bound = static_cast<double>(2 * steps + 4) * 0x1p-24 * terms[i] + 1e-37;
      ASSERT_LE(std::abs(actual.at(r, c) - exact[i]), bound)
          << "row " << r << " of " << actual.rows << ", column " << c << " of " << actual.cols
          << ": " << actual.at(r, c) << ", expected " << exact[i] << ", level "
          << cpu::CurrentSimdLevel();
    }
  }
}

// Runs each test at one SIMD level.
class GemmTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    before_ = cpu::CurrentSimdLevel();
    ASSERT_TRUE(cpu::SetSimdLevel(GetParam()));
  }
  void TearDown() override { cpu::SetSimdLevel(before_); }

 private:
  std::string before_;
};
}  // namespace permafrost::kernels

#endif  // PERMAFROST_TESTS_KERNELS_GEMM_TEST_UTIL_H_
