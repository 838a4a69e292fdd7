// A table scaled by a low-rank matrix: values and gradients, of a part in the middle of the
// factors.
#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

constexpr LowRankScale kPart = {.rows = 3, .a_begin = 4, .b_begin = 2};

Var Scaled(Context& c, const std::vector<Var>& v) {
  return ScaleByLowRank(c, v[0], v[1], v[2], kPart);
}

TEST(ScaleByLowRank, ForwardIsTheFormula) {
  Random random(1);
  const Tensor x = RandomTensor(random, {4, 5}), a = RandomTensor(random, {8, 2}),
               b = RandomTensor(random, {6, 5});
  Context c;
  const Tensor y = Scaled(c, {x, a, b}).value();
  ASSERT_EQ(y.shape(), (Shape{3, 5}));
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t j = 0; j < 5; ++j) {
      const double scale = static_cast<double>(a.row(4 + i)[0]) * b.row(2)[j] +
                           static_cast<double>(a.row(4 + i)[1]) * b.row(3)[j];
      EXPECT_NEAR(y.row(i)[j], x.row(i)[j] * scale, 1e-5);
    }
  }
}

TEST(ScaleByLowRank, Gradients) {
  Random random(2);
  CheckGradients(Scaled, {RandomTensor(random, {4, 5}), RandomTensor(random, {8, 2}),
                          RandomTensor(random, {6, 5})});
}

}  // namespace
}  // namespace permafrost
