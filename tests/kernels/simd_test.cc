#include "kernels/simd.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/gemm.h"
#include "kernels/probe.h"

namespace permafrost::kernels::cpu {
namespace {

TEST(Simd, LevelsAreDistinctAndEndWithThePortableOne) {
  const std::vector<std::string> levels = AvailableSimdLevels();
  ASSERT_FALSE(levels.empty());
  EXPECT_EQ(levels.back(), "emu128");
  for (size_t i = 0; i < levels.size(); ++i) {
    for (size_t j = i + 1; j < levels.size(); ++j) EXPECT_NE(levels[i], levels[j]);
  }
}

TEST(Simd, SetLevelTakesEffect) {
  const std::string before = CurrentSimdLevel();
  for (const std::string& level : AvailableSimdLevels()) {
    EXPECT_TRUE(SetSimdLevel(level));
    EXPECT_EQ(CurrentSimdLevel(), level);
  }
  EXPECT_TRUE(SetSimdLevel(before));
}

TEST(Simd, UnknownLevelChangesNothing) {
  const std::string before = CurrentSimdLevel();
  EXPECT_FALSE(SetSimdLevel("avx9000"));
  EXPECT_FALSE(SetSimdLevel(""));
  EXPECT_EQ(CurrentSimdLevel(), before);
}

// SSE4 has no fused multiply-add and AVX2 has: a product whose rounding differs shows that the
// level really switches code, not only its name.
TEST(Simd, LevelsRunDifferentCode) {
  const std::string before = CurrentSimdLevel();
  // 1 - (1 + e)(1 - e) = e^2, lost when the product is rounded before the subtraction.
  const float e = 0x1p-13f;
  const float a[2] = {1.0f, 1.0f + e}, b[2] = {-1.0f, 1.0f - e};
  float c = 0;
  for (const std::string& level : AvailableSimdLevels()) {
    ASSERT_TRUE(SetSimdLevel(level));
    std::vector<char> workspace(static_cast<size_t>(MatMulWorkspace(9, 9, 2, 1)) + 64);
    std::vector<float> rows(18), cols(18), out(81);
    for (int i = 0; i < 9; ++i) {
      std::memcpy(&rows[2 * i], a, sizeof(a));
      std::memcpy(&cols[2 * i], b, sizeof(b));
    }
    MatMul({.a = rows.data(),
            .a_stride = 2,
            .transpose_a = false,
            .b = cols.data(),
            .b_stride = 2,
            .transpose_b = true,
            .c = out.data(),
            .c_stride = 9,
            .m = 9,
            .n = 9,
            .k = 2,
            .alpha = 1.0f,
            .write = Write::kOverwrite,
            .workspace = workspace.data()},
           Parallel{});
    c = out[80];
    if (level == "sse4" || level == "emu128") {
      EXPECT_EQ(c, 0.0f) << level;
    } else if (level.substr(0, 3) == "avx") {
      EXPECT_EQ(c, -e * e) << level;
    }
  }
  EXPECT_TRUE(SetSimdLevel(before));
}

TEST(Simd, ProbesGiveARate) {
  EXPECT_GT(FmaProbeGflops(0.001), 0.1);
  EXPECT_GT(Bf16DotProbeGflops(0.001), 0.1);
}

}  // namespace
}  // namespace permafrost::kernels::cpu
