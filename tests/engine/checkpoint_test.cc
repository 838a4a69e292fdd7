// Recomputation: same gradients, less kept, parameters inside are found.
#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

struct Layer {
  Tensor x = Tensor::From({2, 3}, {0.5f, -1, 2, 0.25f, 1.5f, -0.75f});
  Parameter scale{"scale", Tensor::From({1, 3}, {1, -2, 0.5f})};
  Parameter bias{"bias", Tensor::From({1, 3}, {0.1f, 0.2f, -0.3f})};
  Tensor seed = Tensor::From({2, 3}, {1, -2, 0.5f, 3, -1, 2});

  Var Apply(Context& c, const Var& in) const {
    Var y = RmsNorm(c, in, scale.var(), 1e-5f);
    y = Activate(c, Activation::kSilu, AddBias(c, std::move(y), bias.var()));
    return Add(c, std::move(y), in);
  }
};

// Gradients of two layers (recomputed or not) with the input as a leaf if `input_grad`.
struct Result {
  std::vector<float> value, scale, bias, input;
  int64_t saved_bytes = 0;
  size_t nodes = 0;
};
Result RunLayers(bool recompute, bool input_grad, Precision precision = Precision::kF32) {
  Layer layer;
  Context c(1, precision);
  c.tape.mode = TapeMode::kRecord;
  Parameter input("x", layer.x.Clone());
  Var x = input_grad ? input.var() : Var(layer.x);
  for (int i = 0; i < 2; ++i) {
    x = recompute
            ? Checkpoint(c, x, [&](Context& ctx, const Var& in) { return layer.Apply(ctx, in); })
            : layer.Apply(c, x);
  }
  Result r;
  const auto copy = [](const Tensor& t) {
    return t ? std::vector<float>(t.values().begin(), t.values().end()) : std::vector<float>();
  };
  r.value = copy(x.value());
  r.saved_bytes = c.tape.saved_bytes();
  r.nodes = c.tape.nodes().size();
  Backward(c, x, layer.seed);
  EXPECT_EQ(c.tape.mode, TapeMode::kRecord);
  r.scale = copy(layer.scale.gradient());
  r.bias = copy(layer.bias.gradient());
  r.input = copy(input.gradient());
  return r;
}

class CheckpointTest : public testing::TestWithParam<bool> {};

TEST_P(CheckpointTest, GivesTheSameBits) {
  const bool input_grad = GetParam();
  const Result kept = RunLayers(false, input_grad);
  const Result again = RunLayers(true, input_grad);
  EXPECT_EQ(again.value, kept.value);
  EXPECT_EQ(again.scale, kept.scale);
  EXPECT_EQ(again.bias, kept.bias);
  EXPECT_EQ(again.input, kept.input);
  EXPECT_EQ(kept.input.empty(), !input_grad);
  EXPECT_FALSE(kept.scale.empty());
  EXPECT_EQ(again.nodes, 2u);  // one a layer
}

// The second run starts from the kept input, which bf16 has rounded by up to 2^-9 of itself.
TEST_P(CheckpointTest, Bf16StartsFromTheRoundedInput) {
  const bool input_grad = GetParam();
  const Result kept = RunLayers(false, input_grad, Precision::kBF16);
  const Result again = RunLayers(true, input_grad, Precision::kBF16);
  EXPECT_EQ(again.value, kept.value);
  for (const auto& [a, b] : {std::pair(again.scale, kept.scale), std::pair(again.bias, kept.bias),
                             std::pair(again.input, kept.input)}) {
    ASSERT_EQ(a.size(), b.size());
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
      norm += std::pow(static_cast<double>(b[i]), 2);
    }
    EXPECT_LE(std::sqrt(difference), std::exp2(-6) * std::sqrt(norm));
  }
}

INSTANTIATE_TEST_SUITE_P(All, CheckpointTest, testing::Bool());

TEST(Checkpoint, KeepsItsInputOnly) {
  EXPECT_EQ(RunLayers(true, false).saved_bytes, 2 * 6 * 4);
  EXPECT_GT(RunLayers(false, false).saved_bytes, 2 * 6 * 4);
}

TEST(Checkpoint, RecordsNothingWithoutTrainables) {
  Context c;
  c.tape.mode = TapeMode::kRecord;
  const Var y = Checkpoint(c, Tensor::From({1, 2}, {1, 2}),
                           [](Context& ctx, const Var& x) { return Scale(ctx, x, 3); });
  EXPECT_FALSE(y.needs_grad());
  EXPECT_TRUE(c.tape.nodes().empty());
  EXPECT_EQ(y.value().f32()[1], 6);
}

// What one layer keeps while it is recomputed is free again before the next one runs, in bf16 too.
TEST(Checkpoint, PeakDoesNotGrowWithDepth) {
  constexpr int64_t kRows = 64, kWidth = 64;
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    std::vector<int64_t> extra;
    for (const int layers : {4, 12}) {
      Context c(1, precision);
      c.tape.mode = TapeMode::kRecord;
      Random random(1);
      Parameter scale("scale", RandomTensor(random, {1, kWidth}));
      const Tensor up = RandomTensor(random, {kRows, kWidth});
      Var x = RandomTensor(random, {kRows, kWidth});
      for (int i = 0; i < layers; ++i) {
        x = Checkpoint(c, x, [&](Context& ctx, const Var& in) {
          Var y = RmsNorm(ctx, in, scale.var(), 1e-5f);
          y = Gated(ctx, Activation::kSilu, y, Scale(ctx, y, 0.5f));
          return Add(ctx, Activate(ctx, Activation::kTanh, std::move(y)), in);
        });
      }
      const Tensor seed = RandomTensor(random, {kRows, kWidth});
      const int64_t before = MemoryOf(MemoryTag::kActivation).live;
      ResetPeakMemory();
      Backward(c, x, seed);
      extra.push_back(MemoryOf(MemoryTag::kActivation).peak - before);
    }
    EXPECT_LE(extra[1], extra[0]);
  }
}

}  // namespace
}  // namespace permafrost
