#include "io/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdlib>

#include "absl/strings/str_format.h"

namespace permafrost {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";

// How far a character that starts at `pos` is well-formed: `length` bytes, complete or cut off.
struct Utf8Step {
  size_t length;
  bool valid;
  bool cut;  // well-formed so far, but the text ends
};

Utf8Step StepUtf8(std::string_view text, size_t pos) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(pos);
  if (lead < 0x80) return {1, true, false};
  if (lead < 0xC2 || lead > 0xF4) return {1, false, false};
  const size_t length = Utf8Length(lead);
  unsigned char low = 0x80, high = 0xBF;  // of the second byte: no overlong forms, no surrogates
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (size_t i = 1; i < length; ++i) {
    if (pos + i >= text.size()) return {i, false, true};
    if (byte(pos + i) < low || byte(pos + i) > high) return {i, false, false};
    low = 0x80;
    high = 0xBF;
  }
  return {length, true, false};
}

bool InRanges(char32_t c, absl::Span<const CodePointRange> ranges) {
  const auto it = std::upper_bound(ranges.begin(), ranges.end(), c,
                                   [](char32_t v, const CodePointRange& r) { return v < r.first; });
  return it != ranges.begin() && c <= (it - 1)->last;
}

// Letters of Unicode 15 to 16.
constexpr CodePointRange kNewLetters[] = {
    {0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3},
    {0x10D4A, 0x10D65}, {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x1123F, 0x11240},
    {0x11380, 0x11389}, {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x113B5},
    {0x113B7, 0x113B7}, {0x113D1, 0x113D1}, {0x113D3, 0x113D3}, {0x11BC0, 0x11BE0},
    {0x11F02, 0x11F02}, {0x11F04, 0x11F10}, {0x11F12, 0x11F33}, {0x1342F, 0x1342F},
    {0x13441, 0x13446}, {0x13460, 0x143FA}, {0x16100, 0x1611D}, {0x16D40, 0x16D6C},
    {0x18CFF, 0x18CFF}, {0x1B132, 0x1B132}, {0x1B155, 0x1B155}, {0x1DF25, 0x1DF2A},
    {0x1E030, 0x1E06D}, {0x1E4D0, 0x1E4EB}, {0x1E5D0, 0x1E5ED}, {0x1E5F0, 0x1E5F0},
    {0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF}};

// Numbers of Unicode 15 to 16.
constexpr CodePointRange kNewNumbers[] = {
    {0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x11F50, 0x11F59},
    {0x16130, 0x16139}, {0x16D70, 0x16D79}, {0x1CCF0, 0x1CCF9}, {0x1D2C0, 0x1D2D3},
    {0x1E4F0, 0x1E4F9}, {0x1E5F1, 0x1E5FA}};

// Numbers of Unicode 17: known to the Digits pre-tokenizer, not to regular expressions.
constexpr CodePointRange kNewestNumbers[] = {{0x11DE0, 0x11DE9}, {0x16FF4, 0x16FF6}};

// Punctuation of Unicode 8 and later, which the published tokenizers do not count as such.
constexpr CodePointRange kNotPunctuation[] = {
    {0x61D, 0x61D},     {0x9FD, 0x9FD},     {0xA76, 0xA76},     {0xC77, 0xC77},
    {0xC84, 0xC84},     {0x1B7D, 0x1B7E},   {0x2E43, 0x2E4F},   {0x2E52, 0x2E5D},
    {0x10EAD, 0x10EAD}, {0x10F55, 0x10F59}, {0x10F86, 0x10F89}, {0x1144B, 0x1144F},
    {0x1145A, 0x1145B}, {0x1145D, 0x1145D}, {0x11660, 0x1166C}, {0x116B9, 0x116B9},
    {0x1183B, 0x1183B}, {0x11944, 0x11946}, {0x119E2, 0x119E2}, {0x11A3F, 0x11A46},
    {0x11A9A, 0x11A9C}, {0x11A9E, 0x11AA2}, {0x11B00, 0x11B09}, {0x11C41, 0x11C45},
    {0x11C70, 0x11C71}, {0x11EF7, 0x11EF8}, {0x11F43, 0x11F4F}, {0x11FFF, 0x11FFF},
    {0x12FF1, 0x12FF2}, {0x16E97, 0x16E9A}, {0x16FE2, 0x16FE2}, {0x1E95E, 0x1E95F}};

// Marks and digits of Unicode 16.
constexpr CodePointRange kNewWordOthers[] = {
    {0x897, 0x897},     {0x10D40, 0x10D49}, {0x10D69, 0x10D6D}, {0x10EFC, 0x10EFC},
    {0x113B8, 0x113C0}, {0x113C2, 0x113C2}, {0x113C5, 0x113C5}, {0x113C7, 0x113CA},
    {0x113CC, 0x113D0}, {0x113D2, 0x113D2}, {0x113E1, 0x113E2}, {0x116D0, 0x116E3},
    {0x11BF0, 0x11BF9}, {0x11F5A, 0x11F5A}, {0x1611E, 0x16139}, {0x16D70, 0x16D79},
    {0x1CCF0, 0x1CCF9}, {0x1E5EE, 0x1E5EF}, {0x1E5F1, 0x1E5FA}};

// Characters of Unicode 11 to 15 with a decomposition or a combining class. The published
// tokenizers normalize by older tables, to which these are ordinary characters that nothing
// combines with.
constexpr CodePointRange kNotNormalized[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0x32FF, 0x32FF},   {0xA7F2, 0xA7F4},
    {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x10781, 0x10785}, {0x10787, 0x107B0},
    {0x107B2, 0x107BA}, {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
    {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11938, 0x11938}, {0x1193D, 0x1193E},
    {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47},
    {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97},
    {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
    {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9}};

utf8proc_category_t Category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

char32_t Lowercase(char32_t c) {
  // Letters of Unicode 16 and 17.
  if (c >= 0x10D50 && c <= 0x10D65) return c + 0x20;
  if (c >= 0x16EA0 && c <= 0x16EB8) return c + 0x1B;
  if (c == 0xA7CB) return 0x264;
  if (c == 0xA7DC) return 0x19B;
  for (const char32_t upper : {0x1C89, 0xA7CC, 0xA7CE, 0xA7D2, 0xA7D4, 0xA7DA}) {
    if (c == upper) return c + 1;
  }
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

void AppendNormalized(std::string_view text, NormalForm form, std::string* out) {
  if (text.empty()) return;
  int options = UTF8PROC_STABLE;
  options |=
      form == NormalForm::kNfc || form == NormalForm::kNfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalForm::kNfkc || form == NormalForm::kNfkd) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                             static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                                             static_cast<utf8proc_option_t>(options));
  if (size < 0) {  // out of memory or beyond 2^31 characters
    out->append(text);
    return;
  }
  out->append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(size));
  std::free(mapped);
}

}  // namespace

absl::Status CheckUtf8(std::string_view text) {
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = StepUtf8(text, pos);
    if (!step.valid) {
      return absl::InvalidArgumentError(
          absl::StrFormat("text is not UTF-8: bad byte 0x%02X at offset %d",
                          static_cast<unsigned char>(text[pos]), pos));
    }
    pos += step.length;
  }
  return absl::OkStatus();
}

size_t Utf8Length(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

char32_t Utf8CharAt(std::string_view text, size_t pos) {
  const auto tail = [&](size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[pos + i]) & 0x3F);
  };
  const auto lead = static_cast<unsigned char>(text[pos]);
  switch (Utf8Length(lead)) {
    case 1:
      return lead;
    case 2:
      return (lead & 0x1Fu) << 6 | tail(1);
    case 3:
      return (lead & 0x0Fu) << 12 | tail(1) << 6 | tail(2);
    default:
      return (lead & 0x07u) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3);
  }
}

void AppendUtf8(char32_t c, std::string* out) {
  const auto put = [&](char32_t b) { out->push_back(static_cast<char>(b)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

std::string Utf8Lossy(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (size_t pos = 0; pos < bytes.size();) {
    const Utf8Step step = StepUtf8(bytes, pos);
    if (step.valid) {
      out.append(bytes, pos, step.length);
    } else {
      out.append(kReplacement);
    }
    pos += step.length;
  }
  return out;
}

size_t IncompleteUtf8Tail(std::string_view bytes) {
  for (size_t back = 1; back <= std::min<size_t>(3, bytes.size()); ++back) {
    const Utf8Step step = StepUtf8(bytes, bytes.size() - back);
    if (step.cut && step.length == back) return back;
  }
  return 0;
}

bool IsWhitespace(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool IsNumber(char32_t c) {
  const utf8proc_category_t category = Category(c);
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO || InRanges(c, kNewNumbers) ||
         InRanges(c, kNewestNumbers);
}

bool IsPunctuation(char32_t c) {
  if (c < 0x80) {
    return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) ||
           (c >= 123 && c <= 126);
  }
  const utf8proc_category_t category = Category(c);
  if (c == 0x166D || c == 0x111C9) return true;  // punctuation when those tables were made
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO &&
         !InRanges(c, kNotPunctuation);
}

bool IsWord(char32_t c) {
  if (c < 0x80) return c == '_' || std::isalnum(static_cast<int>(c)) != 0;
  const utf8proc_category_t category = Category(c);
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) ||
         category == UTF8PROC_CATEGORY_PC || c == 0x200C || c == 0x200D ||
         (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
         (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189) ||
         InRanges(c, kNewLetters) || InRanges(c, kNewWordOthers);
}

std::string NormalizeUnicode(std::string_view text, NormalForm form) {
  const bool ascii = std::all_of(text.begin(), text.end(),
                                 [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  if (ascii) return std::string(text);
  std::string out;
  out.reserve(text.size());
  size_t begin = 0;  // of what has not been normalized yet
  for (size_t pos = 0; pos < text.size();) {
    const size_t length = Utf8Length(static_cast<unsigned char>(text[pos]));
    if (length > 1 && InRanges(Utf8CharAt(text, pos), kNotNormalized)) {
      AppendNormalized(text.substr(begin, pos - begin), form, &out);
      out.append(text, pos, length);
      begin = pos + length;
    }
    pos += length;
  }
  AppendNormalized(text.substr(begin), form, &out);
  return out;
}

std::string LowercaseUnicode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();
       pos += Utf8Length(static_cast<unsigned char>(text[pos]))) {
    const char32_t c = Utf8CharAt(text, pos);
    if (c == 0x130) {  // the only character whose full lower case is longer than one character
      out.append("i\xCC\x87");
    } else {
      AppendUtf8(Lowercase(c), &out);
    }
  }
  return out;
}

std::string StripMarks(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const size_t length = Utf8Length(static_cast<unsigned char>(text[pos]));
    if (Category(Utf8CharAt(text, pos)) != UTF8PROC_CATEGORY_MN) out.append(text, pos, length);
    pos += length;
  }
  return out;
}

size_t GraphemeEnd(std::string_view text, size_t pos) {
  utf8proc_int32_t state = 0;
  char32_t previous = Utf8CharAt(text, pos);
  pos += Utf8Length(static_cast<unsigned char>(text[pos]));
  while (pos < text.size()) {
    const char32_t next = Utf8CharAt(text, pos);
    if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(previous),
                                         static_cast<utf8proc_int32_t>(next), &state)) {
      break;
    }
    previous = next;
    pos += Utf8Length(static_cast<unsigned char>(text[pos]));
  }
  return pos;
}

absl::Span<const CodePointRange> NewLetters() { return kNewLetters; }
absl::Span<const CodePointRange> NewNumbers() { return kNewNumbers; }

}  // namespace permafrost
