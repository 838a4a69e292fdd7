// Unicode helpers for the tokenizers: UTF-8, character classes, normal forms, grapheme clusters.
//
// Case, normal forms, clusters and most classes come from libutf8proc (Unicode 15). Where Hugging
// Face's tokenizers use newer tables (letters, numbers up to Unicode 17) or older ones
// (punctuation, normal forms), unicode.cc lists the differences: ids depend on them.
//
// Non-goals: collation, locale-dependent case, line breaking.

#ifndef PERMAFROST_IO_UNICODE_H_
#define PERMAFROST_IO_UNICODE_H_

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace permafrost {

// OK if `text` is well-formed UTF-8 (no overlong forms, surrogates or values above U+10FFFF);
// otherwise an error that names the offset of the first bad byte.
absl::Status CheckUtf8(std::string_view text);

// Number of bytes of the character that starts with `lead`, a valid lead byte.
size_t Utf8Length(unsigned char lead);

// The character at byte `pos` of well-formed `text`.
char32_t Utf8CharAt(std::string_view text, size_t pos);

// Appends the UTF-8 form of `c`, a Unicode scalar value.
void AppendUtf8(char32_t c, std::string* out);

// `bytes` with each maximal ill-formed part replaced by U+FFFD (Unicode 3.9, "best practice").
std::string Utf8Lossy(std::string_view bytes);

// Number of bytes at the end of `bytes` that start a character without completing it (0 to 3).
size_t IncompleteUtf8Tail(std::string_view bytes);

bool IsWhitespace(char32_t c);   // Unicode White_Space
bool IsNumber(char32_t c);       // general categories Nd, Nl, No
bool IsPunctuation(char32_t c);  // ASCII punctuation and symbols, or general category P*
bool IsWord(char32_t c);         // letters, marks, decimal digits, connectors: \w of a regex

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// `text`, which is well-formed, in a normal form.
std::string NormalizeUnicode(std::string_view text, NormalForm form);

// Lower case character by character, without context (no final sigma).
std::string LowercaseUnicode(std::string_view text);

// `text` without nonspacing marks (category Mn).
std::string StripMarks(std::string_view text);

// End, in bytes, of the extended grapheme cluster that starts at byte `pos` of well-formed `text`.
size_t GraphemeEnd(std::string_view text, size_t pos);

struct CodePointRange {
  char32_t first, last;
};

// Characters of category L* and N* that the regular expression library's tables do not know yet.
absl::Span<const CodePointRange> NewLetters();
absl::Span<const CodePointRange> NewNumbers();

}  // namespace permafrost

#endif  // PERMAFROST_IO_UNICODE_H_
