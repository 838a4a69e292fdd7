// Whole-string regular-expression matching (PCRE2, Python's re.fullmatch for the patterns that
// adapter configs hold). Match effort is bounded.
#ifndef PERMAFROST_IO_REGEX_H_
#define PERMAFROST_IO_REGEX_H_

#include <string>

#include "absl/status/statusor.h"

namespace permafrost {

// Errors: a pattern that does not compile (says where), or one too expensive to match.
absl::StatusOr<bool> FullMatch(const std::string& pattern, const std::string& text);

}  // namespace permafrost

#endif  // PERMAFROST_IO_REGEX_H_
