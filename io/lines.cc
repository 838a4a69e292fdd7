#include "io/lines.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "io/json.h"
#include "io/unicode.h"
#include "nlohmann/json.hpp"

namespace permafrost {

absl::Status LineError(const std::string& path, int line, const std::string& message) {
  return absl::InvalidArgumentError(absl::StrCat(path, ":", line, ": ", message));
}

std::string JoinNames(const std::vector<std::string>& names) { return absl::StrJoin(names, ", "); }

bool LineReader::Next() {
  if (rest_.empty()) return false;
  const size_t end = rest_.find('\n');
  line_ = rest_.substr(0, end);
  rest_.remove_prefix(end == std::string_view::npos ? rest_.size() : end + 1);
  if (!line_.empty() && line_.back() == '\r') line_.remove_suffix(1);
  ++number_;
  return true;
}

bool LineReader::IsBlank() const {
  return std::all_of(line_.begin(), line_.end(),
                     [](unsigned char c) { return absl::ascii_isspace(c); });
}

absl::StatusOr<std::string_view> CheckedUtf8Text(std::string_view text, const std::string& path) {
  if (text.substr(0, 3) == "\xEF\xBB\xBF") text.remove_prefix(3);
  const std::string_view mark = text.substr(0, 2);
  const bool is_utf16 = mark == "\xFF\xFE" || mark == "\xFE\xFF";
  for (LineReader reader(text); reader.Next();) {
    const absl::Status status = CheckUtf8(reader.line());
    if (status.ok()) continue;
    return LineError(path, reader.number(),
                     absl::StrCat(status.message(), "; convert the file to UTF-8",
                                  is_utf16 ? " (it looks like UTF-16)" : ""));
  }
  return text;
}

absl::Status ForEachJsonLine(std::string_view text, const std::string& path,
                             JsonLineFunction function) {
  const absl::StatusOr<std::string_view> checked = CheckedUtf8Text(text, path);
  if (!checked.ok()) return checked.status();
  for (LineReader reader(*checked); reader.Next();) {
    if (reader.IsBlank()) continue;
    const std::string source = absl::StrCat(path, ":", reader.number());
    const absl::StatusOr<nlohmann::json> object = ParseJson(reader.line(), source);
    if (!object.ok()) {
      // The parser counts lines within this one: always 1, which contradicts the number in
      // `source`.
      return absl::InvalidArgumentError(absl::StrReplaceAll(
          object.status().message(), {{": JSON error in line 1, ", ": JSON error in "}}));
    }
    if (!object->is_object()) {
      return LineError(path, reader.number(),
                       absl::StrCat("expected a JSON object, found ", DescribeJson(*object)));
    }
    if (absl::Status status = function(reader.number(), *object); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace permafrost
