// Gradients of ops that read the row forest: rotary positions, attention, row and column selection.
#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

RopeTable MakeTable(int64_t positions, int64_t half) {
  RopeTable table{Tensor({positions, half}), Tensor({positions, half})};
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * std::pow(50.0, -static_cast<double>(i));
      table.cos.row(p)[i] = static_cast<float>(std::cos(angle));
      table.sin.row(p)[i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

TEST(RowsGradient, Rope) {
  Random random(1);
  const RopeTable table = MakeTable(8, 3);
  const std::vector<int32_t> positions = {0, 5, 2, 7};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) { return Rope(c, v[0], table, positions, 2); },
      {RandomTensor(random, {4, 12})});
}

// A shared prompt of 2 with texts of 3 and 2 rows, and a tree of depth 3.
AttentionPlan ForestPlan(Rows& rows) {
  const int prompt = rows.Add({1, 2});
  const int text = rows.Add({3, 4, 5}, prompt);
  rows.Add({6, 7}, prompt);
  rows.Add({8}, text);
  return rows.SelfPlan();
}

TEST(RowsGradient, CausalAttentionOverAForestWithGroupedHeads) {
  Random random(2);
  Rows rows;
  const AttentionPlan plan = ForestPlan(rows);
  const AttentionOptions options{
      .heads = 4, .key_heads = 2, .head_size = 3, .scale = 0.6f, .causal = true};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return Attention(c, v[0], v[1], v[2], {}, plan, options);
      },
      {RandomTensor(random, {8, 12}), RandomTensor(random, {8, 6}), RandomTensor(random, {8, 6})},
      {.steps = 16});
}

// T5's way: bidirectional, unscaled, a trainable bias table spread over clamped distances.
TEST(RowsGradient, AttentionWithATrainableBias) {
  Random random(3);
  Rows rows;
  rows.Add({1, 2, 3, 4, 5});
  rows.Add({6, 7});
  const AttentionPlan plan = rows.SelfPlan();
  const std::vector<int32_t> buckets = {3, 3, 1, 0, 2, 4, 4};  // distances -3 .. 3
  const AttentionOptions options{
      .heads = 2, .key_heads = 2, .head_size = 3, .scale = 1, .causal = false, .bias_distance = 3};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return Attention(c, v[0], v[1], v[2], SpreadBuckets(c, v[3], buckets), plan, options);
      },
      {RandomTensor(random, {7, 6}), RandomTensor(random, {7, 6}), RandomTensor(random, {7, 6}),
       RandomTensor(random, {5, 2})},
      {.steps = 16});
}

// Two prefixes on some rows each, one with a gate, one with gates for keys and values.
TEST(RowsGradient, CausalAttentionWithPrefixes) {
  Random random(5);
  Rows rows;
  const AttentionPlan plan = ForestPlan(rows);
  const AttentionOptions options{
      .heads = 4, .key_heads = 2, .head_size = 3, .scale = 0.6f, .causal = true};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        const AttentionPrefix gated{.keys = v[3],
                                    .values = v[4],
                                    .gate = v[5],
                                    .segments = {{.begin = 0, .length = 2, .position = 0},
                                                 {.begin = 5, .length = 3, .position = 2}}};
        const AttentionPrefix gated_apart{.keys = v[6],
                                          .values = v[7],
                                          .gate = v[8],
                                          .segments = {{.begin = 1, .length = 3, .position = 1}}};
        return Attention(c, v[0], v[1], v[2], {}, plan, options, {gated, gated_apart});
      },
      {RandomTensor(random, {8, 12}), RandomTensor(random, {8, 6}), RandomTensor(random, {8, 6}),
       RandomTensor(random, {2, 6}), RandomTensor(random, {2, 6}), RandomTensor(random, {8, 1}),
       RandomTensor(random, {3, 6}), RandomTensor(random, {3, 6}), RandomTensor(random, {8, 2})},
      {.steps = 16});
}

// A prefix at positions -2 and -1 under T5's position bias.
TEST(RowsGradient, AttentionWithABiasedPrefix) {
  Random random(6);
  Rows rows;
  rows.Add({1, 2, 3, 4, 5});
  rows.Add({6, 7});
  const AttentionPlan plan = rows.SelfPlan();
  const std::vector<int32_t> buckets = {3, 3, 1, 0, 2, 4, 4};  // distances -3 .. 3
  const AttentionOptions options{
      .heads = 2, .key_heads = 2, .head_size = 3, .scale = 1, .causal = true, .bias_distance = 3};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        const AttentionPrefix prefix{.keys = v[4],
                                     .values = v[5],
                                     .gate = {},
                                     .biased = true,
                                     .position = -2,
                                     .segments = {{.begin = 0, .length = 5, .position = 0},
                                                  {.begin = 5, .length = 2, .position = 0}}};
        return Attention(c, v[0], v[1], v[2], SpreadBuckets(c, v[3], buckets), plan, options,
                         {prefix});
      },
      {RandomTensor(random, {7, 6}), RandomTensor(random, {7, 6}), RandomTensor(random, {7, 6}),
       RandomTensor(random, {5, 2}), RandomTensor(random, {2, 6}), RandomTensor(random, {2, 6})},
      {.steps = 24});
}

// A prefix is the same as rows of keys and values in front, which every row sees.
TEST(RowsForward, PrefixEqualsKeysInFront) {
  Random random(8);
  constexpr int64_t kRows = 5, kPrefix = 3;
  const Tensor q = RandomTensor(random, {kRows, 8}), k = RandomTensor(random, {kPrefix + kRows, 4}),
               v = RandomTensor(random, {kPrefix + kRows, 4});
  const AttentionOptions options{
      .heads = 4, .key_heads = 2, .head_size = 2, .scale = 0.5f, .causal = true};
  AttentionPlan joined;
  joined.segments = {{0, kRows, kPrefix, 0, 1}};
  joined.spans = {{0, kPrefix + kRows, 0}};
  Rows rows;
  rows.Add({1, 2, 3, 4, 5});
  const AttentionPlan plan = rows.SelfPlan();
  Context c;
  const Tensor want = Attention(c, q, k, v, {}, joined, options).value();
  const AttentionPrefix prefix{.keys = k.RowRange(0, kPrefix),
                               .values = v.RowRange(0, kPrefix),
                               .gate = {},
                               .segments = {{.begin = 0, .length = kRows, .position = 0}}};
  const Tensor got = Attention(c, q, k.RowRange(kPrefix, kRows), v.RowRange(kPrefix, kRows), {},
                               plan, options, {prefix})
                         .value();
  for (int64_t i = 0; i < want.count(); ++i) {
    EXPECT_NEAR(got.f32()[i], want.f32()[i], 2e-6) << "element " << i;
  }
}

// Row i of the mean is written out here for each pooling: a shared prompt of virtual rows, texts.
TEST(RowsGradient, PooledGate) {
  Random random(9);
  Rows rows;
  const int prompt = rows.Add({kVirtual, kVirtual, 3});
  const int text = rows.Add({3, 4, 5}, prompt);
  rows.Add({6, 7}, prompt);
  rows.Add({8}, text);
  const Pooling pooling = rows.MeanPooling();
  const Tensor logits = RandomTensor(random, {9, 1});
  Context c;
  const auto mean = [&](std::initializer_list<int> counted) {
    double sum = 0;
    for (const int i : counted) sum += 1 / (1 + std::exp(-static_cast<double>(logits.f32()[i])));
    return counted.size() == 0 ? 0 : sum / static_cast<double>(counted.size());
  };
  const std::vector<double> want_running = {mean({}),     mean({}),        mean({2}),
                                            mean({2, 3}), mean({2, 3, 4}), mean({2, 3, 4, 5}),
                                            mean({2, 6}), mean({2, 6, 7}), mean({2, 3, 4, 5, 8})};
  const std::vector<double> want_segment = {
      mean({2}),          mean({2}),          mean({2}),
      mean({2, 3, 4, 5}), mean({2, 3, 4, 5}), mean({2, 3, 4, 5}),
      mean({2, 6, 7}),    mean({2, 6, 7}),    mean({2, 3, 4, 5, 8})};
  const Tensor got_running = PooledGate(c, logits, pooling, MeanOver::kRunning).value(),
               got_segment = PooledGate(c, logits, pooling, MeanOver::kWhole).value();
  for (size_t i = 0; i < 9; ++i) {
    EXPECT_NEAR(got_running.f32()[i], want_running[i], 5e-7) << "row " << i;
    EXPECT_NEAR(got_segment.f32()[i], want_segment[i], 5e-7) << "row " << i;
  }
  for (const MeanOver over : {MeanOver::kRunning, MeanOver::kWhole}) {
    CheckGradients([&](Context& ctx,
                       const std::vector<Var>& v) { return PooledGate(ctx, v[0], pooling, over); },
                   {RandomTensor(random, {9, 2})}, {.steps = 16});
  }
}

TEST(RowsGradient, TakePutAndScaleRows) {
  Random random(10);
  const std::vector<TaskSpan> spans = {{1, 3, 0}, {5, 6, 0}};
  CheckGradients([&](Context& c, const std::vector<Var>& v) { return TakeRows(c, v[0], spans); },
                 {RandomTensor(random, {7, 4})});
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) { return PutRows(c, v[0], v[1], spans); },
      {RandomTensor(random, {7, 4}), RandomTensor(random, {3, 4})});
  CheckGradients([](Context& c, const std::vector<Var>& v) { return ScaleRows(c, v[0], v[1]); },
                 {RandomTensor(random, {7, 4}), RandomTensor(random, {7, 1})});
}

TEST(RowsGradient, CrossAttentionWithASharedSource) {
  Random random(4);
  Rows encoder, decoder;
  encoder.Add({1, 2, 3});
  encoder.Add({4, 5});
  decoder.Add({0, 1}, kNoParent, kNoTask, 1);
  decoder.Add({0, 1, 2}, kNoParent, kNoTask, 0);
  decoder.Add({0}, kNoParent, kNoTask, 0);
  const AttentionPlan plan = decoder.CrossPlan(encoder);
  const AttentionOptions options{
      .heads = 2, .key_heads = 2, .head_size = 2, .scale = 1, .causal = false};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return Attention(c, v[0], v[1], v[2], {}, plan, options);
      },
      {RandomTensor(random, {6, 4}), RandomTensor(random, {5, 4}), RandomTensor(random, {5, 4})},
      {.steps = 16});
}

TEST(RowsGradient, Columns) {
  Random random(5);
  CheckGradients([](Context& c, const std::vector<Var>& v) { return Columns(c, v[0], 2, 3); },
                 {RandomTensor(random, {4, 7})});
  // The parts of one fused projection meet in one slot.
  CheckGradients(
      [](Context& c, const std::vector<Var>& v) {
        return Add(c, Columns(c, v[0], 0, 3), Columns(c, v[0], 2, 3));
      },
      {RandomTensor(random, {4, 7})});
}

TEST(RowsGradient, GatherRowsWithRepeatedIds) {
  Random random(6);
  const std::vector<int32_t> ids = {2, 0, 2, 2, 4};
  CheckGradients([&](Context& c, const std::vector<Var>& v) { return GatherRows(c, v[0], ids); },
                 {RandomTensor(random, {5, 3})});
}

// Row 1 of the source stands in two places (an encoder prompt in front of two texts), row 2 in
// none.
TEST(RowsGradient, ReplaceRows) {
  Random random(7);
  const std::vector<int32_t> rows = {0, 1, 4}, source_rows = {0, 1, 1};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) {
        return ReplaceRows(c, v[0], rows, v[1], source_rows);
      },
      {RandomTensor(random, {6, 3}), RandomTensor(random, {3, 3})});
}

TEST(RowsGradient, SpreadBuckets) {
  Random random(8);
  const std::vector<int32_t> buckets = {0, 2, 2, 1, 0};
  CheckGradients(
      [&](Context& c, const std::vector<Var>& v) { return SpreadBuckets(c, v[0], buckets); },
      {RandomTensor(random, {3, 4})});
}

}  // namespace
}  // namespace permafrost
