// Every base of tests/golden/models against transformers: logits, losses, batching, threads.
// The bounds are the contract's: logits 2e-5 of the largest, losses 1e-5 relative.
#include <cstring>

#include "tests/util/golden_forward.h"

namespace permafrost {
namespace {

class GoldenTest : public testing::TestWithParam<std::string> {
 protected:
  GoldenTest() : golden_(OpenGoldenCase(GetParam())) {}
  std::unique_ptr<Model> Open(Context& c) {
    auto model = OpenModel(c, golden_.folder);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? std::move(*model) : nullptr;
  }

  GoldenCase golden_;
  Hooks none_;
};

TEST_P(GoldenTest, BaseAgreesWithTransformers) {
  Context c;
  const auto model = Open(c);
  ASSERT_NE(model, nullptr);
  ExpectGolden(golden_, "none", c, *model, none_);
}

// Rows of other lines change nothing: no padding, no leaks.
TEST_P(GoldenTest, OneBatchGivesTheSameLosses) {
  Context c;
  const auto model = Open(c);
  ASSERT_NE(model, nullptr);
  for (const Outputs outputs : {Outputs::kLabelled, Outputs::kAll}) {
    const Forward f = RunForward(c, *model, none_, golden_.lines, outputs);
    for (size_t i = 0; i < golden_.lines.size(); ++i) {
      const double expected = golden_.Expected(absl::StrCat("none.loss.", i))[0];
      EXPECT_NEAR(f.losses[i], expected, kLossBound * std::abs(expected)) << "line " << i;
    }
  }
}

TEST_P(GoldenTest, ThreadsChangeNoBit) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    std::vector<Forward> runs;
    for (const int threads : {1, 2, 3}) {
      Context c(threads, precision);
      const auto model = Open(c);
      ASSERT_NE(model, nullptr);
      runs.push_back(RunForward(c, *model, none_, golden_.lines, Outputs::kAll));
    }
    for (size_t i = 1; i < runs.size(); ++i) {
      ASSERT_EQ(runs[i].logits.size(), runs[0].logits.size());
      EXPECT_EQ(std::memcmp(runs[i].logits.data(), runs[0].logits.data(),
                            runs[0].logits.size() * sizeof(float)),
                0);
      EXPECT_EQ(runs[i].losses, runs[0].losses);
    }
  }
}

// The contract's bound for bf16: the loss within 1 % of f32.
TEST_P(GoldenTest, BF16LossIsNear) {
  Context c(1, Precision::kBF16);
  const auto model = Open(c);
  ASSERT_NE(model, nullptr);
  const Forward f = RunForward(c, *model, none_, golden_.lines, Outputs::kLabelled);
  double total = 0, expected = 0;
  for (size_t i = 0; i < golden_.lines.size(); ++i) {
    total += f.losses[i];
    expected += golden_.Expected(absl::StrCat("none.loss.", i))[0];
  }
  EXPECT_NEAR(total, expected, 0.01 * expected);
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest, testing::ValuesIn(GoldenModelNames()), TestName);

}  // namespace
}  // namespace permafrost
