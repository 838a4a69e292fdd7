#include "kernels/elementwise.h"

#include "kernels/norm.h"
#include "kernels/reference/elementwise.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/kernels/parallel_for_tests.h"

namespace permafrost::kernels {
namespace {

TEST(ElementwiseTest, Axpby) {
  ForEachSimdLevel([&] {
    for (int64_t n : EdgeLengths()) {
      const std::vector<float> x_values = RandomFloats(n, 1), y_values = RandomFloats(n, 2);
      for (float alpha : {0.0f, 0.7f}) {
        for (float beta : {0.0f, 1.0f, -0.3f}) {
          Guarded<float> x(x_values, 1);
          // With beta 0 y holds NaN, with alpha 0 x is null: neither may be read.
          Guarded<float> y(beta == 0.0f ? std::vector<float>(y_values.size(), kNaN) : y_values, 3);
          cpu::Axpby({alpha, alpha == 0.0f ? nullptr : x.data(), beta, y.data(), n}, {});
          std::vector<double> want = Doubles(y_values);
          const std::vector<double> x64 = Doubles(x_values);
          reference::Axpby<double>({alpha, x64.data(), beta, want.data(), n});
          ExpectWithin(
              y.values(), want,
              [&](size_t i) {
                return kUlp * (std::abs(beta * y_values[i]) + std::abs(want[i])) + 1e-300;
              },
              "axpby");
          ASSERT_TRUE(y.Intact());
        }
      }
    }
  });
}

TEST(ElementwiseTest, Multiply) {
  ForEachSimdLevel([&] {
    for (int64_t n : EdgeLengths()) {
      const std::vector<float> a_values = RandomFloats(n, 1), b_values = RandomFloats(n, 2);
      const std::vector<float> z_values = RandomFloats(n, 3);
      const std::vector<double> a64 = Doubles(a_values), b64 = Doubles(b_values);
      for (Write write : {Write::kOverwrite, Write::kAccumulate}) {
        Guarded<float> a(a_values, 1), b(b_values, 2);
        Guarded<float> z(
            write == Write::kOverwrite ? std::vector<float>(z_values.size(), kNaN) : z_values, 3);
        cpu::Multiply({a.data(), b.data(), z.data(), write, n}, {});
        std::vector<double> want = Doubles(z_values);
        reference::Multiply<double>({a64.data(), b64.data(), want.data(), write, n});
        ExpectWithin(
            z.values(), want,
            [&](size_t i) { return kUlp * (std::abs(a64[i] * b64[i]) + std::abs(want[i])); },
            "multiply");
        ASSERT_TRUE(z.Intact());
      }
    }
  });
}

TEST(ElementwiseTest, ScaleColumnsAndColumnDot) {
  ForEachSimdLevel([&] {
    for (int64_t width : EdgeLengths()) {
      for (int64_t rows : {1, 3, 130}) {
        const std::vector<float> x = RandomFloats(rows * width, 1),
                                 y = RandomFloats(rows * width, 2);
        const std::vector<float> scale = RandomFloats(width, 3), out = RandomFloats(width, 4);
        std::vector<float> want(x.size());
        Guarded<float> got(std::vector<float>(x.size(), kNaN), 1), from(x, 2), by(scale, 3);
        reference::ScaleColumns<float>({x.data(), scale.data(), want.data(), rows, width});
        cpu::ScaleColumns({from.data(), by.data(), got.data(), rows, width}, {});
        ExpectSameBits(got.values(), want, "scale columns");
        ASSERT_TRUE(got.Intact());
        cpu::ScaleColumns({from.data(), by.data(), from.data(), rows, width}, {});
        ExpectSameBits(from.values(), want, "scale columns in place");

        Guarded<float> sums(out, 1), a(x, 3), b(y, 2);
        std::vector<float> workspace(static_cast<size_t>(ColumnSumWorkspace(rows, width)), kNaN);
        cpu::ColumnDot({a.data(), b.data(), sums.data(), rows, width, workspace.data()}, {});
        const std::vector<double> x64 = Doubles(x), y64 = Doubles(y);
        std::vector<double> exact = Doubles(out), size(exact.size(), 0.0);
        reference::ColumnDot<double>({x64.data(), y64.data(), exact.data(), rows, width, nullptr});
        for (size_t i = 0; i < x.size(); ++i) size[i % exact.size()] += std::abs(x64[i] * y64[i]);
        ExpectWithin(
            sums.values(), exact,
            [&](size_t c) {
              return kUlp * static_cast<double>(rows + 2) * (size[c] + std::abs(exact[c]));
            },
            "column dot");
        ASSERT_TRUE(sums.Intact());
      }
    }
  });
}

TEST(ElementwiseTest, CopyRowsAndAddBias) {
  ForEachSimdLevel([&] {
    for (int64_t width : EdgeLengths()) {
      const int64_t rows = 3, x_stride = width + 2, y_stride = width + 5;
      const std::vector<float> x = RandomFloats(rows * x_stride, 1), bias = RandomFloats(width, 2);
      const std::vector<float> y = RandomFloats(rows * y_stride, 3);
      for (Write write : {Write::kOverwrite, Write::kAccumulate}) {
        std::vector<float> want = y;
        Guarded<float> got(y, 1), from(x, 2);
        reference::CopyRows<float>({x.data(), x_stride, want.data(), y_stride, rows, width, write});
        cpu::CopyRows({from.data(), x_stride, got.data(), y_stride, rows, width, write}, {});
        ExpectSameBits(got.values(), want, "copy");  // also the columns between the rows
        ASSERT_TRUE(got.Intact());
      }
      std::vector<float> want = y;
      Guarded<float> got(y, 3), from(bias, 1);
      reference::AddBias<float>({bias.data(), want.data(), y_stride, rows, width});
      cpu::AddBias({from.data(), got.data(), y_stride, rows, width}, {});
      ExpectSameBits(got.values(), want, "bias");
      ASSERT_TRUE(got.Intact());
    }
  });
}

TEST(ElementwiseTest, ColumnSum) {
  static_assert(kReductionRows == 64, "ColumnSumWorkspace assumes it");
  ForEachSimdLevel([&] {
    for (int64_t rows : {1, 2, 63, 64, 65, 200}) {
      for (int64_t width : {1, 5, 16, 33, 300}) {
        const int64_t stride = width + 3;
        std::vector<float> values = RandomFloats(rows * stride, 1);
        for (int64_t i = 0; i < rows; ++i) values[i * stride + width] = kNaN;
        const std::vector<float> start = RandomFloats(width, 2);
        const std::vector<double> x64 = Doubles(values);
        std::vector<double> want = Doubles(start);
        reference::ColumnSum<double>({x64.data(), stride, want.data(), rows, width, nullptr});
        std::vector<float> bits;
        for (int workers : {1, 2, 3}) {
          Guarded<float> x(values, 1), out(start, 2), workspace(ColumnSumWorkspace(rows, width), 1);
          cpu::ColumnSum({x.data(), stride, out.data(), rows, width, workspace.data()},
                         ThreadsForTests(workers));
          ExpectWithin(
              out.values(), want,
              [&](size_t c) {
                double magnitude = std::abs(start[c]) + std::abs(want[c]);
                for (int64_t i = 0; i < rows; ++i) magnitude += std::abs(values[i * stride + c]);
                return kUlp * 0.5 * (64 + static_cast<double>(rows) / 64 + 2) * magnitude;
              },
              "column sum");
          ASSERT_TRUE(out.Intact() && workspace.Intact());
          if (workers == 1) bits = out.values();
          ExpectSameBits(out.values(), bits, "column sum by workers");
        }
      }
    }
  });
}

// Every pattern around ties, the largest finite value, infinities, NaN, denormals.
TEST(ElementwiseTest, BF16Conversion) {
  std::vector<float> values;
  for (uint32_t high = 0; high < 0x10000; high += 7) {
    for (uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const uint32_t bits = high << 16 | low;
      float value;
      std::memcpy(&value, &bits, 4);
      values.push_back(value);
    }
  }
  const int64_t n = static_cast<int64_t>(values.size());
  std::vector<BF16> want(values.size());
  std::vector<float> want_back(values.size());
  reference::ConvertToBF16({values.data(), want.data(), n});
  reference::ConvertFromBF16({want.data(), want_back.data(), n});
  // The definition itself, by hand: 1 + 2^-8 is a tie and goes to even, 1 + 3 * 2^-8 goes up.
  EXPECT_EQ(ToBF16(1.0f + 0.00390625f).bits, 0x3f80);
  EXPECT_EQ(ToBF16(1.0f + 3 * 0.00390625f).bits, 0x3f82);
  EXPECT_EQ(ToBF16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(ToFloat(ToBF16(kNaN))));
  ForEachSimdLevel([&] {
    std::vector<BF16> got(values.size());
    std::vector<float> back(values.size());
    cpu::ConvertToBF16({values.data(), got.data(), n}, ThreadsForTests(2));
    for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i].bits, want[i].bits) << values[i];
    cpu::ConvertFromBF16({got.data(), back.data(), n}, ThreadsForTests(3));
    ExpectSameBits(back, want_back, "from bf16");
    for (int64_t count : EdgeLengths()) {
      Guarded<BF16> small(count, 3);
      Guarded<float> wide(count, 1);
      cpu::ConvertToBF16({values.data() + 5, small.data(), count}, {});
      cpu::ConvertFromBF16({small.data(), wide.data(), count}, {});
      for (int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(small.data()[i].bits, want[static_cast<size_t>(i + 5)].bits);
      }
      ASSERT_TRUE(small.Intact() && wide.Intact());
    }
  });
}

TEST(ElementwiseTest, SumOfSquares) {
  ForEachSimdLevel([&] {
    for (int64_t n : {0, 1, 3, 17, 4095, 4096, 4097, 100003}) {
      const std::vector<float> values = RandomFloats(n, 1);
      Guarded<float> x(values, 1);
      const double want = reference::SumOfSquares(values.data(), n);
      // f64: the number of additions times half a unit.
      EXPECT_NEAR(cpu::SumOfSquares(x.data(), n), want, 1.2e-16 * (n + 8) * want);
    }
    const float huge[] = {1e30f, 1e30f};  // their squares overflow f32
    EXPECT_NEAR(cpu::SumOfSquares(huge, 2) / 2e60, 1.0, 1e-6);
  });
}

TEST(ElementwiseTest, AllFinite) {
  ForEachSimdLevel([&] {
    for (int64_t n : {1, 5, 16, 33, 4097, 9000}) {
      std::vector<float> values = RandomFloats(n, 1);
      values[0] = std::numeric_limits<float>::max();
      {
        Guarded<float> x(values, 1);
        EXPECT_TRUE(cpu::AllFinite(x.data(), n));
      }
      for (int64_t at : {int64_t{0}, n / 2, n - 1}) {
        for (float bad : {kNaN, -kNaN, std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
          std::vector<float> broken = values;
          broken[at] = bad;
          Guarded<float> x(broken, 3);
          EXPECT_FALSE(cpu::AllFinite(x.data(), n)) << n << " " << at;
        }
      }
    }
    EXPECT_TRUE(cpu::AllFinite(nullptr, 0));
  });
}

TEST(ElementwiseTest, SameBitsForAnyNumberOfWorkers) {
  const int64_t n = 50001;
  const std::vector<float> x = RandomFloats(n, 1), start = RandomFloats(n, 2);
  std::vector<float> one = start;
  cpu::Axpby({0.3f, x.data(), 0.9f, one.data(), n}, {});
  cpu::Multiply({x.data(), start.data(), one.data(), Write::kAccumulate, n}, {});
  for (int workers : {2, 3}) {
    const Parallel parallel = ThreadsForTests(workers);
    std::vector<float> other = start;
    cpu::Axpby({0.3f, x.data(), 0.9f, other.data(), n}, parallel);
    cpu::Multiply({x.data(), start.data(), other.data(), Write::kAccumulate, n}, parallel);
    ExpectSameBits(one, other, "axpby and multiply");
  }
}

}  // namespace
}  // namespace permafrost::kernels
