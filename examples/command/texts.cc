#include "texts.h"

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/anchors.h"
#include "io/tasks.h"

namespace permafrost {

absl::StatusOr<TextOptions> TextOptionsOf(const DataFlags& flags, bool decoder,
                                          std::vector<std::string>* metrics) {
  TextOptions options;
  if (!flags.task.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(const TaskPreset* task, FindTask(flags.task));
    options = TaskTextOptions(*task, decoder);
    if (metrics != nullptr) *metrics = task->metrics;
  }
  if (!flags.input.empty()) options.input = flags.input;
  if (!flags.target.empty()) options.target = flags.target;
  if (!flags.label_words.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(options.label_words, ParseLabelWords(flags.label_words));
    options.label_values.clear();
  }
  if (flags.label_column != "label") options.label_column = flags.label_column;
  options.task_column = flags.task_column;
  if (options.input.empty()) {
    return absl::InvalidArgumentError(
        "this data needs a template: expected --task NAME or --input TEMPLATE, found neither");
  }
  return options;
}

absl::StatusOr<TextSource> ReadTexts(const std::string& path, const DataFlags& flags, bool decoder,
                                     Labels labels) {
  TextSource source;
  PERMAFROST_ASSIGN_OR_RETURN(source.options, TextOptionsOf(flags, decoder, &source.metrics));
  source.options.need_target = labels == Labels::kRequired;
  if (flags.task.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(source.table, ReadTable(path));
  } else {
    PERMAFROST_ASSIGN_OR_RETURN(const TaskPreset* task, FindTask(flags.task));
    PERMAFROST_ASSIGN_OR_RETURN(TaskTable renamed, ReadTaskTable(path, *task));
    source.table = std::move(renamed.table);
    source.options.first_index = renamed.first_index;
  }
  if (source.metrics.empty() && !source.options.label_words.empty()) source.metrics = {"accuracy"};
  TextOptions plain = source.options;
  if (HasAnchors(plain.input)) plain.input = "-";
  PERMAFROST_ASSIGN_OR_RETURN(source.examples, MakeTextExamples(source.table, plain));
  return source;
}

absl::Status AtLine(const absl::Status& status, const std::string& path, int line) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ":", line, ": ", std::string(status.message())));
}

}  // namespace permafrost
