// Objectives on token ids against the T5 paper's example and counts, and against enumeration of
// what may come out.
#include "peft/objectives.h"

#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/examples.h"

namespace permafrost {
namespace {

using Ids = std::vector<int32_t>;
using testing::HasSubstr;

Ids Range(int32_t first, int32_t count) {
  Ids ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

// round() in numpy's float32, halves to even, of random_spans_noise_mask's formulas.
TEST(CountNoise, IsThatOfTheT5Code) {
  struct Row {
    int64_t length;
    double density, mean_span;
    NoiseCounts expected;
  };
  for (const Row& row :
       {Row{1, .15, 3, {1, 1}}, Row{2, .15, 3, {1, 1}}, Row{9, .15, 3, {1, 1}},
        Row{10, .15, 3, {2, 1}}, Row{30, .15, 3, {4, 1}}, Row{50, .15, 3, {8, 3}},
        Row{114, .15, 3, {17, 6}}, Row{568, .15, 3, {85, 28}}, Row{1000, .5, 1.5, {500, 333}},
        Row{10, .5, 2, {5, 2}}, Row{20, .25, 2, {5, 2}}, Row{36, .25, 2, {9, 4}}}) {
    const NoiseCounts found = CountNoise(row.length, {row.density, row.mean_span});
    EXPECT_EQ(found, row.expected) << row.length << ": " << found.tokens << ", " << found.spans;
  }
  // A kept token stands before each span, where T5's code would ask for more spans than that.
  EXPECT_EQ(CountNoise(100, {.9, 1}), (NoiseCounts{90, 10}));
  EXPECT_EQ(CountNoise(5, {.99, 1}), (NoiseCounts{4, 1}));
}

// Inputs of 512 tokens are made of 568 (T5's published settings).
TEST(CountNoise, LongestText) {
  EXPECT_EQ(LongestSpanText(512, 100, {}), 568);
  for (const int64_t input : {2, 3, 5, 17, 64, 100, 511, 1024}) {
    for (const SpanCorruption& config : {SpanCorruption{}, SpanCorruption{.5, 2}}) {
      int64_t longest = 0;  // by trying
      for (int64_t n = 1; n < 4 * input; ++n) {
        const NoiseCounts noise = CountNoise(n, config);
        if (n - noise.tokens + noise.spans + 1 <= input && noise.spans < 1000) longest = n;
      }
      EXPECT_EQ(LongestSpanText(input, 1000, config), longest) << input << " " << config.density;
    }
  }
  EXPECT_EQ(LongestSpanText(1, 100, {}), 0);
  EXPECT_EQ(CountNoise(LongestSpanText(1 << 20, 100, {}), {}).spans, 99);
  EXPECT_EQ(CountNoise(LongestSpanText(1 << 20, 100, {}) + 1, {}).spans, 100);
}

// 8 items in 4 segments: C(7, 3) = 35 ways. Chi-square with 34 degrees of freedom is above 66 once
// in a thousand.
TEST(RandomSegments, EveryWayEquallyLikely) {
  constexpr int kDraws = 35 * 400;
  std::map<std::vector<int64_t>, int> seen;
  Random random(5);
  for (int i = 0; i < kDraws; ++i) ++seen[RandomSegments(8, 4, random)];
  EXPECT_EQ(seen.size(), 35u);
  double chi = 0;
  for (const auto& [lengths, count] : seen) {
    EXPECT_EQ(lengths.size(), 4u);
    EXPECT_EQ(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}), 8);
    EXPECT_GE(*std::min_element(lengths.begin(), lengths.end()), 1);
    chi += (count - 400.0) * (count - 400.0) / 400.0;
  }
  EXPECT_LT(chi, 66);
  EXPECT_EQ(RandomSegments(5, 1, random), std::vector<int64_t>{5});
  EXPECT_EQ(RandomSegments(3, 3, random), (std::vector<int64_t>{1, 1, 1}));
  EXPECT_EQ(RandomSegments(1, 1, random), std::vector<int64_t>{1});
}

TEST(SpanNoiseMask, HasTheCountsAndEndsInNoise) {
  Random random(1);
  std::set<std::vector<bool>> masks;
  for (int64_t length = 2; length < 300; length += 7) {
    for (const SpanCorruption& config : {SpanCorruption{}, SpanCorruption{.5, 1}}) {
      const std::vector<bool> mask = SpanNoiseMask(length, config, random);
      ASSERT_EQ(static_cast<int64_t>(mask.size()), length);
      NoiseCounts found;
      for (size_t i = 0; i < mask.size(); ++i) {
        found.tokens += mask[i];
        found.spans += mask[i] && (i == 0 || !mask[i - 1]);
      }
      EXPECT_EQ(found, CountNoise(length, config));
      EXPECT_FALSE(mask[0]);
      EXPECT_TRUE(mask.back());
    }
  }
  for (int i = 0; i < 50; ++i) masks.insert(SpanNoiseMask(40, {}, random));
  EXPECT_GT(masks.size(), 30u);
  EXPECT_EQ(SpanNoiseMask(1, {}, random), std::vector<bool>{false});
}

// Figure 2 of Raffel et al.: "Thank you <X> me to your party <Y> week." and "<X> for inviting <Y>
// last <Z>".
TEST(CorruptSpans, IsThePapersFigure) {
  const Ids words = Range(10, 10);  // Thank you for inviting me to your party last week
  std::vector<bool> noise(10, false);
  noise[2] = noise[3] = noise[8] = true;
  const CorruptedText text = CorruptSpans(words, noise, Ids{99, 98, 97, 96});
  EXPECT_EQ(text.input, (Ids{10, 11, 99, 14, 15, 16, 17, 98, 19}));
  EXPECT_EQ(text.target, (Ids{99, 12, 13, 98, 18, 97}));
  // Noise at both ends.
  const CorruptedText ends = CorruptSpans(Ids{1, 2, 3}, {true, false, true}, Ids{9, 8, 7});
  EXPECT_EQ(ends.input, (Ids{9, 2, 8}));
  EXPECT_EQ(ends.target, (Ids{9, 1, 8, 3, 7}));
}

// Spans put back in place of their sentinels give the text.
TEST(CorruptSpans, LosesNothing) {
  const Ids sentinels = {999, 998, 997, 996, 995, 994, 993, 992, 991, 990};
  for (int32_t length = 1; length < 60; ++length) {
    const Ids ids = Range(0, length);
    Random random = LineRandom(3, 0, static_cast<size_t>(length));
    const CorruptedText text = CorruptSpans(ids, SpanNoiseMask(length, {.3, 2}, random), sentinels);
    std::map<int32_t, Ids> spans;
    int32_t current = 0;
    for (const int32_t id : text.target) {
      if (id >= 990) {
        current = id;
        spans[id];
      } else {
        spans[current].push_back(id);
      }
    }
    Ids whole;
    for (const int32_t id : text.input) {
      if (id < 990) {
        whole.push_back(id);
        continue;
      }
      EXPECT_FALSE(spans[id].empty());
      whole.insert(whole.end(), spans[id].begin(), spans[id].end());
      spans.erase(id);
    }
    EXPECT_EQ(whole, ids);
    ASSERT_EQ(spans.size(), 1u);  // the final sentinel
    EXPECT_TRUE(spans.begin()->second.empty());
    EXPECT_EQ(spans.begin()->first, text.target.back());
  }
}

TEST(RandomPrefixLength, IsUniform) {
  std::map<int64_t, int> seen;
  Random random(2);
  for (int i = 0; i < 4000; ++i) ++seen[RandomPrefixLength(5, random)];
  ASSERT_EQ(seen.size(), 4u);  // 1 to 4
  EXPECT_EQ(seen.begin()->first, 1);
  for (const auto& [length, count] : seen) EXPECT_NEAR(count, 1000, 4 * std::sqrt(750));
  EXPECT_EQ(RandomPrefixLength(1, random), 0);
  EXPECT_EQ(RandomPrefixLength(2, random), 1);
}

TEST(CutTextIntoWindows, EveryTokenOnce) {
  for (const int64_t overlap : {0, 1, 2}) {
    for (int64_t longest = overlap + 1; longest < 9; ++longest) {
      for (int32_t length = 1; length < 30; ++length) {
        Ids joined;
        for (const TextWindow& w : CutTextIntoWindows(Range(0, length), longest, overlap)) {
          EXPECT_LE(static_cast<int64_t>(w.ids.size()), longest);
          EXPECT_EQ(w.context, joined.empty() ? 0 : std::min<int64_t>(overlap, joined.size()));
          // The context repeats what came before.
          EXPECT_TRUE(
              std::equal(w.ids.begin(), w.ids.begin() + w.context, joined.end() - w.context));
          EXPECT_GT(static_cast<int64_t>(w.ids.size()), w.context);
          joined.insert(joined.end(), w.ids.begin() + w.context, w.ids.end());
        }
        EXPECT_EQ(joined, Range(0, length)) << longest << " " << overlap;
      }
    }
  }
  const auto whole = CutTextIntoWindows(Range(0, 7), 0, 1);
  ASSERT_EQ(whole.size(), 1u);
  EXPECT_EQ(whole[0].ids, Range(0, 7));
  EXPECT_TRUE(CutTextIntoWindows(Ids{}, 4, 1).empty());
}

TEST(MakeObjectiveLine, LanguageModel) {
  ObjectiveConfig config;
  Random random(0);
  const TokenLine first = MakeObjectiveLine(config, {{1, 5, 6}, 0}, 3, random);
  EXPECT_EQ(first.input_ids, (Ids{1, 5, 6}));
  EXPECT_EQ(first.labels, (Ids{1, 5, 6}));
  EXPECT_EQ(first.task, 3);
  const TokenLine next = MakeObjectiveLine(config, {{6, 7, 8}, 1}, 0, random);
  EXPECT_EQ(next.input_ids, (Ids{6, 7, 8}));
  EXPECT_EQ(next.labels, (Ids{kIgnoredLabel, 7, 8}));
}

TEST(MakeObjectiveLine, PrefixLanguageModel) {
  const Ids text = {5, 6, 7, 8, 9};
  std::set<size_t> splits;
  for (size_t line = 0; line < 40; ++line) {
    Random a = LineRandom(1, 0, line), b = LineRandom(1, 0, line);
    ObjectiveConfig config{.objective = Objective::kPrefixLanguageModel,
                           .encoder_decoder = true,
                           .spans = {},
                           .sentinels = {},
                           .end_token = 1};
    const TokenLine t5 = MakeObjectiveLine(config, {text, 0}, 0, a);
    config.encoder_decoder = false;
    const TokenLine decoder = MakeObjectiveLine(config, {text, 0}, 0, b);
    ASSERT_GE(t5.input_ids.size(), 2u);
    const size_t split = t5.input_ids.size() - 1;
    splits.insert(split);
    EXPECT_EQ(t5.input_ids.back(), 1);
    EXPECT_EQ(t5.labels.back(), 1);
    Ids joined(t5.input_ids.begin(), t5.input_ids.end() - 1);
    joined.insert(joined.end(), t5.labels.begin(), t5.labels.end() - 1);
    EXPECT_EQ(joined, text);
    EXPECT_EQ(decoder.input_ids, text);
    for (size_t i = 0; i < text.size(); ++i) {
      EXPECT_EQ(decoder.labels[i], i < split ? kIgnoredLabel : text[i]);
    }
  }
  EXPECT_EQ(splits, (std::set<size_t>{1, 2, 3, 4}));
}

TEST(MakeObjectiveLine, SpanCorruption) {
  ObjectiveConfig config{.objective = Objective::kSpanCorruption,
                         .encoder_decoder = true,
                         .spans = {},
                         .sentinels = {99, 98, 97},
                         .end_token = 1};
  Random random(4), again(4);
  const TokenLine line = MakeObjectiveLine(config, {Range(10, 20), 0}, 0, random);
  const CorruptedText text =
      CorruptSpans(Range(10, 20), SpanNoiseMask(20, {}, again), config.sentinels);
  Ids input = text.input, target = text.target;
  input.push_back(1);
  target.push_back(1);
  EXPECT_EQ(line.input_ids, input);
  EXPECT_EQ(line.labels, target);
  EXPECT_EQ(line.input_ids.size(), 20u - 3 + 1 + 1);
  EXPECT_EQ(line.labels.size(), 3u + 1 + 1 + 1);
}

TEST(LineRandom, IsAStreamOfItsOwn) {
  std::set<std::vector<uint32_t>> seen;
  for (const uint64_t seed : {0, 1, 2}) {
    for (int64_t pass = 0; pass < 5; ++pass) {
      for (size_t line = 0; line < 50; ++line) {
        Random a = LineRandom(seed, pass, line), b = LineRandom(seed, pass, line);
        const std::vector<uint32_t> words = {a.Word(), a.Word()};
        EXPECT_EQ(words, (std::vector<uint32_t>{b.Word(), b.Word()}));
        seen.insert(words);
      }
    }
  }
  EXPECT_EQ(seen.size(), 3u * 5 * 50);
}

TEST(CheckObjective, NamesWhatDoesNotFit) {
  const auto message = [](const ObjectiveConfig& config, const char* type) {
    return std::string(CheckObjective(config, type).message());
  };
  ObjectiveConfig config;
  EXPECT_TRUE(CheckObjective(config, "llama").ok());
  config.encoder_decoder = true;
  EXPECT_THAT(message(config, "t5"), HasSubstr("expected a decoder base, found t5"));
  config.objective = Objective::kPrefixLanguageModel;
  EXPECT_THAT(message(config, "t5"), HasSubstr("end token"));
  config.end_token = 1;
  EXPECT_TRUE(CheckObjective(config, "t5").ok());
  config.objective = Objective::kSpanCorruption;
  EXPECT_THAT(message(config, "t5"), HasSubstr("<extra_id_0>"));
  config.sentinels = {99, 98};
  EXPECT_TRUE(CheckObjective(config, "t5").ok());
  for (const double density : {0.0, 1.0, -1.0, std::nan("")}) {
    config.spans.density = density;
    EXPECT_THAT(message(config, "t5"), HasSubstr("noise density"));
  }
  config.spans.density = 0.5;
  config.spans.mean_span = 0.5;
  EXPECT_THAT(message(config, "t5"), HasSubstr("mean span"));
  config.encoder_decoder = false;
  EXPECT_THAT(message(config, "gpt2"), HasSubstr("found gpt2"));
}

}  // namespace
}  // namespace permafrost
