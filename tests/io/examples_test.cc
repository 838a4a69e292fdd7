#include "io/examples.h"

#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace permafrost {
namespace {

Table MakeTable(std::string_view text, TableFormat format = TableFormat::kTsv) {
  const absl::StatusOr<Table> table = ParseTable(text, "d.tsv", format);
  EXPECT_TRUE(table.ok()) << table.status();
  return *table;
}

TextOptions Sst2() {
  TextOptions options;
  options.input = "sst2 sentence: {sentence}";
  options.label_words = {"negative", "positive"};
  return options;
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

std::string Rendered(const std::string& text) {
  const absl::StatusOr<TextTemplate> parsed = TextTemplate::Parse(text);
  if (!parsed.ok()) return Message(parsed.status());
  return *parsed->Render([](const std::string& name) -> absl::StatusOr<std::string_view> {
    return name == "a" ? "A" : "?";
  });
}

TEST(TextTemplate, EscapesBracesAndColumns) {
  EXPECT_EQ(Rendered("x {a}{b}"), "x A?");
  EXPECT_EQ(Rendered("{a}\\n\\tz\\\\n\\q"), "A\n\tz\\n\\q");
  EXPECT_EQ(Rendered("{{a}} {{{a}}}"), "{a} {A}");
  EXPECT_EQ(Rendered(""), "");
  EXPECT_EQ(Rendered("ends in \\"), "ends in \\");
  EXPECT_EQ(TextTemplate::Parse("{b} {a} {b} {label}")->Columns(),
            (std::vector<std::string>{"b", "a", "label"}));
}

TEST(TextTemplate, Errors) {
  const std::string hint = "; write {{ and }} for literal braces";
  EXPECT_EQ(Rendered("a {b"),
            "template 'a {b', character 3: an opening brace that is not closed" + hint);
  EXPECT_EQ(Rendered("{a{b}}"),
            "template '{a{b}}', character 1: an opening brace that is not closed" + hint);
  EXPECT_EQ(Rendered("a}b"),
            "template 'a}b', character 2: a closing brace without an opening one" + hint);
  EXPECT_EQ(Rendered("a {} b"),
            "template 'a {} b', character 3: no column name between the braces" + hint);
}

TEST(LabelWords, Parse) {
  EXPECT_EQ(*ParseLabelWords("negative,positive"),
            (std::vector<std::string>{"negative", "positive"}));
  EXPECT_EQ(Message(ParseLabelWords("a,,b").status()), "label words 'a,,b': word 1 is empty");
  EXPECT_EQ(Message(ParseLabelWords("a,b,a").status()), "label words 'a,b,a': 'a' occurs twice");
  EXPECT_FALSE(ParseLabelWords("a").ok());
}

TEST(TextExamples, WordsAndIndices) {
  const Table table = MakeTable("sentence\tlabel\tadapter\nbad \tnegative\t\n\ngood\t1\tmovies\n");
  const auto examples = MakeTextExamples(table, Sst2());
  ASSERT_TRUE(examples.ok()) << examples.status();
  ASSERT_EQ(examples->size(), 2u);
  EXPECT_EQ((*examples)[0].input, "sst2 sentence: bad ");
  EXPECT_EQ((*examples)[0].target, "negative");
  EXPECT_EQ((*examples)[0].label, 0);
  EXPECT_EQ((*examples)[0].adapter, "");
  EXPECT_EQ((*examples)[0].line, 2);
  EXPECT_EQ((*examples)[1].target, "positive");
  EXPECT_EQ((*examples)[1].label, 1);
  EXPECT_EQ((*examples)[1].adapter, "movies");
  EXPECT_EQ((*examples)[1].line, 4);
}

TEST(TextExamples, WordsWinOverIndices) {
  TextOptions options = Sst2();
  options.label_words = {"1", "0"};
  const auto examples = MakeTextExamples(MakeTable("sentence\tlabel\nx\t1\ny\t0\n"), options);
  ASSERT_TRUE(examples.ok());
  EXPECT_EQ((*examples)[0].label, 0);
  EXPECT_EQ((*examples)[1].label, 1);
}

TEST(TextExamples, OtherSpellingsAndFirstIndex) {
  TextOptions options = Sst2();
  options.label_values = {"neg", "pos"};
  options.first_index = 1;
  const auto examples =
      MakeTextExamples(MakeTable("sentence\tlabel\nx\tpos\ny\t1\nz\t2\n"), options);
  ASSERT_TRUE(examples.ok());
  EXPECT_EQ((*examples)[0].label, 1);
  EXPECT_EQ((*examples)[1].label, 0);
  EXPECT_EQ((*examples)[2].label, 1);
}

TEST(TextExamples, FreeTargets) {
  TextOptions options;
  options.input = "{mr}\\n";
  options.target = "{ref}";
  auto examples = MakeTextExamples(MakeTable("mr\tref\na\tb\n"), options);
  ASSERT_TRUE(examples.ok()) << examples.status();
  EXPECT_EQ((*examples)[0].input, "a\n");
  EXPECT_EQ((*examples)[0].target, "b");
  EXPECT_EQ((*examples)[0].label, -1);
  options.target = "<{label}>";  // Without label words: the column's text.
  examples = MakeTextExamples(MakeTable("mr\tlabel\na\tanything\n"), options);
  ASSERT_TRUE(examples.ok()) << examples.status();
  EXPECT_EQ((*examples)[0].target, "<anything>");
}

TEST(TextExamples, LabelsMayBeMissingForPrediction) {
  TextOptions options = Sst2();
  options.need_target = false;
  auto examples = MakeTextExamples(MakeTable("sentence\nx\n"), options);
  ASSERT_TRUE(examples.ok()) << examples.status();
  EXPECT_EQ((*examples)[0].target, "");
  EXPECT_EQ((*examples)[0].label, -1);
  const std::string_view mixed =
      "{\"sentence\": \"x\", \"label\": 1}\n{\"sentence\": \"y\"}\n{\"sentence\": \"z\", "
      "\"label\": 7}\n";
  const Table table = MakeTable(mixed, TableFormat::kJsonl);
  EXPECT_EQ(Message(MakeTextExamples(table, options).status()),
            "d.tsv:3: expected one of negative, positive, or an index from 0 to 1, in the column "
            "'label', found '7'");
  options.need_target = true;
  EXPECT_EQ(Message(MakeTextExamples(table, options).status()),
            "d.tsv:2: expected a string, a number, true or false under 'label', found nothing of "
            "these");
}

TEST(TextExamples, Errors) {
  TextOptions options = Sst2();
  EXPECT_EQ(Message(MakeTextExamples(MakeTable("text\tlabel\nx\t0\n"), options).status()),
            "d.tsv: the input template names the column 'sentence', which the file lacks; it has "
            "text, label");
  EXPECT_EQ(
      Message(MakeTextExamples(MakeTable("sentence\tgold\nx\t0\n"), options).status()),
      "d.tsv: the label names the column 'label', which the file lacks; it has sentence, gold");
  for (const std::string bad : {"2", "-1", "Positive", "", " 1x", "99999999999999999999"}) {
    const auto examples =
        MakeTextExamples(MakeTable("sentence\tlabel\nx\t0\n\ny\t" + bad + "\n"), options);
    EXPECT_EQ(Message(examples.status()),
              "d.tsv:4: expected one of negative, positive, or an index from 0 to 1, in the column "
              "'label', found '" +
                  bad + "'");
  }
  options.input = "{sentence} {label}";
  EXPECT_FALSE(MakeTextExamples(MakeTable("sentence\tlabel\nx\t0\n"), options).ok());
  options = Sst2();
  options.target = "constant";
  options.label_words.clear();
  EXPECT_FALSE(MakeTextExamples(MakeTable("sentence\tlabel\nx\t0\n"), options).ok());
}

TEST(LabelTargets, RendersEachWord) {
  TextOptions options = Sst2();
  options.target = " {label}.";
  EXPECT_EQ(*LabelTargets(options), (std::vector<std::string>{" negative.", " positive."}));
  options.target = "{label} {sentence}";
  EXPECT_FALSE(LabelTargets(options).ok());
  options = Sst2();
  options.label_words.clear();
  EXPECT_FALSE(LabelTargets(options).ok());
}

absl::StatusOr<std::vector<TokenExample>> Tokens(std::string_view text, bool equal_length = true,
                                                 bool need_labels = true) {
  return ParseTokenExamples(text, "t.jsonl", {/*vocabulary=*/10, equal_length, need_labels});
}

TEST(TokenExamples, Read) {
  const auto examples = Tokens(
      "{\"input_ids\": [5, 6, 9], \"labels\": [-100, 6, 0], \"text\": \"ignored\"}\n\n"
      "{\"input_ids\": [1], \"labels\": [2], \"adapter\": \"x\"}\n");
  ASSERT_TRUE(examples.ok()) << examples.status();
  ASSERT_EQ(examples->size(), 2u);
  EXPECT_EQ((*examples)[0].input_ids, (std::vector<int>{5, 6, 9}));
  EXPECT_EQ((*examples)[0].labels, (std::vector<int>{-100, 6, 0}));
  EXPECT_EQ((*examples)[0].adapter, "");
  EXPECT_EQ((*examples)[0].line, 1);
  EXPECT_EQ((*examples)[1].adapter, "x");
  EXPECT_EQ((*examples)[1].line, 3);
}

TEST(TokenExamples, LengthsMayDifferForT5) {
  const std::string_view line = "\n{\"input_ids\": [5, 6, 1], \"labels\": [9, 1]}\n";
  EXPECT_TRUE(Tokens(line, /*equal_length=*/false).ok());
  EXPECT_EQ(Message(Tokens(line).status()),
            "t.jsonl:2: expected as many labels as input_ids (a decoder model; -100 = no loss), "
            "found 3 input_ids and 2 labels");
}

TEST(TokenExamples, LabelsMayBeLeftOut) {
  EXPECT_FALSE(Tokens("{\"input_ids\": [1]}").ok());
  const auto examples = Tokens("{\"input_ids\": [1]}", true, /*need_labels=*/false);
  ASSERT_TRUE(examples.ok());
  EXPECT_TRUE((*examples)[0].labels.empty());
}

TEST(TokenExamples, Errors) {
  EXPECT_EQ(Message(Tokens("\n{\"input_ids\": [1, 10], \"labels\": [1, 1]}").status()),
            "t.jsonl:2: input_ids[1]: expected an integer from 0 to 9, found 10");
  EXPECT_EQ(Message(Tokens("{\"input_ids\": [1], \"labels\": [-1]}").status()),
            "t.jsonl:1: labels[0]: expected an integer from 0 to 9 or -100 (no loss), found -1");
  for (const std::string bad : {"-100", "1.0", "\"1\"", "null", "true", "[1]", "4294967297",
                                "18446744073709551615", "-9223372036854775808"}) {
    const auto examples = Tokens("{\"input_ids\": [" + bad + "], \"labels\": [1]}");
    EXPECT_EQ(Message(examples.status()).find("t.jsonl:1: input_ids[0]: expected an integer"), 0u)
        << bad << ": " << examples.status();
  }
  for (const std::string bad :
       {"{\"labels\": [1]}", "{\"input_ids\": [], \"labels\": []}", "{\"input_ids\": 3}",
        "{\"input_ids\": [1]}", "{\"input_ids\": [1], \"labels\": []}", "[1]", "{", "1"}) {
    EXPECT_EQ(Message(Tokens("{\"input_ids\": [1], \"labels\": [1]}\n" + bad).status())
                  .find("t.jsonl:2: "),
              0u)
        << bad;
  }
  EXPECT_EQ(Message(Tokens("{\"input_ids\": [1], \"labels\": [1], \"adapter\": 3}").status()),
            "t.jsonl:1: expected a string under 'adapter', found 3");
  EXPECT_NE(
      Message(Tokens("{\"input_ids\": [1], \"labels\": [1], \"attention_mask\": [1]}").status())
          .find("'attention_mask' is not supported"),
      std::string::npos);
  EXPECT_EQ(Message(Tokens("\n").status()).find("t.jsonl: the file is empty"), 0u);
}

TEST(TokenExamples, FilesAreToldApartByTheirFirstLine) {
  const std::string path = testing::TempDir() + "/examples_test.jsonl";
  const auto is_tokens = [&](const std::string& text) {
    std::ofstream(path) << text;
    return IsTokenFile(path);
  };
  EXPECT_TRUE(*is_tokens("\n{\"input_ids\": [1]}\nbroken"));
  EXPECT_FALSE(*is_tokens("{\"text\": \"x\"}\n"));
  EXPECT_FALSE(*is_tokens(""));
  EXPECT_FALSE(is_tokens("{\n").ok());
  EXPECT_FALSE(*IsTokenFile("x.tsv"));
  EXPECT_FALSE(IsTokenFile("x.bin").ok());
}

TEST(ExamplesProperty, RandomTextNeverCrashes) {
  std::mt19937 random(9);
  const std::string likely = "{}{}\\ntlabel\"input_ids[]:,1-";
  const Table table = MakeTable("sentence\tlabel\nx\t0\n");
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (int n = random() % 40; n > 0; --n) text += likely[random() % likely.size()];
    TextOptions options = Sst2();
    options.input = text;
    options.target = text;
    (void)MakeTextExamples(table, options);
    (void)LabelTargets(options);
    (void)ParseLabelWords(text);
    (void)Tokens("{\"input_ids\": [" + text + "], \"labels\": [1]}");
  }
}

}  // namespace
}  // namespace permafrost
