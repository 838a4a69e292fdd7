// Decoders of io/tokenizer_pipeline.h.

#include <array>
#include <cctype>

#include "absl/strings/str_replace.h"
#include "io/tokenizer_pipeline.h"

namespace permafrost {
namespace {

size_t LengthAt(std::string_view text, size_t pos) {
  return Utf8Length(static_cast<unsigned char>(text[pos]));
}

// Byte that each of U+0000..U+0143 stands for in byte-level text, -1 for none.
std::array<int, 0x144> MakeByteTable() {
  std::array<int, 0x144> table;
  table.fill(-1);
  for (int byte = 0; byte < 256; ++byte) {
    const std::string character = BytesToByteLevel(std::string(1, static_cast<char>(byte)));
    table[Utf8CharAt(character, 0)] = byte;
  }
  return table;
}

// A token that is not byte-level text (an added token) stands for itself.
std::string ByteLevelToBytes(std::string_view token) {
  static const auto* table = new std::array<int, 0x144>(MakeByteTable());
  std::string bytes;
  for (size_t pos = 0; pos < token.size(); pos += LengthAt(token, pos)) {
    const char32_t c = Utf8CharAt(token, pos);
    if (c >= table->size() || (*table)[c] < 0) return std::string(token);
    bytes.push_back(static_cast<char>((*table)[c]));
  }
  return bytes;
}

// The byte of a piece such as <0x0A>, or -1.
int FallbackByte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int lower = std::tolower(static_cast<unsigned char>(c));
    if (!std::isxdigit(static_cast<unsigned char>(c))) return -1;
    value = value * 16 + (lower >= 'a' ? lower - 'a' + 10 : lower - '0');
  }
  return value;
}

std::string CleanUp(const std::string& text) {
  return absl::StrReplaceAll(text, {{" .", "."},
                                    {" ?", "?"},
                                    {" !", "!"},
                                    {" ,", ","},
                                    {" ' ", "'"},
                                    {" n't", "n't"},
                                    {" 'm", "'m"},
                                    {" do not", " don't"},
                                    {" 's", "'s"},
                                    {" 've", "'ve"},
                                    {" 're", "'re"}});
}

struct Decoder {
  using Tokens = std::vector<std::string>;
  const Tokens& tokens;

  Tokens operator()(const ByteLevelDecoder&) const {
    std::string bytes;
    for (const std::string& token : tokens) bytes += ByteLevelToBytes(token);
    return {Utf8Lossy(bytes)};
  }

  Tokens operator()(const MetaspaceDecoder& d) const {
    Tokens out;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const TextPattern replacement{d.replacement, {}};
      out.push_back(*replacement.ReplaceAll(tokens[i], i == 0 && d.drop_first ? "" : " "));
    }
    return out;
  }

  Tokens operator()(const ByteFallbackDecoder&) const {
    Tokens out;
    std::string bytes;
    const auto flush = [&] {
      if (CheckUtf8(bytes).ok()) {
        if (!bytes.empty()) out.push_back(bytes);
      } else {
        out.insert(out.end(), bytes.size(), "\xEF\xBF\xBD");
      }
      bytes.clear();
    };
    for (const std::string& token : tokens) {
      const int byte = FallbackByte(token);
      if (byte >= 0) {
        bytes.push_back(static_cast<char>(byte));
      } else {
        flush();
        out.push_back(token);
      }
    }
    flush();
    return out;
  }

  Tokens operator()(const FuseDecoder&) const {
    std::string all;
    for (const std::string& token : tokens) all += token;
    return {all};
  }

  Tokens operator()(const StripDecoder& d) const {
    Tokens out;
    for (std::string_view token : tokens) {
      for (int i = 0; i < d.start && token.starts_with(d.content); ++i) {
        token.remove_prefix(d.content.size());
      }
      for (int i = 0; i < d.stop && token.ends_with(d.content); ++i) {
        token.remove_suffix(d.content.size());
      }
      out.emplace_back(token);
    }
    return out;
  }

  Tokens operator()(const ReplaceDecoder& d) const {
    Tokens out;
    for (const std::string& token : tokens) {
      absl::StatusOr<std::string> replaced = d.pattern.ReplaceAll(token, d.content);
      out.push_back(replaced.ok() ? *std::move(replaced) : token);
    }
    return out;
  }

  Tokens operator()(const WordPieceDecoder& d) const {
    Tokens out;
    for (size_t i = 0; i < tokens.size(); ++i) {
      std::string token = tokens[i];
      if (i > 0) {
        if (!d.prefix.empty() && token.starts_with(d.prefix)) {
          token.erase(0, d.prefix.size());
        } else {
          token.insert(token.begin(), ' ');
        }
      }
      out.push_back(d.cleanup ? CleanUp(token) : std::move(token));
    }
    return out;
  }

  Tokens operator()(const BpeDecoder& d) const {
    Tokens out;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const TextPattern suffix{d.suffix, {}};
      out.push_back(*suffix.ReplaceAll(tokens[i], i + 1 < tokens.size() ? " " : ""));
    }
    return out;
  }
};

}  // namespace

std::string ApplyDecoders(const std::vector<DecoderStep>& steps, std::vector<std::string> tokens) {
  for (const DecoderStep& step : steps) tokens = std::visit(Decoder{tokens}, step);
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (steps.empty() && i > 0) text.push_back(' ');
    text += tokens[i];
  }
  return text;
}

}  // namespace permafrost
