// An adapter of a golden folder against PEFT: logits, losses, gradients, ten steps of AdamW.
#ifndef PERMAFROST_TESTS_UTIL_GOLDEN_ADAPTER_H_
#define PERMAFROST_TESTS_UTIL_GOLDEN_ADAPTER_H_

#include <numeric>
#include <string>
#include <vector>

#include "engine/optim/optimizer.h"
#include "peft/adapter_file.h"
#include "tests/util/golden_forward.h"

namespace permafrost {

// Adds the gradient of the mean loss of `lines` as one batch.
inline void AddGradient(Context& c, const Model& model, Method& method,
                        absl::Span<const TokenLine> lines) {
  const Batch batch = MakeBatch(model.layout(method), lines, Outputs::kLabelled);
  const size_t targets = batch.target_labels.size();
  const std::vector<float> weights(targets, 1 / static_cast<float>(targets));
  c.tape.mode = TapeMode::kRecord;
  Backward(c, model.Loss(c, batch, method, weights).loss, Tensor::From({1, 1}, {1}));
  c.tape.mode = TapeMode::kOff;
}

// The gradients that `method` holds. The contract allows 1e-3 and expects 1e-5; the golden files
// carry up to 5e-5 of their own. Some files have a `gradient_floor`: a part of all gradients' norm
// that is added to each one's, where a gradient may be rounding only.
inline void ExpectGoldenGradients(const GoldenCase& golden, const std::string& kind,
                                  const Method& method) {
  const auto norm = [](const std::vector<float>& v) {
    return std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0));
  };
  std::vector<std::vector<float>> all;
  double squares = 0;
  for (const Parameter& p : method.parameters()) {
    all.push_back(golden.Expected(absl::StrCat(kind, ".grad.", p.name())));
    squares += norm(all.back()) * norm(all.back());
  }
  const double floor = golden.settings.value("gradient_floor", 0.0) * std::sqrt(squares);
  for (size_t i = 0; i < all.size(); ++i) {
    const Parameter& p = method.parameters()[i];
    const Tensor gradient = p.gradient() ? p.gradient() : Tensor::Zeros(p.value().shape());
    ASSERT_EQ(gradient.values().size(), all[i].size()) << p.name();
    std::vector<float> difference(all[i]);
    for (size_t j = 0; j < difference.size(); ++j) difference[j] -= gradient.f32()[j];
    EXPECT_LE(norm(difference), 1e-4 * (norm(all[i]) + floor)) << p.name();
  }
}

// Ten steps on batches of 4 and 3 lines in turn: within 2e-3 of the change, as the contract says.
// `skipped` names tensors for which the file has no figures.
inline void ExpectGoldenTraining(const GoldenCase& golden, const std::string& kind, Context& c,
                                 const Model& model, Method& method,
                                 const std::vector<std::string>& skipped = {}) {
  std::vector<Tensor> before;
  for (const Parameter& p : method.parameters()) before.push_back(p.value().Clone());
  const double rate = golden.settings["adamw"][kind]["lr"].get<double>();
  Optimizer optimizer({.learning_rate = rate, .weight_decay = 0.01, .clip = 1},
                      method.parameters());
  const auto lines = absl::MakeConstSpan(golden.lines);
  for (int step = 0; step < 10; ++step) {
    AddGradient(c, model, method, step % 2 == 0 ? lines.first(4) : lines.subspan(4));
    const double expected =
        golden.settings["adamw"][kind]["steps"][static_cast<size_t>(step)]["grad_norm"]
            .get<double>();
    EXPECT_NEAR(optimizer.Step(c, 1), expected, 2e-3 * expected) << kind << " step " << step;
  }
  for (size_t i = 0; i < method.parameters().size(); ++i) {
    const Parameter& p = method.parameters()[i];
    if (std::count(skipped.begin(), skipped.end(), p.name()) > 0) continue;
    const std::vector<float> expected = golden.Expected(absl::StrCat(kind, ".adamw10.", p.name()));
    ASSERT_EQ(expected.size(), p.value().values().size()) << p.name();
    double difference = 0, change = 0;
    for (size_t j = 0; j < expected.size(); ++j) {
      const double d = static_cast<double>(p.value().f32()[j]) - expected[j];
      const double moved = static_cast<double>(expected[j]) - before[i].f32()[j];
      difference += d * d;
      change += moved * moved;
    }
    EXPECT_LE(std::sqrt(difference), 2e-3 * std::sqrt(change)) << kind << " " << p.name();
  }
}

}  // namespace permafrost

#endif  // PERMAFROST_TESTS_UTIL_GOLDEN_ADAPTER_H_
