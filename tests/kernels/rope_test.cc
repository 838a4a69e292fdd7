#include "kernels/rope.h"

#include "kernels/reference/rope.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/kernels/parallel_for_tests.h"

namespace permafrost::kernels {
namespace {

constexpr int64_t kPositions = 11;

// cos and sin of position * 10000^(-2i / K), [positions, K / 2] each.
struct Tables {
  explicit Tables(int64_t head_size) {
    for (int64_t p = 0; p < kPositions; ++p) {
      for (int64_t i = 0; i < head_size / 2; ++i) {
        const double angle =
            static_cast<double>(p) * std::pow(10000.0, -2.0 * static_cast<double>(i) / head_size);
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
  }
  std::vector<float> cos, sin;
};

const std::vector<int32_t>& Positions() {
  static const auto* const positions = new std::vector<int32_t>{3, 0, 10, 3, 7};
  return *positions;
}

TEST(RopeTest, AgreesWithReference) {
  ForEachSimdLevel([&] {
    for (int64_t head_size : {2, 4, 6, 8, 16, 30, 32, 34, 64, 66, 80, 128}) {
      const Tables tables(head_size);
      const int64_t rows = 5, heads = 3, count = rows * heads * head_size;
      const std::vector<float> values = RandomFloats(count, 1);
      const std::vector<double> x64 = Doubles(values), cos = Doubles(tables.cos),
                                sin = Doubles(tables.sin);
      for (Rotation rotation : {Rotation::kForward, Rotation::kInverse}) {
        std::vector<double> y64(values.size());
        reference::Rope<double>({x64.data(), y64.data(), Positions().data(), cos.data(), sin.data(),
                                 rows, heads, head_size, rotation});
        Guarded<float> x(values, 1), y(count, 3), cos32(tables.cos, 2), sin32(tables.sin, 1);
        RopeArgs args{x.data(), y.data(), Positions().data(), cos32.data(), sin32.data(),
                      rows,     heads,    head_size,          rotation};
        cpu::Rope(args, {});
        // Two products and a sum of at most |x| each; the pair's norm bounds both.
        ExpectWithin(
            y.values(), y64,
            [&](size_t i) {
              const size_t k = static_cast<size_t>(head_size), half = k / 2;
              const size_t partner = i % k < half ? i + half : i - half;
              return kUlp * (std::abs(x64[i]) + std::abs(x64[partner]));
            },
            "rope " + std::to_string(head_size));
        ASSERT_TRUE(x.Intact() && y.Intact());
        args.y = x.data();
        cpu::Rope(args, {});
        ExpectSameBits(x.values(), y.values(), "in place");
      }
    }
  });
}

// K = 4, position 1: angles 1 and 0.01, worked out by hand in the half layout.
TEST(RopeTest, HalfLayout) {
  const float cos[] = {1, 1, 0.5403023f, 0.99995f}, sin[] = {0, 0, 0.84147098f, 0.0099998333f};
  const float x[] = {1, 2, 3, 4};
  const int32_t position = 1;
  float y[4];
  cpu::Rope({x, y, &position, cos, sin, 1, 1, 4, Rotation::kForward}, {});
  EXPECT_NEAR(y[0], 1 * 0.5403023 - 3 * 0.84147098, 1e-6);
  EXPECT_NEAR(y[1], 2 * 0.99995 - 4 * 0.0099998333, 1e-6);
  EXPECT_NEAR(y[2], 3 * 0.5403023 + 1 * 0.84147098, 1e-6);
  EXPECT_NEAR(y[3], 4 * 0.99995 + 2 * 0.0099998333, 1e-6);
}

// <R x, dy> has the gradient R^T dy = R^-1 dy.
TEST(RopeTest, ReferenceGradient) {
  const Tables tables(6);
  const std::vector<double> cos = Doubles(tables.cos), sin = Doubles(tables.sin);
  std::vector<double> x = Doubles(RandomFloats(60, 1)), y(60), dx(60);
  const std::vector<double> dy = Doubles(RandomFloats(60, 2));
  reference::Rope<double>({dy.data(), dx.data(), Positions().data(), cos.data(), sin.data(), 5, 2,
                           6, Rotation::kInverse});
  ExpectGradient(
      [&] {
        reference::Rope<double>({x.data(), y.data(), Positions().data(), cos.data(), sin.data(), 5,
                                 2, 6, Rotation::kForward});
        return Dot(y, dy);
      },
      &x, dx, "rope");
}

TEST(RopeTest, SameBitsForAnyNumberOfWorkers) {
  const int64_t rows = 300, heads = 4, head_size = 64;
  const Tables tables(head_size);
  const std::vector<float> x = RandomFloats(rows * heads * head_size, 1);
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < rows; ++i) positions.push_back(static_cast<int32_t>(i % kPositions));
  std::vector<float> one(x.size()), other(x.size());
  RopeArgs args{x.data(), one.data(), positions.data(), tables.cos.data(), tables.sin.data(),
                rows,     heads,      head_size,        Rotation::kForward};
  cpu::Rope(args, {});
  args.y = other.data();
  for (int workers : {2, 3}) {
    cpu::Rope(args, ThreadsForTests(workers));
    ExpectSameBits(one, other, "rope");
  }
}

}  // namespace
}  // namespace permafrost::kernels
