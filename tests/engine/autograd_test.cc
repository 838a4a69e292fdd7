// What the tape records and keeps, by count of nodes and bytes; and that reuse of memory never
// reaches a kept tensor.
#include "engine/autograd.h"

#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

constexpr int64_t kR = 6, kD = 10, kF = 7;

class AutogradTest : public testing::TestWithParam<Precision> {
 protected:
  AutogradTest() : random_(1) {}
  Tensor Random_(Shape shape) { return RandomTensor(random_, shape); }
  // A base vector, a trainable tensor, and an activation that needs a gradient.
  Var Frozen(Shape shape) {
    const Tensor t = Random_(shape);
    t.Retag(MemoryTag::kWeight);
    return t;
  }
  Var Leaf(Shape shape) { return leaves_.Add("leaf", Random_(shape)).var(); }
  Var Needing(Shape shape) {
    auto slot = std::make_shared<GradSlot>();
    slot->shape = shape;
    return {Random_(shape), std::move(slot)};
  }
  // Bytes that f keeps on a fresh tape.
  int64_t SavedBytes(const std::function<Var(Context&)>& f) {
    Context c(1, GetParam());
    c.training = true;
    c.tape.mode = TapeMode::kRecord;
    EXPECT_TRUE(f(c).needs_grad());
    EXPECT_FALSE(c.tape.nodes().empty());
    return c.tape.saved_bytes();
  }
  // Bytes of an activation kept as f32 or bf16.
  static int64_t Kept(int64_t count) { return count * (GetParam() == Precision::kBF16 ? 2 : 4); }

  Random random_;
  ParameterList leaves_;
};

TEST_P(AutogradTest, NothingIsRecordedWithoutTrainables) {
  Context c(1, GetParam());
  c.training = true;
  c.tape.mode = TapeMode::kRecord;
  const Weight w = Weight::FromF32(c, Random_({kF, kD}), DType::kF32);
  const std::vector<TaskSpan> spans = {{0, kR, 0}};
  const std::vector<int32_t> labels = {0, 1};
  const std::vector<float> weights = {1, 1};
  Var x = Random_({kR, kD});
  x = RmsNorm(c, x, Random_({1, kD}), 1e-6f);
  x = Dropout(c, LayerNorm(c, x, Random_({1, kD}), Random_({1, kD}), 1e-6f), 0.1f, {});
  Var y = AddBias(c, Linear(c, x, w), Random_({1, kF}));
  y = AddLowRank(c, y, x, Random_({2, kD}), Random_({kF, 2}), {}, spans);
  y = Gated(c, Activation::kSilu, y, Activate(c, Activation::kRelu, Scale(c, y, 2)));
  const HeadLoss loss =
      HeadCrossEntropy(c, y, nullptr, Random_({4, kF}), labels, labels, weights, {});
  EXPECT_FALSE(loss.loss.needs_grad());
  EXPECT_TRUE(c.tape.nodes().empty());
}

TEST_P(AutogradTest, NothingIsRecordedBelowTheFirstTrainable) {
  Context c(1, GetParam());
  c.tape.mode = TapeMode::kRecord;
  const Weight w = Weight::FromF32(c, Random_({kD, kD}), DType::kF32);
  Var x = Random_({kR, kD});
  for (int i = 0; i < 3; ++i) x = Linear(c, RmsNorm(c, x, Random_({1, kD}), 1e-6f), w);
  EXPECT_TRUE(c.tape.nodes().empty());
  x = AddBias(c, std::move(x), Leaf({1, kD}));
  EXPECT_EQ(c.tape.nodes().size(), 1u);
  x = Linear(c, x, w);
  EXPECT_EQ(c.tape.nodes().size(), 2u);
}

TEST_P(AutogradTest, NothingIsRecordedWhenOff) {
  Context c(1, GetParam());
  const Var y = Scale(c, Leaf({kR, kD}), 2);
  EXPECT_FALSE(y.needs_grad());
  EXPECT_TRUE(c.tape.nodes().empty());
}

TEST_P(AutogradTest, OpsThatKeepNothing) {
  Context packing;
  const Weight w = Weight::FromF32(packing, Random_({kF, kD}), DType::kF32);
  const Var x = Leaf({kR, kD});
  const std::vector<int32_t> ids = {1, 1, 0};
  const std::vector<int32_t> buckets = {0, 1, 2, 2, 1};
  const std::vector<int32_t> positions(kR, 0);
  const RopeTable rope{Tensor::Zeros({1, kD / 2}), Tensor::Zeros({1, kD / 2})};
  const std::vector<std::function<Var(Context&)>> ops = {
      [&](Context& c) { return Linear(c, x, w); },
      [&](Context& c) {
        return AddBias(c, x, leaves_.Add("b", Random_({1, kD})).var());
      },
      [&](Context& c) { return Add(c, x, x); },
      [&](Context& c) { return Scale(c, x, 3); },
      [&](Context& c) { return Dropout(c, x, 0.5f, {}); },
      [&](Context& c) { return Columns(c, x, 2, 3); },
      [&](Context& c) { return GatherRows(c, x, ids); },
      [&](Context& c) {
        return ReplaceRows(c, Random_({kR, kD}), ids, x, ids);
      },
      [&](Context& c) { return SpreadBuckets(c, x, buckets); },
      [&](Context& c) { return Rope(c, x, rope, positions, 1); },
  };
  for (size_t i = 0; i < ops.size(); ++i) EXPECT_EQ(SavedBytes(ops[i]), 0) << "op " << i;
}

TEST_P(AutogradTest, SavedBytesAreThoseOfTheFormulas) {
  const Var x = Needing({kR, kD}), constant = Random_({kR, kD});
  const Var scale = Frozen({1, kD}), trained_scale = Leaf({1, kD});
  const int64_t vector = kR * 4;  // 1 / rms of each row
  const auto norm = [&](const Var& in, const Var& s) {
    return SavedBytes([&](Context& c) { return RmsNorm(c, in, s, 1e-6f); });
  };
  EXPECT_EQ(norm(x, scale), Kept(kR * kD) + vector);
  EXPECT_EQ(norm(constant, trained_scale), Kept(kR * kD) + vector);
  EXPECT_EQ(SavedBytes([&](Context& c) { return LayerNorm(c, x, scale, scale, 1e-6f); }),
            Kept(kR * kD) + 2 * vector);

  const auto activate = [&](Activation a) {
    return SavedBytes([&](Context& c) { return Activate(c, a, x); });
  };
  EXPECT_EQ(activate(Activation::kRelu), (kR * kD + 31) / 32 * 4);  // one bit an element
  EXPECT_EQ(activate(Activation::kSilu), Kept(kR * kD));
  const auto gated = [&](const Var& gate, const Var& up) {
    return SavedBytes([&](Context& c) { return Gated(c, Activation::kSilu, gate, up); });
  };
  EXPECT_EQ(gated(x, Needing({kR, kD})), Kept(2 * kR * kD));
  EXPECT_EQ(gated(x, constant), Kept(2 * kR * kD));
  EXPECT_EQ(gated(constant, x), Kept(kR * kD));  // the gradient of `up` reads the gate alone

  const Var w = Leaf({kF, kD}), frozen = Frozen({kF, kD});
  const auto product = [&](const Var& in, const Var& matrix) {
    return SavedBytes([&](Context& c) { return MatMulTransposed(c, in, matrix); });
  };
  EXPECT_EQ(product(constant, w), Kept(kR * kD));
  EXPECT_EQ(product(x, frozen), 0);
  EXPECT_EQ(product(x, w), Kept(kR * kD));
}

TEST_P(AutogradTest, SavedBytesOfLowRankAttentionAndHead) {
  constexpr int64_t kRank = 2, kSpanRows = 4;
  const std::vector<TaskSpan> spans = {{1, 3, 0}, {4, 6, 0}};
  const Var a = Leaf({kRank, kD}), b = Leaf({kF, kRank});
  const Var constant = Random_({kR, kD});
  EXPECT_EQ(SavedBytes([&](Context& c) {
              return AddLowRank(c, Random_({kR, kF}), constant, a, b, {}, spans);
            }),
            Kept(kR * kD) + kSpanRows * kRank * 4 + 2 * 2 * 4);

  Rows rows;
  rows.Add({1, 2, 3, 4, 5, 6});
  const AttentionPlan plan = rows.SelfPlan();
  const Var q = Needing({kR, kD}), k = Random_({kR, kD}), v = Random_({kR, kD});
  EXPECT_EQ(SavedBytes([&](Context& c) {
              return Attention(c, q, k, v, {}, plan,
                               {.heads = 2, .key_heads = 2, .head_size = kD / 2});
            }),
            Kept(4 * kR * kD) + kR * 2 * 4);

  const std::vector<int32_t> ids = {0, 2, 2};
  const std::vector<float> weights(3, 1);
  Context packing;
  const Weight head = Weight::FromF32(packing, Random_({kF, kD}), DType::kF32);
  EXPECT_EQ(SavedBytes([&](Context& c) {
              return HeadCrossEntropy(c, q, &head, {}, ids, ids, weights, {}).loss;
            }),
            3 * kD * 4 + 3 * 4);  // no logits
}

TEST_P(AutogradTest, OneCopyServesAllNodesThatKeepATensor) {
  const Var x = Random_({kR, kD});
  const std::vector<TaskSpan> spans = {{0, kR, 0}};
  EXPECT_EQ(SavedBytes([&](Context& c) {
              Var sum;
              for (int i = 0; i < 3; ++i) {  // query, key and value of one input
                Var y = MatMulTransposed(c, x, Leaf({kF, kD}));
                sum = sum ? Add(c, std::move(sum), y) : std::move(y);
              }
              return sum;
            }),
            Kept(kR * kD));
}

TEST_P(AutogradTest, BackwardFreesWhatWasKept) {
  const int64_t before = MemoryOf(MemoryTag::kActivation).live;
  {
    Context c(1, GetParam());
    c.tape.mode = TapeMode::kRecord;
    Parameter p("p", RandomTensor(random_, {kR, kD}));
    const int64_t with_leaf = MemoryOf(MemoryTag::kActivation).live;
    Var y = Gated(c, Activation::kSilu, p.var(), Activate(c, Activation::kTanh, p.var()));
    const Tensor seed = y.TakeValue();
    Backward(c, y, seed);
    EXPECT_TRUE(c.tape.nodes().empty());
    EXPECT_EQ(c.tape.saved_bytes(), 0);
    EXPECT_EQ(MemoryOf(MemoryTag::kActivation).live,
              with_leaf + static_cast<int64_t>(seed.bytes()));
  }
  EXPECT_EQ(MemoryOf(MemoryTag::kActivation).live, before);
}

TEST_P(AutogradTest, GradientBytesEqualTrainableBytes) {
  const int64_t before = MemoryOf(MemoryTag::kGradient).live;
  Context c(1, GetParam());
  c.tape.mode = TapeMode::kRecord;
  ParameterList list;
  const Var scale = list.Add("scale", Random_({1, kD})).var();
  const Var w = list.Add("w", Random_({kD, kD})).var();
  const Var bias = list.Add("bias", Random_({1, kD})).var();
  Var x = Random_({kR, kD});
  for (int i = 0; i < 2; ++i) {  // each used twice
    x = AddBias(c, MatMulTransposed(c, RmsNorm(c, x, scale, 1e-6f), w), bias);
  }
  Backward(c, x, Random_({kR, kD}));
  EXPECT_EQ(MemoryOf(MemoryTag::kGradient).live - before, list.count() * 4);
  list.ZeroGradients();
  EXPECT_EQ(MemoryOf(MemoryTag::kGradient).live, before);
}

// Gradients add up over backward passes until they are cleared.
TEST_P(AutogradTest, GradientsAccumulate) {
  Context c(1, GetParam());
  c.tape.mode = TapeMode::kRecord;
  Parameter p("p", Tensor::From({1, 1}, {2}));
  const Tensor seed = Tensor::From({1, 1}, {1});
  for (int i = 1; i <= 3; ++i) {
    Backward(c, Scale(c, p.var(), 5), seed);
    EXPECT_EQ(p.gradient().f32()[0], 5 * i);
  }
  p.ZeroGradient();
  EXPECT_FALSE(p.gradient());
  EXPECT_EQ(seed.f32()[0], 1);
}

// A value that nothing reads has no gradient and costs none.
TEST_P(AutogradTest, UnreadBranchesAreSkipped) {
  Context c(1, GetParam());
  c.tape.mode = TapeMode::kRecord;
  Parameter used("used", Tensor::From({1, 1}, {2})), unused("unused", Tensor::From({1, 1}, {3}));
  const Var dead = Scale(c, unused.var(), 2);
  Backward(c, Scale(c, used.var(), 4), Tensor::From({1, 1}, {1}));
  EXPECT_EQ(used.gradient().f32()[0], 4);
  EXPECT_FALSE(unused.gradient());
}

// The residual stream, norm -> product -> add, twice. Ops may overwrite what nothing else holds;
// holding every value forbids that, so both runs must give the same bits.
TEST_P(AutogradTest, ReuseOfMemoryChangesNoBit) {
  const Tensor x0 = Random_({kR, kD}), seed = Random_({kR, kD});
  const Weight w = [&] {
    Context packing;
    return Weight::FromF32(packing, Random_({kD, kD}), DType::kF32);
  }();
  const Tensor scales = Random_({1, kD}), a = Random_({2, kD}), b = Random_({kD, 2});
  const std::vector<TaskSpan> spans = {{0, 2, 0}, {3, kR, 0}};
  const auto run = [&](bool hold) {
    Context c(1, GetParam());
    c.training = true;
    c.tape.mode = TapeMode::kRecord;
    ParameterList list;
    const Var input = list.Add("input", x0.Clone()).var();
    const Var scale = list.Add("scale", scales.Clone()).var();
    const Var low = list.Add("a", a.Clone()).var(), high = list.Add("b", b.Clone()).var();
    std::vector<Var> held;
    const auto keep = [&](Var v) {
      if (hold) held.push_back(v);
      return v;
    };
    Var x = keep(Scale(c, input, 1.5f));
    for (int i = 0; i < 3; ++i) {
      const Var n = keep(RmsNorm(c, x, scale, 1e-6f));
      Var y = keep(Linear(c, n, w));
      y = keep(AddLowRank(c, std::move(y), n, low, high, {.scale = 0.5f, .dropout = 0, .mask = {}},
                          spans));
      y = keep(Activate(c, i == 1 ? Activation::kRelu : Activation::kSilu, std::move(y)));
      y = keep(Dropout(c, std::move(y), 0.1f,
                       {.seed = 0, .step = 0, .place = static_cast<uint32_t>(i)}));
      y = keep(Gated(c, Activation::kTanh, y, n));
      x = keep(Add(c, std::move(x), y));
    }
    std::vector<float> result(x.value().values().begin(), x.value().values().end());
    Backward(c, x, seed);
    for (const Parameter& p : list) {
      result.insert(result.end(), p.gradient().values().begin(), p.gradient().values().end());
    }
    return result;
  };
  EXPECT_EQ(run(false), run(true));
}

// Under bf16 kept activations are rounded once: gradients stay near those of f32. Each of the kept
// inputs is off by 2^-9 at most; the factor is generous to their propagation.
TEST(Autograd, RoundedActivationsGiveNearGradients) {
  std::vector<std::vector<float>> gradients;
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    Random random(3);
    Context c(1, precision);
    c.tape.mode = TapeMode::kRecord;
    Parameter scale("scale", RandomTensor(random, {1, 32}));
    Var x = RandomTensor(random, {8, 32});
    for (int i = 0; i < 2; ++i) {
      const Var n = RmsNorm(c, x, scale.var(), 1e-6f);
      x = Add(c, std::move(x), Gated(c, Activation::kSilu, n, n));
    }
    Backward(c, x, RandomTensor(random, {8, 32}));
    const auto values = scale.gradient().values();
    gradients.emplace_back(values.begin(), values.end());
  }
  double difference = 0, norm = 0;
  for (size_t i = 0; i < gradients[0].size(); ++i) {
    const double d = static_cast<double>(gradients[1][i]) - static_cast<double>(gradients[0][i]);
    difference += d * d;
    norm += static_cast<double>(gradients[0][i]) * static_cast<double>(gradients[0][i]);
  }
  EXPECT_GT(difference, 0);  // it does round
  EXPECT_LT(std::sqrt(difference / norm), 8 * std::exp2(-9));
}

TEST(AutogradDeathTest, ASecondBackwardAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Context c;
  c.tape.mode = TapeMode::kRecord;
  Parameter p("p", Tensor::From({1, 1}, {2}));
  const Var y = Scale(c, p.var(), 5);
  const Tensor seed = Tensor::From({1, 1}, {1});
  Backward(c, y, seed);
  EXPECT_DEATH(Backward(c, y, seed), "already been run");
  EXPECT_DEATH(Backward(c, Var(seed), seed), "needs no gradient");
}

TEST(AutogradDeathTest, ShapesThatDoNotFitAbortWithBothShapes) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Context c;
  const Tensor a = Tensor::Zeros({2, 3}), b = Tensor::Zeros({3, 2});
  EXPECT_DEATH(Add(c, a, b), "Add: \\[2, 3\\] and \\[3, 2\\]");
  EXPECT_DEATH(MatMulTransposed(c, a, b), "\\[2, 3\\].*\\[3, 2\\]");
}

INSTANTIATE_TEST_SUITE_P(Precisions, AutogradTest,
                         testing::Values(Precision::kF32, Precision::kBF16), [](const auto& info) {
                           return info.param == Precision::kF32 ? "F32" : "BF16";
                         });

}  // namespace
}  // namespace permafrost
