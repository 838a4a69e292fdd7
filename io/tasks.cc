#include "io/tasks.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/lines.h"

namespace permafrost {
namespace {

std::vector<TaskPreset> MakeTasks() {
  const std::vector<std::string> entailment = {"entailment", "not_entailment"};
  const std::vector<std::string> sentiment = {"negative", "positive"};
  const std::vector<std::string> truth = {"False", "True"};
  const std::vector<std::string> json_truth = {"false", "true"};
  return {
      // GLUE.
      {.name = "sst2",
       .title = "SST-2 (GLUE): sentiment of a sentence",
       .input = "sst2 sentence: {sentence}",
       .decoder_input = "{sentence}\\nSentiment:",
       .label_words = sentiment,
       .label_values = {},
       .metrics = {"accuracy"},
       .columns_without_header = {},
       .aliases = {}},
      {.name = "cola",
       .title = "CoLA (GLUE): is a sentence grammatical",
       .input = "cola sentence: {sentence}",
       .decoder_input = "Sentence: {sentence}\\nGrammar:",
       .label_words = {"unacceptable", "acceptable"},
       .label_values = {},
       .metrics = {"matthews", "accuracy"},
       .columns_without_header = {"source", "label", "mark", "sentence"},
       .aliases = {}},
      {.name = "mrpc",
       .title = "MRPC (GLUE): do two sentences say the same",
       .input = "mrpc sentence1: {sentence1} sentence2: {sentence2}",
       .decoder_input =
           "Sentence 1: {sentence1}\\nSentence 2: {sentence2}\\nThe two sentences are:",
       .label_words = {"not_equivalent", "equivalent"},
       .label_values = {},
       .metrics = {"f1", "accuracy"},
       .columns_without_header = {},
       .aliases = {{"#1 String", "sentence1"}, {"#2 String", "sentence2"}, {"Quality", "label"}}},
      {.name = "qqp",
       .title = "QQP (GLUE): do two questions ask the same",
       .input = "qqp question1: {question1} question2: {question2}",
       .decoder_input =
           "Question 1: {question1}\\nQuestion 2: {question2}\\nThe two questions are:",
       .label_words = {"not_duplicate", "duplicate"},
       .label_values = {},
       .metrics = {"f1", "accuracy"},
       .columns_without_header = {"id", "qid1", "qid2", "question1", "question2", "label"},
       .aliases = {{"is_duplicate", "label"}, {"text_a", "question1"}, {"text_b", "question2"}}},
      {.name = "mnli",
       .title = "MNLI (GLUE): does a premise entail a hypothesis",
       .input = "mnli hypothesis: {hypothesis} premise: {premise}",
       .decoder_input = "Premise: {premise}\\nHypothesis: {hypothesis}\\nRelation:",
       .label_words = {"entailment", "neutral", "contradiction"},
       .label_values = {},
       .metrics = {"accuracy"},
       .columns_without_header = {},
       .aliases = {{"sentence1", "premise"},
                   {"sentence2", "hypothesis"},
                   {"text_a", "premise"},
                   {"text_b", "hypothesis"},
                   {"gold_label", "label"}}},
      {.name = "qnli",
       .title = "QNLI (GLUE): does a sentence answer a question",
       .input = "qnli question: {question} sentence: {sentence}",
       .decoder_input = "Question: {question}\\nSentence: {sentence}\\nRelation:",
       .label_words = entailment,
       .label_values = {},
       .metrics = {"accuracy"},
       .columns_without_header = {},
       .aliases = {{"text_a", "question"}, {"text_b", "sentence"}}},
      {.name = "rte",
       .title = "RTE (GLUE wording): does a text entail another",
       .input = "rte sentence1: {sentence1} sentence2: {sentence2}",
       .decoder_input = "Premise: {sentence1}\\nHypothesis: {sentence2}\\nRelation:",
       .label_words = entailment,
       .label_values = {},
       .metrics = {"accuracy"},
       .columns_without_header = {},
       .aliases = {{"premise", "sentence1"}, {"hypothesis", "sentence2"}}},
      {.name = "wnli",
       .title = "WNLI (GLUE): does a resolved pronoun follow",
       .input = "wnli sentence1: {sentence1} sentence2: {sentence2}",
       .decoder_input = "Premise: {sentence1}\\nHypothesis: {sentence2}\\nRelation:",
       .label_words = {"not_entailment", "entailment"},
       .label_values = {},
       .metrics = {"accuracy"},
       .columns_without_header = {},
       .aliases = {}},
      // SuperGLUE.
      {.name = "superglue_rte",
       .title = "RTE (SuperGLUE wording)",
       .input = "rte hypothesis: {hypothesis} premise: {premise}",
       .decoder_input = "Premise: {premise}\\nHypothesis: {hypothesis}\\nRelation:",
       .label_words = entailment,
       .label_values = {},
       .metrics = {"accuracy"},
       .columns_without_header = {},
       .aliases = {{"sentence1", "premise"}, {"sentence2", "hypothesis"}}},
      {.name = "boolq",
       .title = "BoolQ (SuperGLUE): yes-no questions on a passage",
       .input = "boolq passage: {passage} question: {question}",
       .decoder_input = "{passage}\\nQuestion: {question}?\\nAnswer:",
       .label_words = truth,
       .label_values = json_truth,
       .metrics = {"accuracy"},
       .columns_without_header = {},
       .aliases = {}},
      {.name = "cb",
       .title = "CommitmentBank (SuperGLUE): three-way entailment",
       .input = "cb hypothesis: {hypothesis} premise: {premise}",
       .decoder_input = "Premise: {premise}\\nHypothesis: {hypothesis}\\nRelation:",
       .label_words = {"entailment", "contradiction", "neutral"},
       .label_values = {},
       .metrics = {"macro_f1", "accuracy"},
       .columns_without_header = {},
       .aliases = {}},
      {.name = "copa",
       .title = "COPA (SuperGLUE): the likelier cause or effect",
       .input =
           "copa choice1: {choice1} choice2: {choice2} premise: {premise} question: {question}",
       .decoder_input = "Premise: {premise}\\nchoice1: {choice1}\\nchoice2: {choice2}\\n"
                        "The more likely {question} is",
       .label_words = {"choice1", "choice2"},
       .label_values = {},
       .metrics = {"accuracy"},
       .columns_without_header = {},
       .aliases = {}},
      {.name = "wic",
       .title = "WiC (SuperGLUE): has a word the same sense in two sentences",
       .input = "wic sentence1: {sentence1} sentence2: {sentence2} word: {word}",
       .decoder_input = "Sentence 1: {sentence1}\\nSentence 2: {sentence2}\\n"
                        "The word \"{word}\" has the same meaning in both:",
       .label_words = truth,
       .label_values = json_truth,
       .metrics = {"accuracy"},
       .columns_without_header = {},
       .aliases = {}},
      // Others.
      {.name = "ag_news",
       .title = "AG News: topic of a news item",
       .input = "ag_news description: {description}",
       .decoder_input = "{description}\\nTopic:",
       .label_words = {"World", "Sports", "Business", "Sci/Tech"},
       .label_values = {},
       .metrics = {"accuracy", "macro_f1"},
       .columns_without_header = {"description", "label"},
       .aliases = {{"Description", "description"},
                   {"text", "description"},
                   {"Class Index", "label", /*first_index=*/1}}},
      {.name = "sms_spam",
       .title = "SMS Spam Collection: is a text message spam",
       .input = "sms_spam text: {text}",
       .decoder_input = "{text}\\nThis message is",
       .label_words = {"ham", "spam"},
       .label_values = {},
       .metrics = {"accuracy", "f1"},
       .columns_without_header = {"label", "text"},
       .aliases = {}},
      {.name = "trec",
       .title = "TREC: what a question asks for (coarse)",
       .input = "trec text: {text}",
       .decoder_input = "{text}\\nThe answer is a",
       .label_words = {"abbreviation", "entity", "description", "human", "location", "number"},
       .label_values = {"ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"},
       .metrics = {"accuracy", "macro_f1"},
       .columns_without_header = {},
       .aliases = {{"coarse_label", "label"}}},
      {.name = "mr",
       .title = "Rotten Tomatoes movie reviews: sentiment of a sentence",
       .input = "mr text: {text}",
       .decoder_input = "{text}\\nSentiment:",
       .label_words = sentiment,
       .label_values = {"neg", "pos"},
       .metrics = {"accuracy"},
       .columns_without_header = {},
       .aliases = {}},
      {.name = "subj",
       .title = "Subjectivity: objective or subjective sentence",
       .input = "subj text: {text}",
       .decoder_input = "{text}\\nThis sentence is",
       .label_words = {"objective", "subjective"},
       .label_values = {"plot", "quote"},
       .metrics = {"accuracy"},
       .columns_without_header = {},
       .aliases = {}},
      {.name = "emotion",
       .title = "Emotion: feeling that a message expresses",
       .input = "emotion text: {text}",
       .decoder_input = "{text}\\nEmotion:",
       .label_words = {"sadness", "joy", "love", "anger", "fear", "surprise"},
       .label_values = {},
       .metrics = {"accuracy", "macro_f1"},
       .columns_without_header = {},
       .aliases = {{"label_name", "label"}}},
  };
}

// Every name by which a header line of the task's files can be known.
std::vector<std::string> HeaderNames(const TaskPreset& task) {
  std::vector<std::string> names = task.columns_without_header;
  for (const ColumnAlias& alias : task.aliases) names.push_back(alias.in_file);
  return names;
}

}  // namespace

const std::vector<TaskPreset>& AllTasks() {
  static const auto& tasks = *new std::vector<TaskPreset>(MakeTasks());
  return tasks;
}

absl::StatusOr<const TaskPreset*> FindTask(const std::string& name) {
  std::vector<std::string> names;
  for (const TaskPreset& task : AllTasks()) {
    if (task.name == name) return &task;
    names.push_back(task.name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown task '", name, "'; expected one of ", JoinNames(names)));
}

TextOptions TaskTextOptions(const TaskPreset& task, bool is_decoder) {
  TextOptions options;
  options.input = is_decoder ? task.decoder_input : task.input;
  options.target = is_decoder ? " {label}" : "{label}";
  options.label_words = task.label_words;
  options.label_values = task.label_values;
  return options;
}

absl::StatusOr<TaskTable> ReadTaskTable(const std::string& path, const TaskPreset& task) {
  TableOptions options;
  options.columns = task.columns_without_header;
  options.header_names = HeaderNames(task);
  absl::StatusOr<Table> table = ReadTable(path, options);
  if (!table.ok()) return table.status();
  TaskTable result{*std::move(table), 0};
  for (const ColumnAlias& alias : task.aliases) {
    const int column = result.table.Find(alias.in_file);
    if (column < 0 || result.table.Find(alias.in_template) >= 0) continue;
    result.table.columns[column] = alias.in_template;
    if (alias.in_template == TextOptions().label_column) result.first_index = alias.first_index;
  }
  return result;
}

}  // namespace permafrost
