// Mixtures: exact counts, no line twice before all others, and a run on drawn lines that is
// interrupted at any step and resumed ends in the same bits.
#include "peft/mixture.h"

#include <unistd.h>

#include <map>
#include <set>

#include "peft/objectives.h"
#include "peft/trainer.h"
#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

using Counts = std::vector<int64_t>;

TEST(Quotas, ProportionalWithACap) {
  EXPECT_EQ(ProportionalQuotas({10, 200, 5000}, 0, 1), (Counts{10, 200, 5000}));
  EXPECT_EQ(ProportionalQuotas({10, 200, 5000}, 300, 1), (Counts{10, 200, 300}));
  // Square roots 10, 20, 30 of 1400 lines.
  EXPECT_EQ(ProportionalQuotas({100, 400, 900}, 0, 2), (Counts{233, 467, 700}));
  EXPECT_EQ(ProportionalQuotas({100, 400, 900}, 400, 2), (Counts{180, 360, 360}));
  EXPECT_EQ(ProportionalQuotas({100, 900}, 0, 1e-3), (Counts{1, 1000}));
  // Equal mixing in the limit.
  EXPECT_EQ(ProportionalQuotas({1, 29}, 0, 1e9), (Counts{15, 15}));
}

TEST(Quotas, ByRates) {
  EXPECT_EQ(SplitByShares(100, {1, 1, 2}), (Counts{25, 25, 50}));
  EXPECT_EQ(SplitByShares(10, {1, 1, 1}), (Counts{4, 3, 3}));
  EXPECT_EQ(SplitByShares(7, {0.5, 0.25, 0.25}), (Counts{3, 2, 2}));
  EXPECT_EQ(SplitByShares(10, {1e-9, 1}), (Counts{1, 10}));  // none is left out
}

TEST(MixtureEpoch, CountsAndOrder) {
  const std::vector<MixturePart> parts = {{5, 3}, {4, 10}, {7, 7}};
  std::map<size_t, int> seen;
  std::set<std::vector<size_t>> orders;
  for (int64_t epoch = 0; epoch < 6; ++epoch) {
    const std::vector<LineDraw> draws = MixtureEpoch(parts, true, 9, epoch);
    ASSERT_EQ(draws.size(), 20u);
    Counts of(3);
    std::vector<size_t> order;
    for (const LineDraw& draw : draws) {
      ++of[draw.line < 5 ? 0 : draw.line < 9 ? 1 : 2];
      order.push_back(draw.line);
      ++seen[draw.line];
    }
    EXPECT_EQ(of, (Counts{3, 10, 7}));
    orders.insert(order);
    // Every line of a part as often as the others, give or take the pass that is under way.
    for (const auto& [begin, end] : {std::pair(0, 5), std::pair(5, 9), std::pair(9, 16)}) {
      int least = 1000, most = 0;
      for (int line = begin; line < end; ++line) {
        least = std::min(least, seen[static_cast<size_t>(line)]);
        most = std::max(most, seen[static_cast<size_t>(line)]);
      }
      EXPECT_LE(most - least, 1);
    }
    EXPECT_EQ(draws, MixtureEpoch(parts, true, 9, epoch));
  }
  EXPECT_EQ(orders.size(), 6u);
  EXPECT_NE(MixtureEpoch(parts, true, 9, 0), MixtureEpoch(parts, true, 10, 0));
  // Mixed well: the parts do not stand one behind the other.
  std::vector<int> part;
  for (const LineDraw& draw : MixtureEpoch({{50, 50}, {50, 50}}, true, 1, 0)) {
    part.push_back(draw.line < 50);
  }
  EXPECT_FALSE(std::is_sorted(part.begin(), part.end()));
}

TEST(MixtureEpoch, FileOrder) {
  const std::vector<MixturePart> parts = {{3, 2}, {2, 3}};
  EXPECT_EQ(MixtureEpoch(parts, false, 0, 0),
            (std::vector<LineDraw>{{0, 0}, {1, 0}, {3, 0}, {4, 0}, {3, 1}}));
  EXPECT_EQ(MixtureEpoch(parts, false, 0, 1),
            (std::vector<LineDraw>{{2, 0}, {0, 1}, {4, 1}, {3, 2}, {4, 2}}));
}

TEST(MicroBatch, FollowsTheMixture) {
  TrainOptions o;
  o.mixture = {{5, 3}, {4, 10}};
  o.batch_size = 4;
  o.seed = 2;
  for (int64_t epoch : {0, 1, 2}) {
    std::vector<LineDraw> draws;
    for (int64_t i = 0; i < 4; ++i) {
      const std::vector<LineDraw> part = MicroBatch(9, o, 4 * epoch + i);
      EXPECT_EQ(part.size(), i < 3 ? 4u : 1u);
      draws.insert(draws.end(), part.begin(), part.end());
    }
    EXPECT_EQ(draws, MixtureEpoch(o.mixture, true, 2, epoch));
  }
  // One file: each line once an epoch, its pass the epoch.
  o.mixture.clear();
  std::set<size_t> lines;
  for (const int64_t i : {3, 4, 5}) {
    for (const LineDraw& draw : MicroBatch(9, o, i)) {
      EXPECT_EQ(draw.pass, 1);
      lines.insert(draw.line);
    }
  }
  EXPECT_EQ(lines.size(), 9u);
}

// Spans are drawn anew in every pass, and a resumed run draws what it would have drawn.
class DrawnLinesTest : public testing::Test {
 protected:
  DrawnLinesTest() {
    config_.objective = Objective::kSpanCorruption;
    config_.encoder_decoder = true;
    config_.spans = {.5, 2};
    config_.sentinels = {130, 129, 128, 127, 126, 125, 124, 123};
    config_.end_token = 1;
    for (int32_t i = 0; i < 9; ++i) {
      std::vector<int32_t> ids;
      for (int32_t k = 0; k < 6 + 2 * i; ++k) ids.push_back(2 + (7 * i + 3 * k) % 120);
      windows_.push_back({ids, 0});
    }
    folder_ = absl::StrCat(testing::TempDir(), "/drawn_lines_", getpid());
  }
  ~DrawnLinesTest() override { std::filesystem::remove_all(folder_); }

  TokenLine Line(const LineDraw& draw) {
    drawn_.push_back(draw);
    Random random = LineRandom(3, draw.pass, draw.line);
    return MakeObjectiveLine(config_, windows_[draw.line], 0, random);
  }
  // Parameters after the run; it stops and resumes after `stop` steps.
  std::vector<float> RunWith(int64_t stop) {
    std::filesystem::remove_all(folder_);
    drawn_.clear();
    std::vector<float> values;
    for (const bool resume : {false, true}) {
      if (resume && stop == 0) break;
      GoldenWorld w = OpenGoldenWorld("t5-v1_1-1");
      Adapter adapter = FreshAdapter(PromptConfig(4), 0, *w.context, *w.model);
      TrainOptions o;
      o.out = folder_;
      o.steps = 7;
      o.batch_size = 3;
      o.optimizer.learning_rate = 0.1;
      o.seed = 3;
      o.mixture = {{5, 3}, {4, 5}};
      o.make_line = [this](const LineDraw& draw) { return Line(draw); };
      o.resume = resume;
      std::atomic<bool> interrupt{false};
      TrainEvents events;
      events.interrupt = &interrupt;
      events.on_step = [&](const StepReport& r) { interrupt = r.step == stop; };
      std::vector<TokenLine> lines;
      for (size_t i = 0; i < windows_.size(); ++i) lines.push_back(Line({i, 0}));
      drawn_.resize(drawn_.size() - windows_.size());
      const auto result = Train(*w.context, *w.model, adapter, lines, nullptr, o, events);
      EXPECT_TRUE(result.ok()) << result.status();
      const absl::Span<const float> now = adapter.method->parameters()[0].value().values();
      values.assign(now.begin(), now.end());
    }
    return values;
  }

  ObjectiveConfig config_;
  std::vector<TextWindow> windows_;
  std::vector<LineDraw> drawn_;
  std::string folder_;
};

TEST_F(DrawnLinesTest, ResumedRunsDrawTheSame) {
  const std::vector<float> whole = RunWith(0);
  const std::vector<LineDraw> drawn = drawn_;
  std::set<int64_t> passes;
  for (const LineDraw& draw : drawn) passes.insert(draw.pass);
  EXPECT_GE(passes.size(), 3u);  // 7 steps of 3, epochs of 8, of which 5 from 4 lines
  for (const int64_t stop : {1, 3, 6}) {
    EXPECT_EQ(RunWith(stop), whole) << stop;
    EXPECT_EQ(drawn_, drawn) << stop;
  }
  // Drawn anew: the same line differs from pass to pass.
  EXPECT_NE(Line({8, 0}).input_ids, Line({8, 1}).input_ids);
}

}  // namespace
}  // namespace permafrost
