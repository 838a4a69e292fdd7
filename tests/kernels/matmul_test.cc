// Plain products at every SIMD level against sums in f64.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/gemm.h"
#include "kernels/reference/gemm.h"
#include "kernels/simd.h"
#include "tests/kernels/gemm_test_util.h"
#include "tests/kernels/parallel_for_tests.h"

namespace permafrost::kernels {
namespace {

using MatMulTest = GemmTest;
INSTANTIATE_TEST_SUITE_P(Levels, MatMulTest, testing::ValuesIn(cpu::AvailableSimdLevels()),
                         [](const auto& info) { return info.param; });

void CheckMatMul(int64_t m, int64_t n, int64_t k, bool ta, bool tb, Write write, float alpha,
                 uint32_t seed) {
  SCOPED_TRACE(testing::Message() << m << "x" << n << "x" << k << " transpose a " << ta << " b "
                                  << tb);
  const Matrix a(ta ? k : m, ta ? m : k, seed), b(tb ? n : k, tb ? k : n, seed + 1);
  const Matrix c0 = Output(m, n, write);
  const bool add = write == Write::kAccumulate;
  std::vector<double> exact, terms;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, size = 0;
      for (int64_t p = 0; p < k; ++p) {
        const double term = static_cast<double>(ta ? a.at(p, i) : a.at(i, p)) *
                            static_cast<double>(tb ? b.at(j, p) : b.at(p, j));
        sum += term;
        size += std::abs(term);
      }
      exact.push_back(alpha * sum + (add ? c0.at(i, j) : 0.0));
      terms.push_back(std::abs(alpha) * size + (add ? std::abs(c0.at(i, j)) : 0.0));
    }
  }
  std::vector<float> bits;
  for (const int workers : {1, 2, 3}) {
    Matrix c = c0;
    Aligned workspace(cpu::MatMulWorkspace(m, n, k, workers));
    cpu::MatMul({.a = a.data(),
                 .a_stride = a.stride,
                 .transpose_a = ta,
                 .b = b.data(),
                 .b_stride = b.stride,
                 .transpose_b = tb,
                 .c = c.data(),
                 .c_stride = c.stride,
                 .m = m,
                 .n = n,
                 .k = k,
                 .alpha = alpha,
                 .write = write,
                 .workspace = workspace.get()},
                ThreadsForTests(workers));
    ASSERT_TRUE(workspace.Intact());
    if (workers > 1) {
      ASSERT_EQ(std::memcmp(c.storage.data(), bits.data(), bits.size() * 4), 0) << workers;
      continue;
    }
    bits = c.storage;
    ExpectSentinels(c);
    ExpectClose(c, exact, terms, k);
  }
}

TEST_P(MatMulTest, Edges) {
  uint32_t seed = 1000;
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const int64_t m : {1, 2, 7, 8, 16, 17, 49}) {
        for (const int64_t n : {1, 3, 7, 8, 9, 16, 17, 33, 47, 48, 49, 97}) {
          const int64_t k = std::vector<int64_t>{1, 2, 8, 15, 16, 33, 65}[seed % 7];
          const Write write = seed % 2 != 0 ? Write::kAccumulate : Write::kOverwrite;
          CheckMatMul(m, n, k, ta, tb, write, seed % 3 == 0 ? 1.0f : -0.3f, seed);
          ++seed;
        }
      }
    }
  }
}

TEST_P(MatMulTest, SeveralBlocks) {
  CheckMatMul(60, 8, 1701, true, false, Write::kOverwrite, 1.0f, 2000);    // dB of LoRA
  CheckMatMul(8, 60, 1701, true, false, Write::kAccumulate, 1.0f, 2001);   // dA of LoRA
  CheckMatMul(1030, 8, 60, false, true, Write::kOverwrite, 2.0f, 2002);    // x A^T
  CheckMatMul(1030, 60, 8, false, true, Write::kAccumulate, 2.0f, 2003);   // s B^T
  CheckMatMul(530, 50, 900, true, false, Write::kAccumulate, 1.0f, 2004);  // dW
}

TEST_P(MatMulTest, Empty) {
  for (const bool ta : {false, true}) {
    CheckMatMul(0, 5, 3, ta, false, Write::kOverwrite, 1.0f, 3000);
    CheckMatMul(5, 0, 3, ta, false, Write::kOverwrite, 1.0f, 3001);
    CheckMatMul(5, 3, 0, ta, false, Write::kOverwrite, 1.0f, 3002);
    CheckMatMul(5, 60, 0, ta, true, Write::kOverwrite, 1.0f, 3003);
    CheckMatMul(60, 5, 0, ta, true, Write::kAccumulate, 1.0f, 3004);
  }
}

TEST(MatMulReference, ByHand) {
  const double a[4] = {1, 2, 3, 4}, b[4] = {5, 6, 7, 8};
  double c[4] = {1, 1, 1, 1};
  MatMulArgsOf<double> args{.a = a,
                            .a_stride = 2,
                            .transpose_a = true,
                            .b = b,
                            .b_stride = 2,
                            .transpose_b = false,
                            .c = c,
                            .c_stride = 2,
                            .m = 2,
                            .n = 2,
                            .k = 2,
                            .alpha = 2,
                            .write = Write::kAccumulate,
                            .workspace = nullptr};
  reference::MatMul(args);
  EXPECT_EQ(c[0], 1 + 2 * (1 * 5 + 3 * 7));
  EXPECT_EQ(c[1], 1 + 2 * (1 * 6 + 3 * 8));
  EXPECT_EQ(c[2], 1 + 2 * (2 * 5 + 4 * 7));
  EXPECT_EQ(c[3], 1 + 2 * (2 * 6 + 4 * 8));
}

}  // namespace
}  // namespace permafrost::kernels
