#include "io/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <memory>

#include "absl/strings/str_cat.h"

namespace permafrost {

absl::StatusOr<bool> FullMatch(const std::string& pattern, const std::string& text) {
  int error = 0;
  PCRE2_SIZE where = 0;
  const auto* bytes = reinterpret_cast<PCRE2_SPTR>(pattern.data());
  std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code(
      pcre2_compile(bytes, pattern.size(), PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_UTF, &error,
                    &where, nullptr),
      &pcre2_code_free);
  if (code == nullptr) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof(message));
    return absl::InvalidArgumentError(absl::StrCat("regular expression \"", pattern,
                                                   "\": at character ", where, ": ",
                                                   reinterpret_cast<const char*>(message)));
  }
  std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code.get(), nullptr), &pcre2_match_data_free);
  std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> limits(
      pcre2_match_context_create(nullptr), &pcre2_match_context_free);
  pcre2_set_match_limit(limits.get(), 1000000);
  const int result = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                 0, 0, match.get(), limits.get());
  if (result >= 0) return true;
  if (result == PCRE2_ERROR_NOMATCH) return false;
  return absl::InvalidArgumentError(
      absl::StrCat("regular expression \"", pattern, "\": too expensive to match"));
}

}  // namespace permafrost
