#include "kernels/dropout.h"

#include "kernels/reference/dropout.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/kernels/parallel_for_tests.h"

namespace permafrost::kernels {
namespace {

// Known answers of Random123 (Salmon et al. 2011), philox4x32-10.
TEST(DropoutTest, PhiloxKnownAnswers) {
  const PhiloxWords zero = Philox(0, 0, 0, 0, 0);
  EXPECT_EQ(zero.word[0], 0x6627e8d5u);
  EXPECT_EQ(zero.word[1], 0xe169c58du);
  EXPECT_EQ(zero.word[2], 0xbc57ac4cu);
  EXPECT_EQ(zero.word[3], 0x9b00dbd8u);
  const uint32_t ones = 0xffffffffu;
  const PhiloxWords full = Philox(~uint64_t{0}, ones, ones, ones, ones);
  EXPECT_EQ(full.word[0], 0x408f276du);
  EXPECT_EQ(full.word[1], 0x41c83b0eu);
  EXPECT_EQ(full.word[2], 0xa20bc7c6u);
  EXPECT_EQ(full.word[3], 0x6d5451fdu);
}

TEST(DropoutTest, SameBitsAsReference) {
  ForEachSimdLevel([&] {
    for (int64_t width : EdgeLengths()) {
      for (float rate : {0.0f, 0.1f, 0.5f, 0.99999994f}) {
        const int64_t rows = 3;
        const std::vector<float> values = RandomFloats(rows * width, 1);
        Guarded<float> x(values, 1), y(rows * width, 3);
        std::vector<float> want(values.size());
        DropoutArgs args{values.data(), want.data(),         rows,        width, 0x7ffffffe,
                         rate,          0xfedcba9876543210u, 0xffffffffu, 77};
        reference::Dropout(args);
        args.x = x.data();
        args.y = y.data();
        cpu::Dropout(args, {});
        ExpectSameBits(y.values(), want, "dropout");
        args.y = x.data();
        cpu::Dropout(args, {});
        ExpectSameBits(x.values(), want, "in place");
        ASSERT_TRUE(x.Intact() && y.Intact());
      }
    }
  });
}

// What is dropped becomes 0 even if it was NaN; rate 0 keeps every bit.
TEST(DropoutTest, DroppedIsZero) {
  ForEachSimdLevel([&] {
    const std::vector<float> x(1000, kNaN);
    std::vector<float> y(1000);
    cpu::Dropout({x.data(), y.data(), 1, 1000, 0, 0.5f, 1, 2, 3}, {});
    int zeros = 0;
    for (float v : y) {
      EXPECT_TRUE(v == 0.0f || std::isnan(v));
      zeros += v == 0.0f;
    }
    EXPECT_NEAR(zeros, 500, 5 * std::sqrt(250.0));
    const std::vector<float> values = RandomFloats(1000, 4);
    cpu::Dropout({values.data(), y.data(), 1, 1000, 0, 0.0f, 1, 2, 3}, {});
    ExpectSameBits(y, values, "rate 0");
  });
}

// The share of kept elements within five standard deviations, and other masks for another seed,
// step, place or row.
TEST(DropoutTest, RateAndIndependence) {
  const int64_t rows = 100, width = 1000;
  const std::vector<float> ones(static_cast<size_t>(rows * width), 1.0f);
  const DropoutArgs base{ones.data(), nullptr, rows, width, 5, 0.1f, 42, 7, 3};
  const auto mask = [&](DropoutArgs args) {
    std::vector<float> y(ones.size());
    args.y = y.data();
    cpu::Dropout(args, {});
    return y;
  };
  const std::vector<float> first = mask(base);
  double kept = 0;
  for (float v : first) {
    EXPECT_TRUE(v == 0.0f || v == 1.0f / 0.9f);
    kept += v != 0.0f;
  }
  const double n = static_cast<double>(rows * width);
  EXPECT_NEAR(kept, 0.9 * n, 5 * std::sqrt(n * 0.09));
  for (int changed = 0; changed < 4; ++changed) {
    DropoutArgs args = base;
    if (changed == 0) args.seed = 43;
    if (changed == 1) args.step = 8;
    if (changed == 2) args.place = 4;
    if (changed == 3) args.row_begin = 6;
    const std::vector<float> other = mask(args);
    double differ = 0;
    for (size_t i = 0; i < other.size(); ++i) differ += other[i] != first[i];
    EXPECT_NEAR(differ, 2 * 0.09 * n, 5 * std::sqrt(0.18 * n)) << changed;
    if (changed == 3) {
      // Row i of a call that begins one row later is row i + 1 of this one.
      for (size_t i = 0; i + width < other.size(); ++i) ASSERT_EQ(other[i], first[i + width]);
    }
  }
}

TEST(DropoutTest, SameBitsForAnyNumberOfWorkers) {
  const int64_t rows = 301, width = 130;
  const std::vector<float> x = RandomFloats(rows * width, 1);
  std::vector<float> one(x.size()), other(x.size());
  cpu::Dropout({x.data(), one.data(), rows, width, 0, 0.1f, 9, 1, 2}, {});
  for (int workers : {2, 3}) {
    cpu::Dropout({x.data(), other.data(), rows, width, 0, 0.1f, 9, 1, 2}, ThreadsForTests(workers));
    ExpectSameBits(one, other, "dropout");
  }
}

}  // namespace
}  // namespace permafrost::kernels
