#include "io/table.h"

#include <algorithm>
#include <cstddef>
#include <unordered_map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "io/file.h"
#include "io/json.h"
#include "io/lines.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

// More is a file of another kind; the bound keeps a hostile file from costing rows x keys of
// memory.
constexpr size_t kMaxColumns = 1000;

struct Fields {
  int line = 0;
  std::vector<std::string> values;
};

std::vector<Fields> SplitTsv(std::string_view text) {
  std::vector<Fields> records;
  for (LineReader reader(text); reader.Next();) {
    if (reader.line().empty()) continue;
    records.push_back({reader.number(), absl::StrSplit(std::string(reader.line()), '\t')});
  }
  return records;
}

// Reads one CSV record; `position` and `line` move past it.
class CsvReader {
 public:
  CsvReader(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  bool AtEnd() const { return position_ >= text_.size(); }

  absl::StatusOr<Fields> NextRecord() {
    Fields record{line_, {}};
    for (;;) {
      std::string field;
      if (!AtEnd() && text_[position_] == '"') {
        if (absl::Status status = ReadQuoted(&field); !status.ok()) return status;
      } else {
        ReadPlain(&field);
      }
      record.values.push_back(std::move(field));
      if (!AtEnd() && text_[position_] == ',') {
        ++position_;
        continue;
      }
      SkipLineEnd();
      return record;
    }
  }

 private:
  // A carriage return counts as a line end only right before a line feed or the end of the text.
  bool AtLineEnd() const {
    if (AtEnd() || text_[position_] == '\n') return true;
    if (text_[position_] != '\r') return false;
    return position_ + 1 == text_.size() || text_[position_ + 1] == '\n';
  }

  void SkipLineEnd() {
    if (!AtEnd() && text_[position_] == '\r') ++position_;
    if (!AtEnd() && text_[position_] == '\n') {
      ++position_;
      ++line_;
    }
  }

  void ReadPlain(std::string* field) {
    while (!AtLineEnd() && text_[position_] != ',') field->push_back(text_[position_++]);
  }

  absl::Status ReadQuoted(std::string* field) {
    const int opened_on = line_;
    ++position_;
    for (;;) {
      if (AtEnd()) {
        return LineError(path_, opened_on,
                         "the quote that opens a field on this line is never closed; a literal "
                         "quote inside a quoted field is written twice");
      }
      const char c = text_[position_++];
      if (c != '"') {
        if (c == '\n') ++line_;
        field->push_back(c);
      } else if (!AtEnd() && text_[position_] == '"') {
        field->push_back('"');
        ++position_;
      } else {
        break;
      }
    }
    if (AtLineEnd() || text_[position_] == ',') return absl::OkStatus();
    return LineError(path_, line_,
                     "expected a comma or the end of the line after a closing quote; a literal "
                     "quote inside a quoted field is written twice");
  }

  std::string_view text_;
  const std::string& path_;
  size_t position_ = 0;
  int line_ = 1;
};

absl::StatusOr<std::vector<Fields>> SplitCsv(std::string_view text, const std::string& path) {
  std::vector<Fields> records;
  CsvReader reader(text, path);
  while (!reader.AtEnd()) {
    const absl::StatusOr<Fields> record = reader.NextRecord();
    if (!record.ok()) return record.status();
    if (record->values.size() == 1 && record->values[0].empty()) continue;  // Blank line.
    records.push_back(*record);
  }
  return records;
}

bool IsHeader(const Fields& first, const TableOptions& options) {
  if (options.columns.empty()) return true;
  return std::any_of(
      options.header_names.begin(), options.header_names.end(), [&](const std::string& name) {
        return std::find(first.values.begin(), first.values.end(), name) != first.values.end();
      });
}

absl::Status CheckColumnNames(const std::vector<std::string>& columns, const std::string& path,
                              int line) {
  if (columns.size() > kMaxColumns) {
    return LineError(
        path, line,
        absl::StrCat("expected at most ", kMaxColumns, " columns, found ", columns.size()));
  }
  for (size_t i = 0; i < columns.size(); ++i) {
    if (columns[i].empty()) {
      return LineError(path, line, absl::StrCat("column ", i + 1, " of the header has no name"));
    }
    if (std::find(columns.begin(), columns.begin() + i, columns[i]) != columns.begin() + i) {
      return LineError(path, line, absl::StrCat("two columns are named '", columns[i], "'"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Table> TableFromRecords(std::vector<Fields> records, const std::string& path,
                                       const TableOptions& options) {
  if (records.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the file is empty; expected ",
                     options.columns.empty() ? "a header line and " : "", "at least one row"));
  }
  Table table;
  table.path = path;
  const bool has_header = IsHeader(records[0], options);
  table.columns = has_header ? records[0].values : options.columns;
  if (absl::Status status = CheckColumnNames(table.columns, path, records[0].line); !status.ok()) {
    return status;
  }
  if (has_header && records.size() == 1) {
    return LineError(path, records[0].line,
                     "the file holds this header line only; expected at least one row below it");
  }
  for (size_t i = has_header ? 1 : 0; i < records.size(); ++i) {
    Fields& record = records[i];
    if (record.values.size() != table.columns.size()) {
      return LineError(path, record.line,
                       absl::StrCat("expected ", table.columns.size(), " columns (",
                                    JoinNames(table.columns), "), found ", record.values.size()));
    }
    TableRow row;
    row.line = record.line;
    row.cells.reserve(record.values.size());
    for (std::string& value : record.values) row.cells.emplace_back(std::move(value));
    table.rows.push_back(std::move(row));
  }
  return table;
}

absl::StatusOr<Table> TableFromJsonl(std::string_view text, const std::string& path) {
  Table table;
  table.path = path;
  std::unordered_map<std::string, size_t> index;
  const auto add_row = [&](int line, const nlohmann::json& object) -> absl::Status {
    TableRow row;
    row.line = line;
    row.cells.resize(table.columns.size());
    for (const auto& [key, value] : object.items()) {
      const auto [entry, is_new] = index.emplace(key, table.columns.size());
      if (is_new) {
        if (table.columns.size() == kMaxColumns) {
          return LineError(path, line,
                           absl::StrCat("key '", key, "' is one more than the ", kMaxColumns,
                                        " keys that a file may have"));
        }
        table.columns.push_back(key);
        row.cells.emplace_back();
      }
      if (value.is_string()) row.cells[entry->second] = value.get<std::string>();
      if (value.is_number() || value.is_boolean()) row.cells[entry->second] = DumpJson(value);
    }
    table.rows.push_back(std::move(row));
    return absl::OkStatus();
  };
  if (absl::Status status = ForEachJsonLine(text, path, add_row); !status.ok()) return status;
  if (table.rows.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the file is empty; expected a JSON object a line"));
  }
  for (TableRow& row : table.rows) row.cells.resize(table.columns.size());
  return table;
}

}  // namespace

int Table::Find(std::string_view name) const {
  const auto found = std::find(columns.begin(), columns.end(), name);
  return found == columns.end() ? -1 : static_cast<int>(found - columns.begin());
}

absl::StatusOr<TableFormat> TableFormatOf(const std::string& path) {
  const std::string lower = absl::AsciiStrToLower(path);
  if (absl::EndsWith(lower, ".tsv")) return TableFormat::kTsv;
  if (absl::EndsWith(lower, ".csv")) return TableFormat::kCsv;
  if (absl::EndsWith(lower, ".jsonl")) return TableFormat::kJsonl;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": expected a data file that ends in .tsv, .csv or .jsonl"));
}

absl::StatusOr<Table> ParseTable(std::string_view text, const std::string& path, TableFormat format,
                                 const TableOptions& options) {
  if (format == TableFormat::kJsonl) return TableFromJsonl(text, path);
  const absl::StatusOr<std::string_view> checked = CheckedUtf8Text(text, path);
  if (!checked.ok()) return checked.status();
  if (format == TableFormat::kTsv) return TableFromRecords(SplitTsv(*checked), path, options);
  absl::StatusOr<std::vector<Fields>> records = SplitCsv(*checked, path);
  if (!records.ok()) return records.status();
  return TableFromRecords(*std::move(records), path, options);
}

absl::StatusOr<Table> ReadTable(const std::string& path, const TableOptions& options) {
  const absl::StatusOr<TableFormat> format = TableFormatOf(path);
  if (!format.ok()) return format.status();
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  return ParseTable(*text, path, *format, options);
}

}  // namespace permafrost
