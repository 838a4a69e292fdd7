// Regular expressions of tokenizer files: Oniguruma's syntax and meaning, matched by PCRE2.
//
// tokenizer.json patterns are written for Oniguruma. The pattern is translated where the two
// differ: \p{L} and \p{N} get the characters of newer Unicode versions, \s is Unicode White_Space,
// \w includes marks, \h is a hexadecimal digit, nested character sets are flattened.
//
// Non-goals: captures, replacement templates, set intersection (&&) and nested negated sets.

#ifndef PERMAFROST_IO_TOKENIZER_REGEX_H_
#define PERMAFROST_IO_TOKENIZER_REGEX_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace permafrost {

struct TextRange {
  size_t begin, end;  // bytes
};

class Regex {
 public:
  // Errors: syntax, or a construct that has no translation.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);

  // All matches in `text` (valid UTF-8), left to right, without overlap. Errors: the pattern needs
  // more steps on this text than the limit.
  absl::StatusOr<std::vector<TextRange>> FindAll(std::string_view text) const;

 private:
  explicit Regex(std::shared_ptr<const void> code, std::string pattern)
      : code_(std::move(code)), pattern_(std::move(pattern)) {}

  std::shared_ptr<const void> code_;  // pcre2_code; immutable after compilation
  std::string pattern_;
};

}  // namespace permafrost

#endif  // PERMAFROST_IO_TOKENIZER_REGEX_H_
