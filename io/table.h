// Tables of named text columns read from .tsv, .csv and .jsonl files.
//
// Every row remembers the 1-based line of the file on which it starts, so that whoever reads the
// table can say where a bad value is. Blank lines are skipped but counted. The whole file is held
// in memory.
//
// Non-goals: types (every cell is text), streaming, other delimiters, other encodings than UTF-8.

#ifndef PERMAFROST_IO_TABLE_H_
#define PERMAFROST_IO_TABLE_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace permafrost {

enum class TableFormat { kTsv, kCsv, kJsonl };

struct TableRow {
  int line = 0;  // 1-based line of the file on which the row starts.
  // One per column of the table. Empty optional: a JSONL line without that key, or with null, a
  // list or an object there.
  std::vector<std::optional<std::string>> cells;
};

struct Table {
  std::string path;
  std::vector<std::string> columns;  // JSONL: all keys, those of earlier lines first.
  std::vector<TableRow> rows;        // Never empty in a table that a reader returned.

  // Index of the column with this name, or -1.
  int Find(std::string_view name) const;
};

struct TableOptions {
  // Column names of a .tsv or .csv file without a header line. Empty: the first line is the header.
  std::vector<std::string> columns;
  // With `columns`: a first line in which some field equals one of these names is a header after
  // all.
  std::vector<std::string> header_names;
};

// The format that the file name's extension stands for (.tsv, .csv, .jsonl; upper case too). Error:
// InvalidArgument.
absl::StatusOr<TableFormat> TableFormatOf(const std::string& path);

// Reads a table from the file at `path`; the extension gives the format.
//  TSV: split on tabs only, quotes are plain text; lines end in LF or CRLF.
//  CSV: RFC 4180; fields in double quotes may hold commas, line ends and doubled quotes. A quote
//  inside an unquoted
//    field is plain text, as most programs write and read it.
//  JSONL: one object a line; numbers and booleans become their JSON text.
// A UTF-8 byte order mark is skipped.
// Errors (InvalidArgument, with file and line): no rows, invalid UTF-8, wrong number of columns,
// empty or repeated column name, unclosed quote, text after a closing quote, broken JSON, a line
// that is not an object.
absl::StatusOr<Table> ReadTable(const std::string& path, const TableOptions& options = {});

// The same from text in memory; `path` only names the source in messages.
absl::StatusOr<Table> ParseTable(std::string_view text, const std::string& path, TableFormat format,
                                 const TableOptions& options = {});

}  // namespace permafrost

#endif  // PERMAFROST_IO_TABLE_H_
