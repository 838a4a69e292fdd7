// Frozen weights: packing is lossless in f32 and one rounding in bf16.
#include "engine/weight.h"

#include <cmath>
#include <limits>

#include "engine/context.h"
#include "gtest/gtest.h"
#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

struct Sizes {
  int64_t outputs, inputs;
};

class WeightTest : public testing::TestWithParam<Sizes> {
 protected:
  WeightTest() : random_(1), w_(RandomTensor(random_, {GetParam().outputs, GetParam().inputs})) {
    // Ties and extremes of the rounding, where there is room.
    const float edges[] = {1.00390625f, 1.01171875f, -0.0f,
                           3.4e38f,     1e-40f,      std::numeric_limits<float>::infinity()};
    for (int64_t i = 0; i < std::min<int64_t>(w_.count(), 6); ++i) w_.f32()[i] = edges[i];
  }
  Random random_;
  Tensor w_;
};

TEST_P(WeightTest, F32IsBitExact) {
  for (const int threads : {1, 3}) {
    Context c(threads);
    const Weight packed = Weight::FromF32(c, w_, DType::kF32);
    EXPECT_EQ(packed.outputs(), w_.rows());
    EXPECT_EQ(packed.inputs(), w_.columns());
    const Tensor back = packed.ToF32(c);
    EXPECT_EQ(std::memcmp(back.raw(), w_.raw(), w_.bytes()), 0);
  }
}

TEST_P(WeightTest, BF16IsRoundedToNearestEven) {
  Context c;
  const Weight packed = Weight::FromF32(c, w_, DType::kBF16);
  EXPECT_EQ(packed.bytes(), kernels::PackedBytes(DType::kBF16, w_.rows(), w_.columns()));
  const Tensor back = packed.ToF32(c);
  for (int64_t i = 0; i < w_.count(); ++i) {
    const float expected = kernels::ToFloat(kernels::ToBF16(w_.f32()[i]));
    ASSERT_EQ(std::memcmp(&back.f32()[i], &expected, 4), 0) << "element " << i;
  }
}

TEST_P(WeightTest, RowsInAnyOrder) {
  Context c;
  const Weight packed = Weight::FromF32(c, w_, DType::kF32);
  const int32_t last = static_cast<int32_t>(w_.rows()) - 1;
  const std::vector<int32_t> ids = {last, 0, last, last / 2};
  const Tensor rows = packed.Rows(c, ids);
  ASSERT_EQ(rows.shape(), (Shape{4, w_.columns()}));
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(std::memcmp(rows.row(static_cast<int64_t>(i)), w_.row(ids[i]),
                          static_cast<size_t>(w_.columns()) * 4),
              0);
  }
  EXPECT_EQ(packed.Rows(c, {}).rows(), 0);
}

TEST_P(WeightTest, ChecksumSeesEveryElement) {
  Context c;
  for (const DType format : {DType::kF32, DType::kBF16}) {
    const uint64_t checksum = Weight::FromF32(c, w_, format).Checksum();
    EXPECT_EQ(Weight::FromF32(c, w_.Clone(), format).Checksum(), checksum);
    for (const int64_t i : {int64_t{0}, w_.count() / 2, w_.count() - 1}) {
      Tensor changed = w_.Clone();
      changed.f32()[i] = 7;
      EXPECT_NE(Weight::FromF32(c, changed, format).Checksum(), checksum) << "element " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, WeightTest,
                         testing::Values(Sizes{1, 1}, Sizes{47, 3}, Sizes{48, 8}, Sizes{49, 7},
                                         Sizes{193, 5}, Sizes{400, 33}));

TEST(Weight, ReadErrorsComeThrough) {
  Context c;
  int calls = 0;
  const auto weight =
      Weight::Pack(c, 1000, 4, DType::kF32, [&](int64_t first, int64_t rows, float* out) {
        EXPECT_LE(first + rows, 1000);
        std::fill_n(out, rows * 4, 0.0f);
        return ++calls == 2 ? absl::DataLossError("page gone") : absl::OkStatus();
      });
  EXPECT_EQ(weight.status(), absl::DataLossError("page gone"));
  EXPECT_EQ(calls, 2);
}

TEST(Weight, IsCountedAsWeight) {
  Context c;
  const int64_t before = MemoryOf(MemoryTag::kWeight).live;
  {
    const Weight w = Weight::FromF32(c, Tensor::Zeros({100, 10}), DType::kBF16);
    EXPECT_EQ(MemoryOf(MemoryTag::kWeight).live - before, w.bytes());
  }
  EXPECT_EQ(MemoryOf(MemoryTag::kWeight).live, before);
}

}  // namespace
}  // namespace permafrost
