#include "io/table.h"

#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace permafrost {
namespace {

absl::StatusOr<Table> Tsv(std::string_view text, const TableOptions& options = {}) {
  return ParseTable(text, "d.tsv", TableFormat::kTsv, options);
}
absl::StatusOr<Table> Csv(std::string_view text) {
  return ParseTable(text, "d.csv", TableFormat::kCsv);
}
absl::StatusOr<Table> Jsonl(std::string_view text) {
  return ParseTable(text, "d.jsonl", TableFormat::kJsonl);
}

// The table as text, rows as `LINE: cell|cell`; cells that are not there as `-`.
std::string Dump(const absl::StatusOr<Table>& table) {
  if (!table.ok()) return std::string(table.status().message());
  std::string text;
  for (const std::string& column : table->columns) text += (text.empty() ? "" : "|") + column;
  for (const TableRow& row : table->rows) {
    text += "\n" + std::to_string(row.line) + ":";
    for (size_t c = 0; c < row.cells.size(); ++c)
      text += (c ? "|" : "") + row.cells[c].value_or("-");
  }
  return text;
}

TEST(Tsv, SplitsOnTabsOnlyAndQuotesArePlain) {
  EXPECT_EQ(Dump(Tsv("a\tb\n\"x, y\tz\"\n '\t\"\"\n")), "a|b\n2:\"x, y|z\"\n3: '|\"\"");
}

TEST(Tsv, CountsBlankLinesAndTakesCrLfAndAByteOrderMark) {
  EXPECT_EQ(Dump(Tsv("\xEF\xBB\xBF\r\na\tb\r\n\r\n1\t2\r\n\n\n\t\r\n3\t4")),
            "a|b\n4:1|2\n7:|\n8:3|4");
}

TEST(Tsv, ColumnsWithoutHeader) {
  TableOptions options;
  options.columns = {"label", "text"};
  EXPECT_EQ(Dump(Tsv("ham\thi\nspam\tbuy\n", options)), "label|text\n1:ham|hi\n2:spam|buy");
  options.header_names = {"text", "Text"};
  EXPECT_EQ(Dump(Tsv("ham\thi\n", options)), "label|text\n1:ham|hi");
  EXPECT_EQ(Dump(Tsv("text\tlabel\nhi\tham\n", options)), "text|label\n2:hi|ham");
}

TEST(Tsv, ErrorsNameFileLineExpectedAndFound) {
  EXPECT_EQ(Dump(Tsv("a\tb\n\n1\t2\n3\n")), "d.tsv:4: expected 2 columns (a, b), found 1");
  EXPECT_EQ(Dump(Tsv("a\tb\n1\t2\t3\n")), "d.tsv:2: expected 2 columns (a, b), found 3");
  EXPECT_EQ(Dump(Tsv("\na\ta\n1\t2\n")), "d.tsv:2: two columns are named 'a'");
  EXPECT_EQ(Dump(Tsv("a\t\n1\t2\n")), "d.tsv:1: column 2 of the header has no name");
  EXPECT_EQ(Dump(Tsv("")), "d.tsv: the file is empty; expected a header line and at least one row");
  EXPECT_EQ(Dump(Tsv("\n\r\n")),
            "d.tsv: the file is empty; expected a header line and at least one row");
  EXPECT_EQ(Dump(Tsv("\na\tb\n")),
            "d.tsv:2: the file holds this header line only; expected at least one row below it");
  const std::string bad = Dump(Tsv("a\tb\n1\t2\nx\xC3\x28\ty\n"));
  EXPECT_EQ(bad.find("d.tsv:3: "), 0u) << bad;
  EXPECT_NE(bad.find("UTF-8"), std::string::npos) << bad;
  const std::string utf16 =
      Dump(Tsv(std::string_view("\xFF\xFE"
                                "a\0\t\0",
                                6)));
  EXPECT_EQ(utf16.find("d.tsv:1: "), 0u) << utf16;
  EXPECT_NE(utf16.find("UTF-16"), std::string::npos) << utf16;
}

TEST(Csv, Rfc4180) {
  EXPECT_EQ(Dump(Csv("a,b\r\n1,2\r\n\"x, \"\"y\"\"\",\"\"\r\n,\r\n")),
            "a|b\n2:1|2\n3:x, \"y\"|\n4:|");
}

TEST(Csv, LineBreaksInsideQuotesCountAsLines) {
  EXPECT_EQ(Dump(Csv("a,b\n\"1\n2\r\n3\",x\n\n4,5")), "a|b\n2:1\n2\r\n3|x\n6:4|5");
}

TEST(Csv, QuotesInsideAnUnquotedFieldArePlain) {
  EXPECT_EQ(Dump(Csv("a,b\n5\" disk,say \"hi\"\n")), "a|b\n2:5\" disk|say \"hi\"");
}

TEST(Csv, ALoneCarriageReturnIsText) { EXPECT_EQ(Dump(Csv("a\nx\ry\n")), "a\n2:x\ry"); }

TEST(Csv, Errors) {
  EXPECT_EQ(Dump(Csv("a,b\n1,2\n\"3,4\n5,6\n")),
            "d.csv:3: the quote that opens a field on this line is never closed; a literal quote "
            "inside a quoted field is written twice");
  EXPECT_EQ(Dump(Csv("a,b\n\"1\n\"2,3\n")),
            "d.csv:3: expected a comma or the end of the line after a closing quote; a literal "
            "quote inside a quoted field is written twice");
  EXPECT_EQ(Dump(Csv("a,b\n\"1\n2\",3\n4\n")), "d.csv:4: expected 2 columns (a, b), found 1");
}

TEST(Jsonl, StringsNumbersAndBooleansBecomeText) {
  EXPECT_EQ(Dump(Jsonl("{\"t\": \"a\\tb\\u00e9\", \"n\": 3, \"x\": 1.5, \"b\": true}\n")),
            "b|n|t|x\n1:true|3|a\tb\xC3\xA9|1.5");
}

TEST(Jsonl, MissingNullAndNestedValuesAreAbsent) {
  EXPECT_EQ(
      Dump(Jsonl("\xEF\xBB\xBF{\"a\": 1}\r\n  \r\n\n{\"b\": \"x\", \"a\": null}\n{\"c\": [1]}")),
      "a|b|c\n1:1|-|-\n4:-|x|-\n5:-|-|-");
}

TEST(Jsonl, Errors) {
  const std::string broken = Dump(Jsonl("{\"a\": 1}\n\n{\"a\": }\n"));
  EXPECT_EQ(broken.find("d.jsonl:3: JSON error in column "), 0u) << broken;
  EXPECT_EQ(Dump(Jsonl("{\"a\": 1}\n[1]\n")).find("d.jsonl:2: expected a JSON object, found "), 0u);
  EXPECT_EQ(Dump(Jsonl(" \n")), "d.jsonl: the file is empty; expected a JSON object a line");
  const std::string bad = Dump(Jsonl("{\"a\": 1}\n{\"a\": \"\xFF\"}\n"));
  EXPECT_EQ(bad.find("d.jsonl:2: "), 0u) << bad;
  std::string keys;
  for (int i = 0; i < 1001; ++i) keys += "{\"k" + std::to_string(i) + "\": 1}\n";
  EXPECT_EQ(Dump(Jsonl(keys)),
            "d.jsonl:1001: key 'k1000' is one more than the 1000 keys that a file may have");
}

TEST(Table, ReadsFilesByExtension) {
  const std::string folder = testing::TempDir();
  std::ofstream(folder + "/table_test.TSV") << "a\tb\n1\t2\n";
  EXPECT_EQ(Dump(ReadTable(folder + "/table_test.TSV")), "a|b\n2:1|2");
  EXPECT_EQ(Dump(ReadTable("x.txt")),
            "x.txt: expected a data file that ends in .tsv, .csv or .jsonl");
  EXPECT_NE(Dump(ReadTable(folder + "/missing.csv")).find("missing.csv"), std::string::npos);
}

TEST(Table, FindsColumns) {
  const absl::StatusOr<Table> table = Tsv("a\tb\n1\t2\n");
  ASSERT_TRUE(table.ok());
  EXPECT_EQ(table->Find("b"), 1);
  EXPECT_EQ(table->Find("c"), -1);
}

// Writes fields as RFC 4180 wants them and reads them back.
TEST(TableProperty, CsvRoundTrip) {
  std::mt19937 random(11);
  const std::string alphabet = "ab,\"\n\r\t {}";
  for (int round = 0; round < 300; ++round) {
    const int columns = 2 + random() % 3;
    std::string text;
    std::vector<std::string> fields;
    for (int c = 0; c < columns; ++c) text += (c ? ",c" : "c") + std::to_string(c);
    text += "\r\n";
    int line = 2;
    std::vector<int> lines;
    for (int row = 0; row < 4; ++row) {
      lines.push_back(line++);
      for (int c = 0; c < columns; ++c) {
        std::string field, quoted;
        for (int n = random() % 6; n > 0; --n) field += alphabet[random() % alphabet.size()];
        for (const char ch : field) {
          quoted += ch;
          if (ch == '"') quoted += ch;
          if (ch == '\n') ++line;
        }
        text += (c ? ",\"" : "\"") + quoted + "\"";
        fields.push_back(field);
      }
      text += "\r\n";
    }
    const absl::StatusOr<Table> table = Csv(text);
    ASSERT_TRUE(table.ok()) << table.status() << "\n" << text;
    ASSERT_EQ(table->rows.size(), 4u);
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(table->rows[i].line, lines[i]);
      for (int c = 0; c < columns; ++c) EXPECT_EQ(table->rows[i].cells[c], fields[i * columns + c]);
    }
  }
}

TEST(TableProperty, RandomBytesNeverCrash) {
  std::mt19937 random(5);
  const std::string likely = "\t\n\r,\"{}[]:\\a1\xC3\xA9\xFF";
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (int n = random() % 60; n > 0; --n) {
      text += random() % 8 ? likely[random() % likely.size()] : static_cast<char>(random());
    }
    for (const TableFormat format : {TableFormat::kTsv, TableFormat::kCsv, TableFormat::kJsonl}) {
      const absl::StatusOr<Table> table = ParseTable(text, "f", format);
      if (!table.ok()) {
        EXPECT_EQ(table.status().code(), absl::StatusCode::kInvalidArgument);
        continue;
      }
      ASSERT_FALSE(table->rows.empty());
      for (const TableRow& row : table->rows) {
        ASSERT_EQ(row.cells.size(), table->columns.size());
        ASSERT_GE(row.line, 1);
      }
    }
  }
}

}  // namespace
}  // namespace permafrost
