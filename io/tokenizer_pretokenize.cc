// Pre-tokenizers of io/tokenizer_pipeline.h.

#include <algorithm>
#include <array>

#include "io/tokenizer_pipeline.h"

namespace permafrost {
namespace {

struct Part {
  size_t begin, end;
  bool match;  // after ApplyBehavior: drop it
};

size_t LengthAt(std::string_view text, size_t pos) {
  return Utf8Length(static_cast<unsigned char>(text[pos]));
}

// Covers `text` by the matches and the gaps between them.
std::vector<Part> WithGaps(const std::vector<TextRange>& matches, size_t size) {
  std::vector<Part> parts;
  size_t done = 0;
  for (const TextRange& m : matches) {
    if (m.begin > done) parts.push_back({done, m.begin, false});
    parts.push_back({m.begin, m.end, true});
    done = m.end;
  }
  if (done < size) parts.push_back({done, size, false});
  return parts;
}

std::vector<Part> ApplyBehavior(std::vector<Part> parts, SplitBehavior behavior) {
  if (behavior == SplitBehavior::kRemoved) return parts;
  std::vector<Part> out;
  bool previous = false;
  const auto keep = [&](const Part& p) { out.push_back({p.begin, p.end, false}); };
  switch (behavior) {
    case SplitBehavior::kRemoved:
    case SplitBehavior::kIsolated:
      for (const Part& p : parts) keep(p);
      break;
    case SplitBehavior::kContiguous:
      for (const Part& p : parts) {
        if (p.match == previous && !out.empty()) {
          out.back().end = p.end;
        } else {
          keep(p);
        }
        previous = p.match;
      }
      break;
    case SplitBehavior::kMergedWithPrevious:
      for (const Part& p : parts) {
        if (p.match && !previous && !out.empty()) {
          out.back().end = p.end;
        } else {
          keep(p);
        }
        previous = p.match;
      }
      break;
    case SplitBehavior::kMergedWithNext:
      for (auto p = parts.rbegin(); p != parts.rend(); ++p) {
        if (p->match && !previous && !out.empty()) {
          out.back().begin = p->begin;
        } else {
          keep(*p);
        }
        previous = p->match;
      }
      std::reverse(out.begin(), out.end());
      break;
  }
  return out;
}

void AppendParts(const Word& word, const std::vector<Part>& parts, std::vector<Word>* out) {
  for (const Part& p : parts) {
    if (p.match || p.begin == p.end) continue;
    out->push_back({word.text.substr(p.begin, p.end - p.begin), word.at_start && p.begin == 0});
  }
}

bool InClass(char32_t c, CharacterClass characters) {
  switch (characters) {
    case CharacterClass::kWhitespace:
      return IsWhitespace(c);
    case CharacterClass::kNumber:
      return IsNumber(c);
    case CharacterClass::kPunctuation:
    case CharacterClass::kBertPunctuation:
      return IsPunctuation(c);
  }
  return false;
}

std::string ReplaceSpaces(std::string_view text, std::string_view by) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    if (c == ' ') {
      out.append(by);
    } else {
      out.push_back(c);
    }
  }
  return out;
}

struct PreTokenizer {
  Word& word;
  std::vector<Word>* out;

  absl::Status Matches(const absl::StatusOr<std::vector<TextRange>>& found, SplitBehavior behavior,
                       bool invert) const {
    if (!found.ok()) return found.status();
    std::vector<Part> parts = WithGaps(*found, word.text.size());
    for (Part& p : parts) p.match ^= invert;
    AppendParts(word, ApplyBehavior(std::move(parts), behavior), out);
    return absl::OkStatus();
  }

  absl::Status operator()(const SplitStep& s) const {
    return Matches(s.pattern.FindAll(word.text), s.behavior, s.invert);
  }

  absl::Status operator()(const ByteLevelStep& s) const {
    if (s.add_prefix_space && !word.text.starts_with(' ')) word.text.insert(word.text.begin(), ' ');
    const size_t first = out->size();
    if (s.regex.has_value()) {
      const absl::Status status =
          Matches(s.regex->FindAll(word.text), SplitBehavior::kIsolated, false);
      if (!status.ok()) return status;
    } else {
      out->push_back(std::move(word));
    }
    for (size_t i = first; i < out->size(); ++i) (*out)[i].text = BytesToByteLevel((*out)[i].text);
    return absl::OkStatus();
  }

  absl::Status operator()(const MetaspaceStep& s) const {
    word.text = ReplaceSpaces(word.text, s.replacement);
    const bool prepend = s.prepend == PrependScheme::kAlways ||
                         (s.prepend == PrependScheme::kFirst && word.at_start);
    if (prepend && !word.text.starts_with(s.replacement)) word.text.insert(0, s.replacement);
    if (!s.split) {
      out->push_back(std::move(word));
      return absl::OkStatus();
    }
    return Matches(TextPattern{s.replacement, {}}.FindAll(word.text),
                   SplitBehavior::kMergedWithNext, false);
  }

  absl::Status operator()(const ClassSplitStep& s) const {
    std::vector<TextRange> found;
    for (size_t pos = 0; pos < word.text.size();) {
      const size_t length = LengthAt(word.text, pos);
      if (InClass(Utf8CharAt(word.text, pos), s.characters)) found.push_back({pos, pos + length});
      pos += length;
    }
    return Matches(found, s.behavior, false);
  }

  absl::Status operator()(const WordsStep&) const {
    std::vector<TextRange> found;
    int previous = 0;  // 1 word characters, 2 others, 0 white space
    for (size_t pos = 0; pos < word.text.size();) {
      const char32_t c = Utf8CharAt(word.text, pos);
      const size_t length = LengthAt(word.text, pos);
      const int kind = IsWord(c) ? 1 : IsWhitespace(c) ? 0 : 2;
      if (kind != 0 && kind == previous) found.back().end = pos + length;
      if (kind != 0 && kind != previous) found.push_back({pos, pos + length});
      previous = kind;
      pos += length;
    }
    return Matches(found, SplitBehavior::kRemoved, true);
  }
};

// UTF-8 of the character that stands for each byte.
std::array<std::string, 256> MakeByteLevelTable() {
  std::array<std::string, 256> table;
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    AppendUtf8(printable ? byte : next++, &table[byte]);
  }
  return table;
}

}  // namespace

const char kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string BytesToByteLevel(std::string_view bytes) {
  static const auto* table = new std::array<std::string, 256>(MakeByteLevelTable());
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char c : bytes) out.append((*table)[static_cast<unsigned char>(c)]);
  return out;
}

absl::Status ApplyPreTokenizers(const std::vector<PreTokenizerStep>& steps,
                                std::vector<Word>* words) {
  for (const PreTokenizerStep& step : steps) {
    std::vector<Word> next;
    for (Word& word : *words) {
      const absl::Status status = std::visit(PreTokenizer{word, &next}, step);
      if (!status.ok()) return status;
    }
    *words = std::move(next);
  }
  return absl::OkStatus();
}

}  // namespace permafrost
