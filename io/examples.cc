#include "io/examples.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "io/file.h"
#include "io/json.h"
#include "io/lines.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

constexpr char kLabel[] = "label";
constexpr char kAdapter[] = "adapter";

absl::Status UnknownColumn(const Table& table, const std::string& name, const std::string& user) {
  return absl::InvalidArgumentError(absl::StrCat(table.path, ": ", user, " names the column '",
                                                 name, "', which the file lacks; it has ",
                                                 JoinNames(table.columns)));
}

// Index of the label that `text` stands for, or -1.
int LabelIndex(const TextOptions& options, const std::string& text) {
  for (const std::vector<std::string>* names : {&options.label_words, &options.label_values}) {
    const auto found = std::find(names->begin(), names->end(), text);
    if (found != names->end()) return static_cast<int>(found - names->begin());
  }
  int64_t index;
  if (!absl::SimpleAtoi(text, &index)) return -1;
  index -= options.first_index;
  return index >= 0 && index < static_cast<int64_t>(options.label_words.size())
             ? static_cast<int>(index)
             : -1;
}

absl::Status UnknownLabel(const Table& table, int line, const TextOptions& options,
                          const std::string& found) {
  return LineError(
      table.path, line,
      absl::StrCat("expected one of ", JoinNames(options.label_words), ", or an index from ",
                   options.first_index, " to ",
                   options.first_index + static_cast<int>(options.label_words.size()) - 1,
                   ", in the column '", options.label_column, "', found '", found, "'"));
}

// What the rows of one table need to become examples; columns are resolved once.
class TextMaker {
 public:
  TextMaker(const Table& table, const TextOptions& options) : table_(table), options_(options) {}

  absl::Status Prepare() {
    if (!options_.label_values.empty() &&
        options_.label_values.size() != options_.label_words.size()) {
      return absl::InvalidArgumentError("label values: expected as many as label words");
    }
    absl::StatusOr<TextTemplate> input = TextTemplate::Parse(options_.input);
    if (!input.ok()) return input.status();
    input_ = *std::move(input);
    for (const std::string& column : input_.Columns()) {
      if (column == kLabel) {
        return absl::InvalidArgumentError(
            "the input template uses {label}: the model would read what it has to predict");
      }
      if (table_.Find(column) < 0) return UnknownColumn(table_, column, "the input template");
    }
    adapter_column_ = table_.Find(kAdapter);
    task_column_ = table_.Find(options_.task_column);
    return PrepareTarget();
  }

  absl::StatusOr<TextExample> Make(const TableRow& row) const {
    TextExample example;
    example.line = row.line;
    const auto cell = [&](const std::string& name) { return Cell(row, name); };
    absl::StatusOr<std::string> input = input_.Render(cell);
    if (!input.ok()) return input.status();
    example.input = *std::move(input);
    if (adapter_column_ >= 0) example.adapter = row.cells[adapter_column_].value_or("");
    if (task_column_ >= 0) {
      const std::string text = row.cells[task_column_].value_or("");
      if (!absl::SimpleAtoi(text, &example.task_id) || example.task_id < 0) example.task_id = -1;
    }
    if (!has_target_ || (!options_.need_target && !TargetIsPresent(row))) return example;

    if (HasWords()) {
      const absl::StatusOr<std::string_view> text = Cell(row, options_.label_column);
      if (!text.ok()) return text.status();
      example.label = LabelIndex(options_, std::string(*text));
      if (example.label < 0) {
        return UnknownLabel(table_, row.line, options_, std::string(*text));
      }
    }
    absl::StatusOr<std::string> target =
        target_.Render([&](const std::string& name) -> absl::StatusOr<std::string_view> {
          if (name != kLabel) return Cell(row, name);
          if (HasWords()) return std::string_view(options_.label_words[example.label]);
          return Cell(row, options_.label_column);
        });
    if (!target.ok()) return target.status();
    example.target = *std::move(target);
    return example;
  }

 private:
  bool HasWords() const { return !options_.label_words.empty(); }

  absl::Status PrepareTarget() {
    absl::StatusOr<TextTemplate> target = TextTemplate::Parse(options_.target);
    if (!target.ok()) return target.status();
    target_ = *std::move(target);
    target_columns_ = target_.Columns();
    std::replace(target_columns_.begin(), target_columns_.end(), std::string(kLabel),
                 options_.label_column);
    if (HasWords()) target_columns_.push_back(options_.label_column);
    if (target_columns_.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the target template '", options_.target,
                       "' names no column; expected {label} or {COLUMN}"));
    }
    for (const std::string& column : target_columns_) {
      if (table_.Find(column) >= 0) continue;
      if (!options_.need_target) {
        has_target_ = false;
        return absl::OkStatus();
      }
      return UnknownColumn(table_, column,
                           column == options_.label_column ? "the label" : "the target template");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::string_view> Cell(const TableRow& row, const std::string& name) const {
    const std::optional<std::string>& cell = row.cells[table_.Find(name)];
    if (cell.has_value()) return std::string_view(*cell);
    return LineError(table_.path, row.line,
                     absl::StrCat("expected a string, a number, true or false under '", name,
                                  "', found nothing of these"));
  }

  bool TargetIsPresent(const TableRow& row) const {
    return std::all_of(target_columns_.begin(), target_columns_.end(), [&](const auto& column) {
      return row.cells[table_.Find(column)].has_value();
    });
  }

  const Table& table_;
  const TextOptions& options_;
  TextTemplate input_;
  TextTemplate target_;
  std::vector<std::string> target_columns_;  // With {label} replaced by the label column.
  bool has_target_ = true;
  int adapter_column_ = -1;
  int task_column_ = -1;
};

// Keys by which transformers computes something else than this engine would without them.
constexpr const char* kRefusedKeys[] = {"attention_mask",    "decoder_attention_mask",
                                        "decoder_input_ids", "position_ids",
                                        "token_type_ids",    "inputs_embeds"};

absl::StatusOr<std::vector<int>> IdList(const nlohmann::json& object, const char* key,
                                        const TokenOptions& options, const std::string& path,
                                        int line) {
  const auto entry = object.find(key);
  if (entry == object.end() || !entry->is_array() || entry->empty()) {
    return LineError(path, line,
                     absl::StrCat("expected a list of token ids under '", key, "', found ",
                                  entry == object.end() ? "no such key" : DescribeJson(*entry)));
  }
  const bool may_be_ignored = std::string_view(key) == "labels";
  std::vector<int> ids;
  ids.reserve(entry->size());
  for (const nlohmann::json& value : *entry) {
    // An unsigned number beyond int64 must not wrap around into the valid range.
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() || value.get<uint64_t>() <= INT32_MAX);
    const int64_t id = fits ? value.get<int64_t>() : -1;
    const bool is_id = fits && id >= 0 && id < options.vocabulary;
    const bool is_ignored = fits && may_be_ignored && id == kIgnoredLabel;
    const bool is_virtual = fits && !may_be_ignored && options.virtual_ids && id == -1;
    if (!is_id && !is_ignored && !is_virtual) {
      return LineError(
          path, line,
          absl::StrCat(key, "[", ids.size(), "]: expected an integer from 0 to ",
                       options.vocabulary - 1, may_be_ignored ? " or -100 (no loss)" : "",
                       ", found ", DescribeJson(value)));
    }
    ids.push_back(static_cast<int>(id));
  }
  return ids;
}

absl::StatusOr<TokenExample> ParseTokenLine(const nlohmann::json& object,
                                            const TokenOptions& options, const std::string& path,
                                            int line) {
  for (const char* key : kRefusedKeys) {
    if (!object.contains(key)) continue;
    return LineError(path, line,
                     absl::StrCat("'", key,
                                  "' is not supported; expected input_ids, labels and "
                                  "adapter, without padding"));
  }
  TokenExample example;
  example.line = line;
  absl::StatusOr<std::vector<int>> ids = IdList(object, "input_ids", options, path, line);
  if (!ids.ok()) return ids.status();
  example.input_ids = *std::move(ids);
  if (options.need_labels || object.contains("labels")) {
    absl::StatusOr<std::vector<int>> labels = IdList(object, "labels", options, path, line);
    if (!labels.ok()) return labels.status();
    example.labels = *std::move(labels);
    if (options.equal_length && example.labels.size() != example.input_ids.size()) {
      return LineError(path, line,
                       absl::StrCat("expected as many labels as input_ids (a decoder model; -100 = "
                                    "no loss), found ",
                                    example.input_ids.size(), " input_ids and ",
                                    example.labels.size(), " labels"));
    }
  }
  if (const auto adapter = object.find(kAdapter); adapter != object.end() && !adapter->is_null()) {
    if (!adapter->is_string()) {
      return LineError(
          path, line,
          absl::StrCat("expected a string under 'adapter', found ", DescribeJson(*adapter)));
    }
    example.adapter = adapter->get<std::string>();
  }
  if (const auto task = object.find("task_id");
      task != object.end() && task->is_number_unsigned() && *task <= INT32_MAX) {
    example.task_id = task->get<int>();
  }
  return example;
}

}  // namespace

absl::StatusOr<TextTemplate> TextTemplate::Parse(const std::string& text) {
  TextTemplate result;
  std::string literal;
  const auto error = [&](size_t position, const char* problem) {
    return absl::InvalidArgumentError(absl::StrCat("template '", text, "', character ",
                                                   position + 1, ": ", problem,
                                                   "; write {{ and }} for literal braces"));
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const char next = i + 1 < text.size() ? text[i + 1] : '\0';
    if (c == '\\' && (next == 'n' || next == 't' || next == '\\')) {
      literal.push_back(next == 'n' ? '\n' : next == 't' ? '\t' : '\\');
      ++i;
    } else if ((c == '{' || c == '}') && next == c) {
      literal.push_back(c);
      ++i;
    } else if (c == '}') {
      return error(i, "a closing brace without an opening one");
    } else if (c == '{') {
      const size_t close = text.find_first_of("{}", i + 1);
      if (close == std::string::npos || text[close] == '{') {
        return error(i, "an opening brace that is not closed");
      }
      if (close == i + 1) return error(i, "no column name between the braces");
      if (!literal.empty()) result.parts_.push_back({false, std::exchange(literal, {})});
      result.parts_.push_back({true, text.substr(i + 1, close - i - 1)});
      i = close;
    } else {
      literal.push_back(c);
    }
  }
  if (!literal.empty()) result.parts_.push_back({false, literal});
  return result;
}

std::vector<std::string> TextTemplate::Columns() const {
  std::vector<std::string> columns;
  for (const Part& part : parts_) {
    if (!part.is_column) continue;
    if (std::find(columns.begin(), columns.end(), part.text) == columns.end()) {
      columns.push_back(part.text);
    }
  }
  return columns;
}

absl::StatusOr<std::vector<std::string>> ParseLabelWords(const std::string& text) {
  std::vector<std::string> words = absl::StrSplit(text, ',');
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i].empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("label words '", text, "': word ", i, " is empty"));
    }
    if (std::find(words.begin(), words.begin() + i, words[i]) != words.begin() + i) {
      return absl::InvalidArgumentError(
          absl::StrCat("label words '", text, "': '", words[i], "' occurs twice"));
    }
  }
  if (words.size() < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "label words '", text, "': expected at least two words with commas between them"));
  }
  return words;
}

absl::StatusOr<std::vector<TextExample>> MakeTextExamples(const Table& table,
                                                          const TextOptions& options) {
  TextMaker maker(table, options);
  if (absl::Status status = maker.Prepare(); !status.ok()) return status;
  std::vector<TextExample> examples;
  examples.reserve(table.rows.size());
  for (const TableRow& row : table.rows) {
    absl::StatusOr<TextExample> example = maker.Make(row);
    if (!example.ok()) return example.status();
    examples.push_back(*std::move(example));
  }
  return examples;
}

absl::StatusOr<std::vector<std::string>> LabelTargets(const TextOptions& options) {
  const absl::StatusOr<TextTemplate> target = TextTemplate::Parse(options.target);
  if (!target.ok()) return target.status();
  const std::vector<std::string> columns = target->Columns();
  if (options.label_words.empty() || columns.size() != 1 || columns[0] != kLabel) {
    return absl::InvalidArgumentError(absl::StrCat(
        "scoring labels needs label words and a target template that uses {label} "
        "and no other column, found ",
        options.label_words.size(), " label words and the target template '", options.target, "'"));
  }
  std::vector<std::string> targets;
  for (const std::string& word : options.label_words) {
    const absl::StatusOr<std::string> text =
        target->Render([&](const std::string&) -> absl::StatusOr<std::string_view> {
          return std::string_view(word);
        });
    if (!text.ok()) return text.status();
    if (std::find(targets.begin(), targets.end(), *text) != targets.end()) {
      return absl::InvalidArgumentError(absl::StrCat("the label word '", word, "' occurs twice"));
    }
    targets.push_back(*text);
  }
  return targets;
}

absl::StatusOr<bool> IsTokenFile(const std::string& path) {
  const absl::StatusOr<TableFormat> format = TableFormatOf(path);
  if (!format.ok()) return format.status();
  if (*format != TableFormat::kJsonl) return false;
  const absl::StatusOr<std::string> content = ReadFile(path);
  if (!content.ok()) return content.status();
  std::optional<bool> has_ids;
  const absl::Status status =
      ForEachJsonLine(*content, path, [&](int, const nlohmann::json& object) -> absl::Status {
        has_ids = object.contains("input_ids");
        return absl::CancelledError();  // The first object decides.
      });
  if (has_ids.has_value()) return *has_ids;
  if (!status.ok()) return status;
  return false;
}

absl::StatusOr<std::vector<TokenExample>> ParseTokenExamples(std::string_view text,
                                                             const std::string& path,
                                                             const TokenOptions& options) {
  std::vector<TokenExample> examples;
  const absl::Status status =
      ForEachJsonLine(text, path, [&](int line, const nlohmann::json& object) -> absl::Status {
        absl::StatusOr<TokenExample> example = ParseTokenLine(object, options, path, line);
        if (!example.ok()) return example.status();
        examples.push_back(*std::move(example));
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  if (examples.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": the file is empty; expected {\"input_ids\": [...], \"labels\": [...]} a line"));
  }
  return examples;
}

absl::StatusOr<std::vector<TokenExample>> ReadTokenExamples(const std::string& path,
                                                            const TokenOptions& options) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  return ParseTokenExamples(*text, path, options);
}

}  // namespace permafrost
