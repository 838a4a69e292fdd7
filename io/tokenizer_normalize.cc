// Normalizers of io/tokenizer_pipeline.h, and patterns.

#include "io/tokenizer_pipeline.h"

namespace permafrost {
namespace {

size_t LengthAt(std::string_view text, size_t pos) {
  return Utf8Length(static_cast<unsigned char>(text[pos]));
}

std::string StripSpaces(std::string_view text, bool left, bool right) {
  size_t begin = 0, end = text.size();
  while (left && begin < end && IsWhitespace(Utf8CharAt(text, begin))) {
    begin += LengthAt(text, begin);
  }
  while (right && end > begin) {
    size_t start = end - 1;
    while ((static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    if (!IsWhitespace(Utf8CharAt(text, start))) break;
    end = start;
  }
  return std::string(text.substr(begin, end - begin));
}

bool NmtRemoves(char32_t c) {
  return (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F ||
         c == 0x9F;
}

bool NmtMakesSpace(char32_t c) {
  return c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 ||
         (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF ||
         c == 0xFFFD;
}

std::string Nmt(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size(); pos += LengthAt(text, pos)) {
    const char32_t c = Utf8CharAt(text, pos);
    if (!NmtRemoves(c)) AppendUtf8(NmtMakesSpace(c) ? U' ' : c, &out);
  }
  return out;
}

struct Normalizer {
  using Result = absl::StatusOr<std::string>;
  const std::string& text;

  Result operator()(const NormalizeUnicodeStep& s) const { return NormalizeUnicode(text, s.form); }
  Result operator()(const LowercaseStep&) const { return LowercaseUnicode(text); }
  Result operator()(const StripAccentsStep&) const { return StripMarks(text); }
  Result operator()(const NmtStep&) const { return Nmt(text); }
  Result operator()(const StripSpacesStep& s) const { return StripSpaces(text, s.left, s.right); }
  Result operator()(const ReplaceStep& s) const { return s.pattern.ReplaceAll(text, s.content); }
  Result operator()(const PrependStep& s) const { return text.empty() ? text : s.text + text; }
  Result operator()(const PrecompiledStep& s) const { return s.map.NormalizeClusters(text); }
  Result operator()(const ByteLevelNormalizerStep&) const { return BytesToByteLevel(text); }
};

}  // namespace

absl::StatusOr<std::vector<TextRange>> TextPattern::FindAll(std::string_view in) const {
  if (regex.has_value()) return regex->FindAll(in);
  std::vector<TextRange> found;
  if (text.empty()) return found;
  for (size_t at = in.find(text); at != std::string_view::npos; at = in.find(text, at)) {
    found.push_back({at, at + text.size()});
    at += text.size();
  }
  return found;
}

absl::StatusOr<std::string> TextPattern::ReplaceAll(std::string_view in,
                                                    std::string_view by) const {
  const absl::StatusOr<std::vector<TextRange>> found = FindAll(in);
  if (!found.ok()) return found.status();
  std::string out;
  size_t done = 0;
  for (const TextRange& range : *found) {
    out.append(in, done, range.begin - done);
    out.append(by);
    done = range.end;
  }
  out.append(in, done);
  return out;
}

absl::StatusOr<std::string> ApplyNormalizers(const std::vector<NormalizerStep>& steps,
                                             std::string text) {
  for (const NormalizerStep& step : steps) {
    absl::StatusOr<std::string> next = std::visit(Normalizer{text}, step);
    if (!next.ok()) return next.status();
    text = *std::move(next);
  }
  return text;
}

}  // namespace permafrost
