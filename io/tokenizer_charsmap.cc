#include "io/tokenizer_charsmap.h"

#include "absl/strings/str_cat.h"
#include "io/unicode.h"

namespace permafrost {
namespace {

// Fields of a unit of the double array (darts-clone).
bool HasLeaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t Value(uint32_t unit) { return unit & 0x7FFFFFFF; }
uint32_t Label(uint32_t unit) { return unit & 0x800000FF; }
uint32_t Offset(uint32_t unit) { return (unit >> 10) << ((unit & 0x200) >> 6); }

bool IsContinuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

uint32_t ReadU32(std::string_view bytes, size_t pos) {
  uint32_t value = 0;
  for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[pos + i]);
  return value;
}

}  // namespace

absl::StatusOr<CharsMap> CharsMap::Parse(std::string_view bytes) {
  CharsMap map;
  if (bytes.empty()) return map;
  const auto error = [](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat("precompiled_charsmap: ", what...));
  };
  if (bytes.size() < 4) return error("only ", bytes.size(), " bytes");
  const uint32_t trie_bytes = ReadU32(bytes, 0);
  if (trie_bytes % 4 != 0 || trie_bytes > bytes.size() - 4) {
    return error("a trie of ", trie_bytes, " bytes in ", bytes.size() - 4);
  }
  for (size_t pos = 4; pos < 4 + size_t{trie_bytes}; pos += 4) {
    map.units_.push_back(ReadU32(bytes, pos));
  }
  map.pool_ = std::string(bytes.substr(4 + size_t{trie_bytes}));
  if (!map.pool_.empty() && map.pool_.back() != '\0') return error("strings not terminated");
  constexpr size_t kMaxReplacement = 4096;  // so that a small text cannot become a huge one
  for (size_t begin = 0; begin < map.pool_.size();) {
    const size_t end = map.pool_.find('\0', begin);
    if (end - begin > kMaxReplacement) return error("a replacement of ", end - begin, " bytes");
    begin = end + 1;
  }
  // A match may point into the middle of a string, so each one is also checked where it is used.
  if (const absl::Status status = CheckUtf8(map.pool_); !status.ok()) {
    return error(status.message());
  }
  return map;
}

CharsMap::Match CharsMap::Find(std::string_view text, bool first) const {
  Match match;
  if (units_.empty()) return match;
  size_t node = Offset(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == 0) break;
    node ^= byte;
    if (node >= units_.size() || Label(units_[node]) != byte) break;
    const uint32_t unit = units_[node];
    node ^= Offset(unit);
    if (node >= units_.size()) break;
    if (!HasLeaf(unit)) continue;
    if (i + 1 < text.size() && IsContinuation(text[i + 1])) continue;  // half a character
    const size_t start = Value(units_[node]);
    if (start >= pool_.size()) break;
    const std::string_view replacement(pool_.c_str() + start);
    if (!CheckUtf8(replacement).ok()) break;
    match = {i + 1, replacement};
    if (first) break;
  }
  return match;
}

std::string CharsMap::NormalizeClusters(std::string_view text) const {
  constexpr size_t kMaxClusterBytes = 5;
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const size_t end = GraphemeEnd(text, pos);
    if (end - pos <= kMaxClusterBytes) {
      if (const Match match = Shortest(text.substr(pos, end - pos)); match.length > 0) {
        out.append(match.replacement);
        pos = end;
        continue;
      }
    }
    while (pos < end) {
      const size_t length = Utf8Length(static_cast<unsigned char>(text[pos]));
      const std::string_view character = text.substr(pos, length);
      const Match match = Shortest(character);
      out.append(match.length > 0 ? match.replacement : character);
      pos += length;
    }
  }
  return out;
}

}  // namespace permafrost
