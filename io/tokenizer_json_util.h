// What the parsers of tokenizer.json share.

#ifndef PERMAFROST_IO_TOKENIZER_JSON_UTIL_H_
#define PERMAFROST_IO_TOKENIZER_JSON_UTIL_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "io/json.h"
#include "io/tokenizer_parts.h"
#include "io/tokenizer_view.h"
#include "nlohmann/json.hpp"

namespace permafrost {

// A field of an object, null if it is missing.
inline const nlohmann::json& Child(const nlohmann::json& object, const char* field) {
  static const auto* null = new nlohmann::json();
  if (!object.is_object()) return *null;
  const auto it = object.find(field);
  return it == object.end() ? *null : *it;
}

// An error that says what was expected and what is there.
inline absl::Status Bad(const std::string& source, std::string_view what,
                        const nlohmann::json& found) {
  return absl::InvalidArgumentError(
      absl::StrCat(source, ": expected ", AbslView(what), ", found ", DescribeJson(found)));
}

inline absl::StatusOr<int> ParseId(const nlohmann::json& node, const std::string& source) {
  if (!node.is_number_integer() || node < 0 || node > kMaxTokenId) {
    return Bad(source, absl::StrCat("a token id (0 to ", kMaxTokenId, ")"), node);
  }
  return node.get<int>();
}

}  // namespace permafrost

#endif  // PERMAFROST_IO_TOKENIZER_JSON_UTIL_H_
