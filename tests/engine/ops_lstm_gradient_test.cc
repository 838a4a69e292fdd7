// The LSTM op: values against its formula in f64, gradients.
#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// y by torch's definition of one direction, in f64.
std::vector<double> Reference(const Tensor& gates, const Tensor& w, bool reverse) {
  const int64_t rows = gates.rows(), h = w.columns();
  std::vector<double> y(static_cast<size_t>(rows * h)), state(static_cast<size_t>(h)),
      cell(static_cast<size_t>(h));
  for (int64_t k = 0; k < rows; ++k) {
    const int64_t t = reverse ? rows - 1 - k : k;
    std::vector<double> a(static_cast<size_t>(4 * h));
    for (int64_t n = 0; n < 4 * h; ++n) {
      a[static_cast<size_t>(n)] = gates.row(t)[n];
      for (int64_t j = 0; j < h; ++j) {
        a[static_cast<size_t>(n)] +=
            static_cast<double>(w.row(n)[j]) * state[static_cast<size_t>(j)];
      }
    }
    for (size_t j = 0, width = static_cast<size_t>(h); j < width; ++j) {
      cell[j] = Sigmoid(a[width + j]) * cell[j] + Sigmoid(a[j]) * std::tanh(a[2 * width + j]);
      state[j] = Sigmoid(a[3 * width + j]) * std::tanh(cell[j]);
      y[static_cast<size_t>(t) * width + j] = state[j];
    }
  }
  return y;
}

class LstmTest : public testing::TestWithParam<bool> {};

TEST_P(LstmTest, ForwardIsTheFormula) {
  Random random(1);
  for (const int64_t rows : {1, 2, 9}) {
    const Tensor gates = RandomTensor(random, {rows, 20}), w = RandomTensor(random, {20, 5});
    Context c;
    const Tensor y = Lstm(c, gates, w, GetParam()).value();
    const std::vector<double> expected = Reference(gates, w, GetParam());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(y.f32()[i], expected[i], 1e-5) << rows << " rows, element " << i;
    }
  }
}

TEST_P(LstmTest, Gradients) {
  Random random(2);
  for (const int64_t rows : {1, 5}) {
    const Tensor gates = RandomTensor(random, {rows, 12});
    const Tensor w = RandomTensor(random, {12, 3});
    if (rows == 1) {  // w is not read
      CheckGradients(
          [&](Context& c, const std::vector<Var>& v) { return Lstm(c, v[0], w, GetParam()); },
          {gates}, {.steps = 32});
      continue;
    }
    CheckGradients(
        [](Context& c, const std::vector<Var>& v) { return Lstm(c, v[0], v[1], GetParam()); },
        {gates, w}, {.steps = 32});
  }
}

INSTANTIATE_TEST_SUITE_P(Directions, LstmTest, testing::Bool());

}  // namespace
}  // namespace permafrost
