// Text files read line by line: what the readers of data files share.
//
// Lines are numbered from 1 and end in LF or CRLF. Errors are one line that opens with `FILE:LINE:
// `.
//
// Non-goals: streaming, other encodings than UTF-8, JSON values that span lines.

#ifndef PERMAFROST_IO_LINES_H_
#define PERMAFROST_IO_LINES_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace permafrost {

// InvalidArgument: `PATH:LINE: MESSAGE`.
absl::Status LineError(const std::string& path, int line, const std::string& message);

// `a, b, c` for messages.
std::string JoinNames(const std::vector<std::string>& names);

// Walks over the lines of a text:  LineReader reader(text); while (reader.Next())
// Use(reader.line());
class LineReader {
 public:
  explicit LineReader(std::string_view text) : rest_(text) {}

  // Moves to the next line; false at the end. A line feed at the very end does not open another
  // line.
  bool Next();

  std::string_view line() const { return line_; }  // Without its line end.
  int number() const { return number_; }           // 1-based.
  bool IsBlank() const;                            // Nothing but ASCII white space.

 private:
  std::string_view rest_;
  std::string_view line_;
  int number_ = 0;
};

// Drops a UTF-8 byte order mark and checks that the rest is well-formed UTF-8.
// Error: InvalidArgument naming `path` and the first bad line.
absl::StatusOr<std::string_view> CheckedUtf8Text(std::string_view text, const std::string& path);

// Called with the line number and the object. Any status but OK ends the walk.
using JsonLineFunction = absl::FunctionRef<absl::Status(int line, const nlohmann::json& object)>;

// Calls `function` for the object on each line of a JSONL text; blank lines are skipped but
// counted, a UTF-8 byte order mark is skipped. Errors (InvalidArgument, with file and line):
// invalid UTF-8, broken JSON, a line that is not an object; and whatever `function` returns.
absl::Status ForEachJsonLine(std::string_view text, const std::string& path,
                             JsonLineFunction function);

}  // namespace permafrost

#endif  // PERMAFROST_IO_LINES_H_
