// Presets for published classification data sets (`--task NAME`): templates, label words, metrics
// and file layout.
//
// The `input` of GLUE and SuperGLUE tasks is word for word that of T5's preprocessors (task name,
// then `column: text` for each column, sorted by name), so that models pretrained on that mixture
// know it; label words and their order are those of TensorFlow Datasets. Other tasks follow the
// same scheme. `decoder_input` is a plain prompt for decoder models.
//
// Non-goals: downloading data; tasks whose target is not one of a few labels.

#ifndef PERMAFROST_IO_TASKS_H_
#define PERMAFROST_IO_TASKS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "io/examples.h"
#include "io/table.h"

namespace permafrost {

// A column that published files call by another name than the templates do.
struct ColumnAlias {
  std::string in_file;
  std::string in_template;
  int first_index = 0;  // For a label column that counts labels from another number than 0.
};

struct TaskPreset {
  std::string name;
  std::string title;          // For help texts.
  std::string input;          // Template for encoder-decoder models.
  std::string decoder_input;  // Template for decoder models; the target follows after a space.
  std::vector<std::string> label_words;  // In label-index order.
  // Other spellings of the labels in published files, by label index; empty or as many as label
  // words.
  std::vector<std::string> label_values;
  std::vector<std::string>
      metrics;  // Names as in peft/metrics.h, the one that chooses the best model first.
  // Column names of the published file that has no header line; empty: all have one.
  std::vector<std::string> columns_without_header;
  std::vector<ColumnAlias> aliases;
};

// All presets.
const std::vector<TaskPreset>& AllTasks();

// Error: InvalidArgument that lists the names.
absl::StatusOr<const TaskPreset*> FindTask(const std::string& name);

// Templates and label words of a preset; `is_decoder` chooses the prompt and puts a space before
// the label word.
TextOptions TaskTextOptions(const TaskPreset& task, bool is_decoder);

// A data file in one of the task's layouts, its columns renamed to what the templates use.
struct TaskTable {
  Table table;
  int first_index = 0;  // For TextOptions: what the label column counts from.
};

// Reads a .tsv, .csv or .jsonl file of the task, with or without header line. Errors as in
// ReadTable.
absl::StatusOr<TaskTable> ReadTaskTable(const std::string& path, const TaskPreset& task);

}  // namespace permafrost

#endif  // PERMAFROST_IO_TASKS_H_
