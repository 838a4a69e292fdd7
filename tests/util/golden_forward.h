// A forward pass over golden lines and its comparison with transformers' figures.
#ifndef PERMAFROST_TESTS_UTIL_GOLDEN_FORWARD_H_
#define PERMAFROST_TESTS_UTIL_GOLDEN_FORWARD_H_

#include <string>
#include <vector>

#include "tests/util/golden_case.h"

namespace permafrost {

inline constexpr double kLogitBound = 2e-5, kLossBound = 1e-5;

struct Forward {
  std::vector<float> logits;   // of the wanted rows
  std::vector<double> losses;  // mean over the labelled tokens, by line; 0 without any
};

// Logits and losses of `lines` as one batch.
inline Forward RunForward(Context& c, const Model& model, Hooks& hooks,
                          absl::Span<const TokenLine> lines, Outputs outputs) {
  const Batch batch = MakeBatch(model.layout(hooks), lines, outputs);
  Forward result;
  const Var hidden = model.Decode(c, batch, model.Encode(c, batch, hooks), hooks, nullptr);
  const Var logits = model.Logits(c, hidden, batch.output_spans, hooks);
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

// Each line alone against the file's figures for `kind` ("none", "prompt", "lora", "ia3").
inline void ExpectGolden(const GoldenCase& golden, const std::string& kind, Context& c,
                         const Model& model, Hooks& hooks, int task = kNoTask) {
  const std::vector<int> logit_lines = golden.settings["logit_lines"].get<std::vector<int>>();
  for (size_t i = 0; i < golden.lines.size(); ++i) {
    TokenLine line = golden.lines[i];
    line.task = task;
    const Forward f = RunForward(c, model, hooks, {&line, 1}, Outputs::kAll);
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

}  // namespace permafrost

#endif  // PERMAFROST_TESTS_UTIL_GOLDEN_FORWARD_H_
