#include "kernels/embedding.h"

#include "kernels/reference/embedding.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/kernels/parallel_for_tests.h"

namespace permafrost::kernels {
namespace {

const std::vector<int32_t>& Ids() {
  static const auto* const ids = new std::vector<int32_t>{4, 0, 4, 2, 5, 4, 0};
  return *ids;
}
constexpr int64_t kTableRows = 6;

TEST(EmbeddingTest, GatherCopiesBits) {
  ForEachSimdLevel([&] {
    for (int64_t width : EdgeLengths()) {
      const std::vector<float> table_values = RandomFloats(kTableRows * width, 1);
      const int64_t count = static_cast<int64_t>(Ids().size());
      Guarded<float> table(table_values, 1), out(count * width, 3);
      std::vector<float> want(static_cast<size_t>(count * width));
      cpu::GatherRows({table.data(), Ids().data(), out.data(), count, width}, {});
      reference::GatherRows<float>({table_values.data(), Ids().data(), want.data(), count, width});
      ExpectSameBits(out.values(), want, "gather");
      ASSERT_TRUE(out.Intact());
    }
  });
}

// The order of additions is that of the definition, so the bits are its bits, at every SIMD level
// and for any number of workers.
TEST(EmbeddingTest, ScatterAddsInOrder) {
  ForEachSimdLevel([&] {
    for (int64_t width : EdgeLengths()) {
      const std::vector<float> start = RandomFloats(kTableRows * width, 1);
      const int64_t count = static_cast<int64_t>(Ids().size());
      const std::vector<float> dout_values = RandomFloats(count * width, 2);
      std::vector<float> want = start;
      reference::ScatterAddRows<float>(
          {dout_values.data(), Ids().data(), want.data(), count, width});
      for (int workers : {1, 2, 3}) {
        Guarded<float> dout(dout_values, 2), dtable(start, 1);
        cpu::ScatterAddRows({dout.data(), Ids().data(), dtable.data(), count, width},
                            ThreadsForTests(workers));
        ExpectSameBits(dtable.values(), want, "scatter");
        ASSERT_TRUE(dtable.Intact());
      }
    }
  });
}

TEST(EmbeddingTest, ReferenceGradient) {
  const int64_t width = 3, count = static_cast<int64_t>(Ids().size());
  std::vector<double> table = Doubles(RandomFloats(kTableRows * width, 1)), dtable(table.size());
  const std::vector<double> dout = Doubles(RandomFloats(count * width, 2));
  std::vector<double> out(dout.size());
  reference::ScatterAddRows<double>({dout.data(), Ids().data(), dtable.data(), count, width});
  ExpectGradient(
      [&] {
        reference::GatherRows<double>({table.data(), Ids().data(), out.data(), count, width});
        return Dot(out, dout);
      },
      &table, dtable, "table");
}

}  // namespace
}  // namespace permafrost::kernels
