#include "io/tokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "io/tokenizer_view.h"
#include "io/unicode.h"

namespace permafrost {
namespace {

// The patterns of real tokenizers need a handful of steps per character.
constexpr uint32_t kMatchLimit = 100'000'000;
constexpr size_t kMaxPatternBytes = 1 << 16;

std::string Ranges(absl::Span<const CodePointRange> ranges) {
  std::string out;
  for (const CodePointRange& r : ranges) {
    absl::StrAppendFormat(&out, "\\x{%X}-\\x{%X}", static_cast<uint32_t>(r.first),
                          static_cast<uint32_t>(r.last));
  }
  return out;
}

constexpr char kSpaceSet[] =
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"
    "\\x{205F}\\x{3000}";

// The inside of a character set that means the same as the escape at the front of `rest`, or "" if
// the escape needs no translation. Sets `length` to its bytes and `negated` for \S, \P{L} and so
// on.
std::string TranslateEscape(std::string_view rest, size_t* length, bool* negated) {
  *length = 2;
  *negated = false;
  switch (rest[1]) {
    case 'S':
      *negated = true;
      return kSpaceSet;
    case 's':
      return kSpaceSet;
    case 'W':
    case 'w':
      *negated = rest[1] == 'W';
      return absl::StrCat("\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}", Ranges(NewLetters()));
    case 'H':
    case 'h':
      *negated = rest[1] == 'H';
      return "0-9a-fA-F";
    case 'p':
    case 'P':
      break;
    default:
      return "";
  }
  *negated = rest[1] == 'P';
  std::string_view body = rest.substr(2);
  *length = 5;
  if (!body.starts_with('{')) return "";
  body.remove_prefix(1);
  if (body.starts_with('^')) {
    body.remove_prefix(1);
    *negated = !*negated;
    *length = 6;
  }
  if (body.starts_with("L}")) return absl::StrCat("\\p{L}", Ranges(NewLetters()));
  if (body.starts_with("N}")) return absl::StrCat("\\p{N}", Ranges(NewNumbers()));
  return "";
}

absl::Status Unsupported(std::string_view pattern, std::string_view what) {
  return absl::UnimplementedError(absl::StrCat("regular expression \"", AbslView(pattern),
                                               "\": ", AbslView(what), " is not implemented"));
}

absl::StatusOr<std::string> Translate(std::string_view pattern) {
  std::string out;
  size_t depth = 0;  // of nested character sets
  for (size_t i = 0; i < pattern.size();) {
    const char c = pattern[i];
    const bool set_start = c == '[' && !(depth > 0 && pattern.substr(i).starts_with("[:"));
    if (c == '\\' && i + 1 < pattern.size()) {
      size_t length = 2;
      bool negated = false;
      const std::string set = TranslateEscape(pattern.substr(i), &length, &negated);
      if (set.empty()) {
        length = 2;
        out.append(pattern, i, length);
      } else if (depth == 0) {
        absl::StrAppend(&out, negated ? "[^" : "[", set, "]");
      } else if (!negated) {
        out.append(set);
      } else {  // PCRE2 knows the negated class, up to the newest characters
        out.append(pattern, i, length);
      }
      i += length;
    } else if (set_start) {
      const bool negated = i + 1 < pattern.size() && pattern[i + 1] == '^';
      if (depth > 0 && negated) return Unsupported(pattern, "a negated set inside a set");
      if (depth == 0) out.append(negated ? "[^" : "[");
      ++depth;
      i += negated ? 2 : 1;
      if (i < pattern.size() && pattern[i] == ']') {  // a leading ] is an ordinary character
        out.append("\\]");
        ++i;
      }
    } else if (c == '[') {  // [:alpha:]
      const size_t end = pattern.find(":]", i);
      if (end == std::string_view::npos) return Unsupported(pattern, "\"[:\" in a set");
      out.append(pattern, i, end + 2 - i);
      i = end + 2;
    } else if (depth > 0 && c == ']') {
      if (--depth == 0) out.push_back(']');
      ++i;
    } else if (depth > 0 && pattern.substr(i).starts_with("&&")) {
      return Unsupported(pattern, "set intersection (&&)");
    } else {
      out.push_back(c);
      ++i;
    }
  }
  return out;
}

struct MatchContext {
  MatchContext()
      : data(pcre2_match_data_create(1, nullptr)), context(pcre2_match_context_create(nullptr)) {
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_depth_limit(context, kMatchLimit);
    stack = pcre2_jit_stack_create(32 * 1024, 8 * 1024 * 1024, nullptr);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  MatchContext(const MatchContext&) = delete;
  MatchContext& operator=(const MatchContext&) = delete;
  ~MatchContext() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }

  pcre2_match_data* data;
  pcre2_match_context* context;
  pcre2_jit_stack* stack;
};

}  // namespace

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError("regular expression longer than 65536 bytes");
  }
  const absl::StatusOr<std::string> translated = Translate(pattern);
  if (!translated.ok()) return translated.status();
  int error = 0;
  PCRE2_SIZE offset = 0;
  // Oniguruma's ^ and $ always match at line ends.
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated->data()),
                                   translated->size(), options, &error, &offset, nullptr);
  if (code == nullptr) {
    PCRE2_UCHAR message[256] = {0};
    pcre2_get_error_message(error, message, sizeof(message));
    return absl::InvalidArgumentError(absl::StrCat("regular expression \"", AbslView(pattern),
                                                   "\": ", reinterpret_cast<const char*>(message)));
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it fails, the interpreter gives the same
  std::shared_ptr<const void> owner(static_cast<const void*>(code),
                                    [code](const void*) { pcre2_code_free(code); });
  return Regex(std::move(owner), std::string(pattern));
}

absl::StatusOr<std::vector<TextRange>> Regex::FindAll(std::string_view text) const {
  static thread_local MatchContext matcher;
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data() == nullptr ? "" : text.data());
  std::vector<TextRange> matches;
  size_t pos = 0;
  while (pos <= text.size()) {
    const int rc = pcre2_match(code, subject, text.size(), pos, PCRE2_NO_UTF_CHECK, matcher.data,
                               matcher.context);
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return absl::ResourceExhaustedError(absl::StrCat("regular expression \"", pattern_,
                                                       "\" needs too many steps at byte ", pos,
                                                       " of a text of ", text.size(), " bytes"));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(matcher.data);
    if (range[1] < range[0]) break;  // \K inside a lookahead
    if (range[1] == range[0]) {      // an empty match: go on one character later
      matches.push_back({range[0], range[1]});
      if (range[1] >= text.size()) break;
      pos = range[1] + Utf8Length(static_cast<unsigned char>(text[range[1]]));
    } else {
      if (range[0] < pos) break;
      matches.push_back({range[0], range[1]});
      pos = range[1];
    }
  }
  return matches;
}

}  // namespace permafrost
