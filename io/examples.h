// Examples for training and evaluation, in two forms: texts made from a table with templates, and
// lists of token ids.
//
// A template is text with columns in braces: "sst2 sentence: {sentence}". `{label}` stands for the
// label word (or for the text of the label column where there are no label words). \n, \t and
// \\ are a newline, a tab and a backslash; {{ and }} are literal braces.
//
// Non-goals: tokenization, batching, shuffling, truncation (the trainer's work).

#ifndef PERMAFROST_IO_EXAMPLES_H_
#define PERMAFROST_IO_EXAMPLES_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "io/table.h"

namespace permafrost {

struct TextExample {
  std::string input;
  std::string target;   // Empty where the data has no label and none is needed.
  int label = -1;       // Index into the label words; -1: no label words, or no label.
  std::string adapter;  // Name of a loaded adapter; empty: none chosen.
  int task_id = -1;     // Of multitask prompts; -1: none, or no whole number from 0.
  int line = 0;         // 1-based line of the data file.
};

struct TokenExample {
  std::vector<int> input_ids;
  std::vector<int> labels;  // kIgnoredLabel: no loss there.
  std::string adapter;
  int task_id = -1;  // Of multitask prompts; -1: none, or no whole number from 0.
  int line = 0;
};

inline constexpr int kIgnoredLabel = -100;

// A parsed template. Cheap to copy, immutable.
class TextTemplate {
 public:
  // Error (InvalidArgument): a brace without partner, empty braces.
  static absl::StatusOr<TextTemplate> Parse(const std::string& text);

  // Names in braces in order of appearance, `label` included, each once.
  std::vector<std::string> Columns() const;

  // The text with each name replaced by `lookup(name)`, a StatusOr<std::string_view>.
  template <typename Lookup>
  absl::StatusOr<std::string> Render(const Lookup& lookup) const {
    std::string result;
    for (const Part& part : parts_) {
      if (!part.is_column) {
        result += part.text;
        continue;
      }
      const absl::StatusOr<std::string_view> value = lookup(part.text);
      if (!value.ok()) return value.status();
      result += *value;
    }
    return result;
  }

 private:
  struct Part {
    bool is_column = false;
    std::string text;  // The column's name, or literal text.
  };
  std::vector<Part> parts_;
};

struct TextOptions {
  std::string input;                     // Template; must not use {label}.
  std::string target = "{label}";        // Template.
  std::vector<std::string> label_words;  // By label index; empty: not a classification.
  // Other spellings of the labels in the data, by label index ("false", "true"); empty or as many
  // as label words.
  std::vector<std::string> label_values;
  std::string label_column = "label";
  std::string task_column = "task_id";
  int first_index = 0;  // The label column may hold indices that count from this.
  bool need_target =
      true;  // False: a file without the target's columns gives examples without target and label.
};

// Splits `--label-words a,b,c`. Words are taken as they stand, spaces included.
// Error (InvalidArgument): fewer than two, an empty or a repeated word.
absl::StatusOr<std::vector<std::string>> ParseLabelWords(const std::string& text);

// One example a row. Errors (InvalidArgument): bad template, a column that the file lacks (lists
// what it has), a row without a value there, a label that is neither a label word nor an index of
// one.
absl::StatusOr<std::vector<TextExample>> MakeTextExamples(const Table& table,
                                                          const TextOptions& options);

// The target text of each label word, for scoring: the target template rendered with that word.
// Error (InvalidArgument): no label words, a target template that uses other columns than {label},
// two equal targets.
absl::StatusOr<std::vector<std::string>> LabelTargets(const TextOptions& options);

struct TokenOptions {
  int vocabulary = 0;         // Ids must be in [0, vocabulary).
  bool equal_length = false;  // Decoder models: as many labels as input ids.
  bool need_labels = true;    // False: lines may leave `labels` out.
  bool virtual_ids = false;   // -1 among input_ids is a virtual token.
};

// True if the first line that is not blank is an object with `input_ids`: the file is pre-tokenized
// JSONL. Any other extension than .jsonl is not. Errors: unreadable file, broken first line.
absl::StatusOr<bool> IsTokenFile(const std::string& path);

// Reads pre-tokenized JSONL, one {"input_ids": [...], "labels": [...], "adapter": "NAME",
// "task_id": N} a line.
// Other keys are ignored, except those by which transformers would compute something else
// (attention_mask, position_ids, ...), which are errors. Labels are ids in [0, vocabulary) or
// kIgnoredLabel. Errors (InvalidArgument, with file and line): broken JSON, missing or empty list,
// an entry that is not an integer or out of range, unequal lengths where `equal_length`, no example
// in the file.
absl::StatusOr<std::vector<TokenExample>> ReadTokenExamples(const std::string& path,
                                                            const TokenOptions& options);

// The same from text in memory; `path` only names the source in messages.
absl::StatusOr<std::vector<TokenExample>> ParseTokenExamples(std::string_view text,
                                                             const std::string& path,
                                                             const TokenOptions& options);

}  // namespace permafrost

#endif  // PERMAFROST_IO_EXAMPLES_H_
