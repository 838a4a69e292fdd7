// How lines become rows: the worked examples, shifted labels, virtual rows, choices.
#include "models/batch.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace permafrost {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

BatchLayout Layout(bool encoder_decoder, int64_t virtual_tokens) {
  return {.encoder_decoder = encoder_decoder,
          .decoder_start = 50,
          .pad = 51,
          .virtual_tokens = [=](int task) { return task == kNoTask ? 0 : virtual_tokens; },
          .first_position = [](int) { return 0; },
          .bias_shift = [](int, Stack) { return 0; }};
}

// (row, label, example) of every target.
std::vector<std::vector<int>> Targets(const Batch& batch) {
  std::vector<std::vector<int>> targets;
  for (const Target& t : batch.decoder.rows.targets) targets.push_back({t.row, t.label, t.example});
  return targets;
}

TEST(Batch, DecoderWithoutAPrompt) {
  const std::vector<TokenLine> lines = {{{1, 2, 3}, {1, -100, 3}}, {{4, 5}, {-100, 9}}};
  const Batch batch = MakeBatch(Layout(false, 3), lines, Outputs::kLabelled);
  EXPECT_EQ(batch.decoder.rows.count(), 5);
  // labels[0] has no loss; labels[i] is predicted by the row before.
  EXPECT_THAT(Targets(batch), ElementsAre(ElementsAre(1, 3, 0), ElementsAre(3, 9, 1)));
  EXPECT_THAT(batch.outputs, ElementsAre(1, 3));
  EXPECT_THAT(batch.target_outputs, ElementsAre(0, 1));
  EXPECT_THAT(batch.target_labels, ElementsAre(3, 9));
  EXPECT_THAT(batch.decoder.virtual_rows, IsEmpty());
  EXPECT_EQ(batch.encoder.rows.count(), 0);
}

// The worked example of the row forest: a prompt of 3, texts of 4 and 2 tokens.
TEST(Batch, CausalPromptIsSharedByItsLines) {
  const std::vector<TokenLine> lines = {{{1, 2, 3, 4}, {-100, -100, -100, 4}, 0},
                                        {{5, 6}, {5, 6}, 0}};
  const Batch batch = MakeBatch(Layout(false, 3), lines, Outputs::kLabelled);
  EXPECT_EQ(batch.decoder.rows.count(), 9);
  EXPECT_EQ(batch.decoder.rows.segments.size(), 3u);
  EXPECT_THAT(batch.decoder.rows.positions, ElementsAre(0, 1, 2, 3, 4, 5, 6, 3, 4));
  EXPECT_THAT(batch.decoder.lookup, ElementsAre(0, 0, 0, 1, 2, 3, 4, 5, 6));
  // The prompt's last row (2) predicts the second line's labels[0], as in PEFT.
  EXPECT_THAT(Targets(batch),
              ElementsAre(ElementsAre(5, 4, 0), ElementsAre(2, 5, 1), ElementsAre(7, 6, 1)));
  EXPECT_THAT(batch.outputs, ElementsAre(2, 5, 7));
  EXPECT_THAT(batch.target_outputs, ElementsAre(1, 0, 2));
  ASSERT_EQ(batch.decoder.virtual_rows.size(), 1u);
  EXPECT_EQ(batch.decoder.virtual_rows[0].task, 0);
  EXPECT_THAT(batch.decoder.virtual_rows[0].rows, ElementsAre(0, 1, 2));
  EXPECT_THAT(batch.decoder.virtual_rows[0].tokens, ElementsAre(0, 1, 2));
}

TEST(Batch, EachTaskHasItsPromptAndBareLinesNone) {
  const std::vector<TokenLine> lines = {
      {{1}, {1}, 1}, {{2, 3}, {2, 3}}, {{4}, {4}, 0}, {{5}, {5}, 1}};
  const Batch batch = MakeBatch(Layout(false, 2), lines, Outputs::kAll);
  // prompt 1, line 0, line 1, prompt 0, line 2, line 3
  EXPECT_EQ(batch.decoder.rows.count(), 2 + 1 + 2 + 2 + 1 + 1);
  const std::vector<Segment>& s = batch.decoder.rows.segments;
  EXPECT_EQ(s[5].parent, 0);
  EXPECT_EQ(s[2].parent, kNoParent);
  EXPECT_EQ(s[4].parent, 3);
  ASSERT_EQ(batch.decoder.virtual_rows.size(), 2u);  // by task
  EXPECT_THAT(batch.decoder.virtual_rows[0].rows, ElementsAre(5, 6));
  EXPECT_THAT(batch.decoder.virtual_rows[1].rows, ElementsAre(0, 1));
  // All text rows, and the prompts' last rows, which predict.
  EXPECT_THAT(batch.outputs, ElementsAre(1, 2, 3, 4, 6, 7, 8));
  std::vector<int> tasks;
  for (const TaskSpan& span : batch.output_spans) {
    for (int64_t i = span.begin; i < span.end; ++i) tasks.push_back(span.task);
  }
  EXPECT_THAT(tasks, ElementsAre(1, 1, kNoTask, kNoTask, 0, 0, 1));
}

TEST(Batch, EncoderDecoder) {
  const std::vector<TokenLine> lines = {{{1, 2, 3, 4}, {7, -100, 8}, 0}, {{5, 6}, {9}, 0}};
  const Batch batch = MakeBatch(Layout(true, 3), lines, Outputs::kLabelled);
  EXPECT_EQ(batch.encoder.rows.count(), 3 + 4 + 3 + 2);  // the prompt in front of each text
  ASSERT_EQ(batch.encoder.virtual_rows.size(), 1u);
  EXPECT_THAT(batch.encoder.virtual_rows[0].rows, ElementsAre(0, 1, 2, 7, 8, 9));
  EXPECT_THAT(batch.encoder.virtual_rows[0].tokens, ElementsAre(0, 1, 2, 0, 1, 2));
  // Shifted right from decoder_start, -100 as pad.
  EXPECT_THAT(batch.decoder.rows.ids, ElementsAre(50, 7, 51, 50));
  EXPECT_THAT(Targets(batch),
              ElementsAre(ElementsAre(0, 7, 0), ElementsAre(2, 8, 0), ElementsAre(3, 9, 1)));
  ASSERT_EQ(batch.cross.segments.size(), 2u);
  EXPECT_EQ(batch.cross.spans[0].length, 7);
  EXPECT_EQ(batch.cross.spans[1].begin, 7);
}

// Lines of one adapter share the root of their own prompt.
TEST(Batch, EachPromptOfATaskHasARoot) {
  const std::vector<TokenLine> lines = {{{1}, {1}, 0, 2}, {{2}, {2}, 0, 0}, {{3}, {3}, 0, 2}};
  const Batch batch = MakeBatch(Layout(false, 2), lines, Outputs::kLabelled);
  // prompt 2, line 0, prompt 0, line 1, line 2
  EXPECT_THAT(batch.decoder.rows.ids, ElementsAre(-1, -1, 1, -1, -1, 2, 3));
  const std::vector<Segment>& s = batch.decoder.rows.segments;
  EXPECT_EQ(s[4].parent, 0);
  ASSERT_EQ(batch.decoder.virtual_rows.size(), 2u);
  EXPECT_EQ(batch.decoder.virtual_rows[0].prompt, 0);
  EXPECT_THAT(batch.decoder.virtual_rows[0].rows, ElementsAre(3, 4));
  EXPECT_EQ(batch.decoder.virtual_rows[1].prompt, 2);
  EXPECT_THAT(batch.decoder.virtual_rows[1].tokens, ElementsAre(0, 1));

  const std::vector<ChoiceLine> choices = {{{1}, {{7}}, 0, 1}, {{2}, {{7}}, 0, 0}};
  for (const bool encoder_decoder : {false, true}) {
    const Batch chosen = MakeChoiceBatch(Layout(encoder_decoder, 2), choices);
    const StackRows& stack = encoder_decoder ? chosen.encoder : chosen.decoder;
    ASSERT_EQ(stack.virtual_rows.size(), 2u);
    EXPECT_THAT(stack.virtual_rows[0].rows, ElementsAre(3, 4));
    EXPECT_THAT(stack.virtual_rows[1].rows, ElementsAre(0, 1));
  }
}

// Virtual ids within a line are the adapter's tokens in order.
TEST(Batch, AnchoredTokensStayWhereTheyAre) {
  const std::vector<TokenLine> lines = {{{kVirtual, 1, kVirtual}, {-100, 1, -100}, 0},
                                        {{2, kVirtual, kVirtual}, {2, -100, -100}, 0}};
  const Batch batch = MakeBatch(Layout(false, 0), lines, Outputs::kLabelled);
  EXPECT_THAT(batch.decoder.lookup, ElementsAre(0, 1, 0, 2, 0, 0));
  EXPECT_THAT(batch.decoder.rows.positions, ElementsAre(0, 1, 2, 0, 1, 2));
  ASSERT_EQ(batch.decoder.virtual_rows.size(), 1u);
  EXPECT_THAT(batch.decoder.virtual_rows[0].rows, ElementsAre(0, 2, 4, 5));
  EXPECT_THAT(batch.decoder.virtual_rows[0].tokens, ElementsAre(0, 1, 0, 1));
  EXPECT_THAT(Targets(batch), ElementsAre(ElementsAre(0, 1, 0)));
}

TEST(Batch, NoLabels) {
  const std::vector<TokenLine> lines = {{{1, 2}, {-100, -100}}};
  const Batch batch = MakeBatch(Layout(false, 0), lines, Outputs::kLabelled);
  EXPECT_THAT(batch.outputs, IsEmpty());
  EXPECT_THAT(batch.target_labels, IsEmpty());
}

// Candidates share the text's rows; its last row predicts the first token of each.
TEST(ChoiceBatch, DecoderCandidatesAreChildren) {
  const std::vector<ChoiceLine> lines = {{{1, 2}, {{10}, {11, 12, 13}}, 0}};
  const Batch batch = MakeChoiceBatch(Layout(false, 2), lines);
  EXPECT_THAT(batch.decoder.rows.ids, ElementsAre(-1, -1, 1, 2, 11, 12));
  EXPECT_THAT(batch.decoder.rows.positions, ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(Targets(batch), ElementsAre(ElementsAre(3, 10, 0), ElementsAre(3, 11, 1),
                                          ElementsAre(4, 12, 1), ElementsAre(5, 13, 1)));
  EXPECT_THAT(batch.outputs, ElementsAre(3, 4, 5));
  EXPECT_THAT(batch.target_outputs, ElementsAre(0, 0, 1, 2));
}

TEST(ChoiceBatch, AnEmptyTextIsPredictedByThePrompt) {
  const std::vector<ChoiceLine> lines = {{{}, {{10}, {11}}, 0}};
  const Batch batch = MakeChoiceBatch(Layout(false, 2), lines);
  EXPECT_THAT(Targets(batch), ElementsAre(ElementsAre(1, 10, 0), ElementsAre(1, 11, 1)));
}

TEST(ChoiceBatch, EncoderDecoderCandidatesShareTheirSource) {
  const std::vector<ChoiceLine> lines = {{{1, 2}, {{10}, {11, 12}}, kNoTask},
                                         {{3}, {{10}}, kNoTask}};
  const Batch batch = MakeChoiceBatch(Layout(true, 2), lines);
  EXPECT_EQ(batch.encoder.rows.count(), 3);
  EXPECT_THAT(batch.decoder.rows.ids, ElementsAre(50, 50, 11, 50));
  EXPECT_EQ(batch.decoder.rows.segments[1].source, 0);
  EXPECT_EQ(batch.decoder.rows.segments[2].source, 1);
  EXPECT_THAT(Targets(batch), ElementsAre(ElementsAre(0, 10, 0), ElementsAre(1, 11, 1),
                                          ElementsAre(2, 12, 1), ElementsAre(3, 10, 2)));
}

// By task and stack, of queries: keys stay where they are, or causal rows would lose sight of them.
TEST(Batch, BiasShiftIsTheQuerySegments) {
  BatchLayout layout = Layout(true, 0);
  layout.bias_shift = [](int task, Stack stack) {
    return task == 1 ? (stack == Stack::kEncoder ? 3 : 4) : 0;
  };
  const std::vector<TokenLine> lines = {{{5, 6}, {7}, 0}, {{5, 6, 7}, {8, 9}, 1}};
  const ChoiceLine choice{.input_ids = {5, 6}, .candidates = {{7}, {8, 9}}, .task = 1};
  for (const Batch& batch :
       {MakeBatch(layout, lines, Outputs::kLabelled), MakeChoiceBatch(layout, {&choice, 1})}) {
    for (const auto& [stack, shift] :
         {std::pair(&batch.encoder, 3), std::pair(&batch.decoder, 4)}) {
      for (size_t i = 0; i < stack->self.segments.size(); ++i) {
        const Segment& segment = stack->rows.segments[i];
        EXPECT_EQ(stack->self.segments[i].bias_shift, segment.task == 1 ? shift : 0);
        EXPECT_EQ(stack->self.spans[i].position, 0);
      }
    }
  }
}

}  // namespace
}  // namespace permafrost
