// Every base of tests/golden/models against transformers: logits, losses, batching, threads.
// The bounds are the contract's: logits 2e-5 of the largest, losses 1e-5 relative.
#include <cstring>

#include "tests/util/golden_case.h"

namespace permafrost {
namespace {

constexpr double kLogitBound = 2e-5, kLossBound = 1e-5;

struct Forward {
  std::vector<float> logits;  // of the wanted rows
  std::vector<double> losses;  // mean over the labelled tokens, by line; 0 without any
};

// Logits and losses of `lines` as one batch.
Forward RunForward(Context& c, const Model& model, Hooks& hooks, absl::Span<const TokenLine> lines,
            Outputs outputs) {
  const Batch batch = MakeBatch(model.layout(hooks), lines, outputs);
  Forward result;
  const Var hidden = model.Decode(c, batch, model.Encode(c, batch, hooks), hooks, nullptr);
  const Var logits = model.Logits(c, hidden, hooks);
  result.logits.assign(logits.value().values().begin(), logits.value().values().end());

  const std::vector<float> weights(batch.target_labels.size(), 1);
  const Tensor losses = model.Loss(c, batch, hooks, weights).per_target;
  std::vector<double> count(lines.size());
  result.losses.resize(lines.size());
  const std::vector<Target>& targets = batch.decoder.rows.targets;
  for (size_t t = 0; t < targets.size(); ++t) {
    const size_t line = static_cast<size_t>(targets[t].example);
    result.losses[line] += static_cast<double>(losses.f32()[t]);
    count[line] += 1;
  }
  for (size_t i = 0; i < lines.size(); ++i) {
    if (count[i] > 0) result.losses[i] /= count[i];
  }
  return result;
}

// Each line alone against the file's figures for `kind` ("none", "prompt", "lora").
void ExpectGolden(const GoldenCase& golden, const std::string& kind, Context& c,
                  const Model& model, Hooks& hooks) {
  const std::vector<int> logit_lines = golden.settings["logit_lines"].get<std::vector<int>>();
  for (size_t i = 0; i < golden.lines.size(); ++i) {
    const Forward f =
        RunForward(c, model, hooks, absl::MakeConstSpan(golden.lines).subspan(i, 1), Outputs::kAll);
    const double expected = golden.Expected(absl::StrCat(kind, ".loss.", i))[0];
    EXPECT_NEAR(f.losses[0], expected, kLossBound * std::abs(expected)) << kind << " line " << i;
    if (std::count(logit_lines.begin(), logit_lines.end(), static_cast<int>(i)) == 0) continue;
    const std::vector<float> logits = golden.Expected(absl::StrCat(kind, ".logits.", i));
    ASSERT_GE(f.logits.size(), logits.size()) << kind << " line " << i;
    // A causal prompt's last row stands in front of the text's when it predicts labels[0].
    const auto text = absl::MakeConstSpan(f.logits).last(logits.size());
    EXPECT_LE(RelativeMaxDifference(text, logits), kLogitBound) << kind << " line " << i;
  }
}

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
