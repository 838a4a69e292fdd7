// Row forests: the worked examples of docs and engine/rows.h, and what attention reads of them.
#include "engine/rows.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace permafrost {
namespace {

using testing::ElementsAre;

// Rows that each query row may read, from the plan alone; causal as in kernels/attention.h.
std::vector<std::vector<int64_t>> Visible(const AttentionPlan& plan, int64_t rows, bool causal) {
  std::vector<std::vector<int64_t>> visible(static_cast<size_t>(rows));
  for (const kernels::QuerySegment& s : plan.segments) {
    for (int64_t i = 0; i < s.length; ++i) {
      for (int64_t k = s.span_begin; k < s.span_begin + s.span_count; ++k) {
        const kernels::KeySpan& span = plan.spans[static_cast<size_t>(k)];
        for (int64_t j = 0; j < span.length; ++j) {
          if (causal && span.position + j > s.position + i) continue;
          visible[static_cast<size_t>(s.begin + i)].push_back(span.begin + j);
        }
      }
    }
  }
  return visible;
}

MATCHER_P3(SpanIs, begin, end, task, "") {
  return arg.begin == begin && arg.end == end && arg.task == task;
}

// Llama, soft prompt of 3, texts of 4 and 2 tokens: 9 rows.
TEST(Rows, SharedCausalPrompt) {
  Rows rows;
  const int prompt = rows.Add({kVirtual, kVirtual, kVirtual}, kNoParent, 0);
  EXPECT_EQ(rows.Add({10, 11, 12, 13}, prompt, 0), 1);
  EXPECT_EQ(rows.Add({20, 21}, prompt, 0), 2);
  EXPECT_EQ(rows.count(), 9);
  EXPECT_THAT(rows.positions, ElementsAre(0, 1, 2, 3, 4, 5, 6, 3, 4));
  EXPECT_THAT(rows.ids, ElementsAre(-1, -1, -1, 10, 11, 12, 13, 20, 21));
  const auto visible = Visible(rows.SelfPlan(), 9, true);
  EXPECT_THAT(visible[0], ElementsAre(0));
  EXPECT_THAT(visible[2], ElementsAre(0, 1, 2));
  EXPECT_THAT(visible[3], ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(visible[6], ElementsAre(0, 1, 2, 3, 4, 5, 6));
  EXPECT_THAT(visible[7], ElementsAre(0, 1, 2, 7));  // not the other text
  EXPECT_THAT(visible[8], ElementsAre(0, 1, 2, 7, 8));
  EXPECT_THAT(rows.TaskSpans(), ElementsAre(SpanIs(0, 9, 0)));
}

// Scoring: a text and its labels as children; a prompt above both.
TEST(Rows, ThreeLevels) {
  Rows rows;
  const int prompt = rows.Add({kVirtual}, kNoParent, 0);
  const int text = rows.Add({1, 2}, prompt, 0);
  rows.Add({3}, text, 0);
  rows.Add({4, 5}, text, 0);
  EXPECT_THAT(rows.positions, ElementsAre(0, 1, 2, 3, 3, 4));
  const auto visible = Visible(rows.SelfPlan(), 6, true);
  EXPECT_THAT(visible[3], ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(visible[4], ElementsAre(0, 1, 2, 4));
  EXPECT_THAT(visible[5], ElementsAre(0, 1, 2, 4, 5));
}

// T5, the same prompt: each text's segment holds its own virtual rows; two candidates each read
// their source.
TEST(Rows, EncoderDecoder) {
  Rows encoder, decoder;
  encoder.Add({kVirtual, kVirtual, kVirtual, 1, 2, 3, 4}, kNoParent, 0);
  encoder.Add({kVirtual, kVirtual, kVirtual, 5, 6}, kNoParent, 0);
  for (const int source : {0, 0, 1, 1}) decoder.Add({0, 7}, kNoParent, 0, source);
  const auto self = Visible(encoder.SelfPlan(), 12, false);
  EXPECT_THAT(self[0], ElementsAre(0, 1, 2, 3, 4, 5, 6));  // bidirectional
  EXPECT_THAT(self[11], ElementsAre(7, 8, 9, 10, 11));
  EXPECT_THAT(encoder.positions, ElementsAre(0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4));
  const auto cross = Visible(decoder.CrossPlan(encoder), 8, false);
  for (const int row : {0, 1, 2, 3}) {
    EXPECT_THAT(cross[static_cast<size_t>(row)], ElementsAre(0, 1, 2, 3, 4, 5, 6));
  }
  for (const int row : {4, 5, 6, 7}) {
    EXPECT_THAT(cross[static_cast<size_t>(row)], ElementsAre(7, 8, 9, 10, 11));
  }
  const auto causal = Visible(decoder.SelfPlan(), 8, true);
  EXPECT_THAT(causal[5], ElementsAre(4, 5));
}

TEST(Rows, TwoTasksAndBareLines) {
  Rows rows;
  const int x = rows.Add({kVirtual, kVirtual}, kNoParent, 0);
  const int y = rows.Add({kVirtual}, kNoParent, 1);
  rows.Add({1, 2}, x, 0);
  rows.Add({3}, y, 1);
  rows.Add({4, 5});
  EXPECT_THAT(rows.TaskSpans(), ElementsAre(SpanIs(0, 2, 0), SpanIs(2, 3, 1), SpanIs(3, 5, 0),
                                            SpanIs(5, 6, 1), SpanIs(6, 8, kNoTask)));
  const auto visible = Visible(rows.SelfPlan(), 8, true);
  EXPECT_THAT(visible[3], ElementsAre(0, 1, 3));
  EXPECT_THAT(visible[5], ElementsAre(2, 5));
  EXPECT_THAT(visible[7], ElementsAre(6, 7));
}

TEST(Rows, EmptySegments) {
  Rows rows;
  const int empty = rows.Add({}, kNoParent, 3);
  rows.Add({1, 2}, empty, 3);
  EXPECT_THAT(rows.positions, ElementsAre(0, 1));
  EXPECT_THAT(rows.TaskSpans(), ElementsAre(SpanIs(0, 2, 3)));
  EXPECT_THAT(Visible(rows.SelfPlan(), 2, true)[1], ElementsAre(0, 1));
  EXPECT_TRUE(Rows().TaskSpans().empty());
}

TEST(GatherTaskSpans, FollowsTheGatheredRows) {
  const std::vector<TaskSpan> spans = {{0, 2, 0}, {2, 5, 1}, {5, 8, 0}};
  EXPECT_THAT(GatherTaskSpans(spans, {1, 3, 4, 6, 7, 7}),
              ElementsAre(SpanIs(0, 1, 0), SpanIs(1, 3, 1), SpanIs(3, 6, 0)));
  EXPECT_TRUE(GatherTaskSpans(spans, {}).empty());
}

TEST(RowsDeathTest, BadReferencesAbort) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Rows rows;
  EXPECT_DEATH(rows.Add({1}, 0), "parent 0 of 0");
  rows.Add({1});
  EXPECT_DEATH(rows.CrossPlan(Rows()), "no source");
  const std::vector<TaskSpan> spans = {{0, 2, 0}};
  EXPECT_DEATH(GatherTaskSpans(spans, {2}), "row 2 is in no span");
}

}  // namespace
}  // namespace permafrost
