// Rows in these tests are in the layout of the published files, with made-up or very short texts.

#include "io/tasks.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <string>

#include "gtest/gtest.h"

namespace permafrost {
namespace {

std::string WriteFile(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + "/tasks_test_" + name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

absl::StatusOr<std::vector<TextExample>> Read(const std::string& path, const std::string& task,
                                              bool is_decoder = false) {
  const absl::StatusOr<const TaskPreset*> preset = FindTask(task);
  if (!preset.ok()) return preset.status();
  const absl::StatusOr<TaskTable> table = ReadTaskTable(path, **preset);
  if (!table.ok()) return table.status();
  TextOptions options = TaskTextOptions(**preset, is_decoder);
  options.first_index = table->first_index;
  return MakeTextExamples(table->table, options);
}

// `LINE: input => target #label` of the first example.
std::string First(const std::string& file, const std::string& text, const std::string& task,
                  bool is_decoder = false) {
  const auto examples = Read(WriteFile(file, text), task, is_decoder);
  if (!examples.ok()) return std::string(examples.status().message());
  const TextExample& example = examples->front();
  return std::to_string(example.line) + ": " + example.input + " => " + example.target + " #" +
         std::to_string(example.label);
}

TEST(Tasks, AreWellFormed) {
  const std::set<std::string> metrics = {"accuracy", "f1", "macro_f1", "matthews"};
  std::set<std::string> names;
  for (const TaskPreset& task : AllTasks()) {
    SCOPED_TRACE(task.name);
    EXPECT_TRUE(names.insert(task.name).second);
    EXPECT_FALSE(task.title.empty());
    EXPECT_GE(task.label_words.size(), 2u);
    EXPECT_TRUE(task.label_values.empty() || task.label_values.size() == task.label_words.size());
    ASSERT_FALSE(task.metrics.empty());
    for (const std::string& metric : task.metrics) {
      EXPECT_TRUE(metrics.count(metric)) << metric;
      if (metric == "f1") {
        EXPECT_EQ(task.label_words.size(), 2u);
      }
    }
    auto input = TextTemplate::Parse(task.input);
    auto decoder_input = TextTemplate::Parse(task.decoder_input);
    ASSERT_TRUE(input.ok()) << input.status();
    ASSERT_TRUE(decoder_input.ok()) << decoder_input.status();
    std::vector<std::string> columns = input->Columns();
    std::vector<std::string> decoder_columns = decoder_input->Columns();
    std::sort(columns.begin(), columns.end());
    std::sort(decoder_columns.begin(), decoder_columns.end());
    EXPECT_EQ(columns, decoder_columns);
    EXPECT_TRUE(LabelTargets(TaskTextOptions(task, true)).ok());
    for (const ColumnAlias& alias : task.aliases) {
      EXPECT_TRUE(alias.in_template == "label" ||
                  std::count(columns.begin(), columns.end(), alias.in_template) == 1)
          << alias.in_template;
    }
  }
}

TEST(Tasks, UnknownNameListsThem) {
  const std::string message(FindTask("sst3").status().message());
  EXPECT_EQ(message.find("unknown task 'sst3'; expected one of sst2, cola, "), 0u) << message;
}

TEST(Tasks, Sst2) {
  EXPECT_EQ(First("a.tsv", "sentence\tlabel\nso good \t1\n", "sst2"),
            "2: sst2 sentence: so good  => positive #1");
  EXPECT_EQ(First("a.tsv", "sentence\tlabel\nso good\t1\n", "sst2", true),
            "2: so good\nSentiment: =>  positive #1");
}

TEST(Tasks, ColaHasNoHeaderLine) {
  EXPECT_EQ(First("a.tsv", "gj04\t0\t*\tHim run.\n", "cola"),
            "1: cola sentence: Him run. => unacceptable #0");
  const auto task = FindTask("cola");
  const auto test = ReadTaskTable(WriteFile("b.tsv", "index\tsentence\n0\tHe runs.\n"), **task);
  ASSERT_TRUE(test.ok());
  TextOptions options = TaskTextOptions(**task, false);
  options.need_target = false;
  const auto examples = MakeTextExamples(test->table, options);
  ASSERT_TRUE(examples.ok()) << examples.status();
  EXPECT_EQ((*examples)[0].input, "cola sentence: He runs.");
}

TEST(Tasks, MrpcOriginalFile) {
  EXPECT_EQ(
      First("a.tsv",
            "\xEF\xBB\xBFQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n0\t1\t2\ta \"b\"\tc\r\n",
            "mrpc"),
      "2: mrpc sentence1: a \"b\" sentence2: c => not_equivalent #0");
}

TEST(Tasks, QqpWithAndWithoutHeaderLine) {
  const std::string expected = "qqp question1: a? question2: b? => duplicate #1";
  EXPECT_EQ(First("a.tsv", "1\t2\t3\ta?\tb?\t1\n", "qqp"), "1: " + expected);
  EXPECT_EQ(
      First("a.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta?\tb?\t1\n",
            "qqp"),
      "2: " + expected);
  EXPECT_EQ(First("a.tsv", "1\t2\t3\ta?\tb? 0\n", "qqp").find("a.tsv:1: expected 6 columns"),
            testing::TempDir().size() + std::string("/tasks_test_").size());
}

TEST(Tasks, MnliGlueFile) {
  EXPECT_EQ(
      First("a.tsv",
            "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tP.\tH.\tneutral\tcontradiction\n",
            "mnli"),
      "2: mnli hypothesis: H. premise: P. => contradiction #2");
}

TEST(Tasks, QnliAndWnli) {
  EXPECT_EQ(First("a.tsv", "index\tquestion\tsentence\tlabel\n0\tQ?\tS.\tnot_entailment\n", "qnli"),
            "2: qnli question: Q? sentence: S. => not_entailment #1");
  EXPECT_EQ(First("a.tsv", "index\tsentence1\tsentence2\tlabel\n1\tA.\tB.\t1\n", "wnli"),
            "2: wnli sentence1: A. sentence2: B. => entailment #1");
}

TEST(Tasks, RteInBothWordingsAndLayouts) {
  const std::string json =
      "{\"premise\": \"P.\", \"hypothesis\": \"H.\", \"label\": \"not_entailment\", \"idx\": 0}\n";
  const std::string tsv = "index\tsentence1\tsentence2\tlabel\n0\tP.\tH.\tentailment\n";
  EXPECT_EQ(First("a.jsonl", json, "rte"),
            "1: rte sentence1: P. sentence2: H. => not_entailment #1");
  EXPECT_EQ(First("a.tsv", tsv, "rte"), "2: rte sentence1: P. sentence2: H. => entailment #0");
  EXPECT_EQ(First("a.jsonl", json, "superglue_rte"),
            "1: rte hypothesis: H. premise: P. => not_entailment #1");
  EXPECT_EQ(First("a.tsv", tsv, "superglue_rte"),
            "2: rte hypothesis: H. premise: P. => entailment #0");
}

TEST(Tasks, SuperGlueFiles) {
  EXPECT_EQ(First("a.jsonl",
                  "{\"question\": \"is it\", \"passage\": \"It is.\", \"idx\": 3, \"label\": true}",
                  "boolq"),
            "1: boolq passage: It is. question: is it => True #1");
  EXPECT_EQ(
      First("a.jsonl", "{\"premise\": \"P\", \"hypothesis\": \"H\", \"label\": \"contradiction\"}",
            "cb"),
      "1: cb hypothesis: H premise: P => contradiction #1");
  EXPECT_EQ(First("a.jsonl",
                  "{\"premise\": \"P.\", \"choice1\": \"A.\", \"choice2\": \"B.\", \"question\": "
                  "\"cause\", \"label\": 1, \"idx\": 0}",
                  "copa"),
            "1: copa choice1: A. choice2: B. premise: P. question: cause => choice2 #1");
  EXPECT_EQ(
      First("a.jsonl",
            "{\"word\": \"w\", \"sentence1\": \"A.\", \"sentence2\": \"B.\", \"label\": false, "
            "\"version\": 1.1}",
            "wic"),
      "1: wic sentence1: A. sentence2: B. word: w => False #0");
}

TEST(Tasks, AgNewsCountsFromOneInTheOfficialFile) {
  EXPECT_EQ(First("a.csv", "Class Index,Title,Description\n4,T,\"D, \"\"q\"\"\"\n", "ag_news"),
            "2: ag_news description: D, \"q\" => Sci/Tech #3");
  EXPECT_EQ(First("a.tsv", "D.\tWorld\n", "ag_news"), "1: ag_news description: D. => World #0");
  EXPECT_EQ(First("a.jsonl", "{\"text\": \"D.\", \"label\": 3}", "ag_news"),
            "1: ag_news description: D. => Sci/Tech #3");
  const std::string error = First("a.csv", "Class Index,Title,Description\n0,T,D\n", "ag_news");
  EXPECT_NE(
      error.find(":2: expected one of World, Sports, Business, Sci/Tech, or an index from 1 to 4"),
      std::string::npos)
      << error;
}

TEST(Tasks, OtherTexts) {
  EXPECT_EQ(First("a.tsv", "spam\tFree \"entry\"\r\n", "sms_spam"),
            "1: sms_spam text: Free \"entry\" => spam #1");
  EXPECT_EQ(First("a.tsv", "text\tlabel\nHow ?\tDESC\n", "trec"),
            "2: trec text: How ? => description #2");
  EXPECT_EQ(First("a.tsv", "text\tlabel\nfine .\tpos\n", "mr"),
            "2: mr text: fine . => positive #1");
  EXPECT_EQ(First("a.tsv", "text\tlabel\nhe leaves .\tplot\n", "subj"),
            "2: subj text: he leaves . => objective #0");
  EXPECT_EQ(First("a.tsv", "text\tlabel_name\ni am glad\tjoy\n", "emotion"),
            "2: emotion text: i am glad => joy #1");
}

// The data that comes with the repository: balanced, and no text in both files.
TEST(Tasks, BundledSmsSpam) {
  const std::string folder = std::string(PERMAFROST_SOURCE_DIR) + "/examples/data/sms_spam/";
  const auto train = Read(folder + "train.tsv", "sms_spam");
  const auto eval = Read(folder + "eval.tsv", "sms_spam");
  ASSERT_TRUE(train.ok()) << train.status();
  ASSERT_TRUE(eval.ok()) << eval.status();
  const auto spam = [](const std::vector<TextExample>& examples) {
    return std::count_if(examples.begin(), examples.end(),
                         [](const auto& e) { return e.label == 1; });
  };
  EXPECT_EQ(train->size(), 770u);
  EXPECT_EQ(spam(*train), 385);
  EXPECT_EQ(eval->size(), 400u);
  EXPECT_EQ(spam(*eval), 200);
  std::set<std::string> texts;
  for (const auto* examples : {&*train, &*eval}) {
    for (const TextExample& example : *examples) {
      EXPECT_TRUE(texts.insert(example.input).second) << example.line;
    }
  }
}

}  // namespace
}  // namespace permafrost
