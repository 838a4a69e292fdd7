// SentencePiece's precompiled character map: a double-array trie from character sequences to
// replacements, as stored in a .model file and in a tokenizer.json's Precompiled normalizer.
//
// Non-goals: building a map.

#ifndef PERMAFROST_IO_TOKENIZER_CHARSMAP_H_
#define PERMAFROST_IO_TOKENIZER_CHARSMAP_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace permafrost {

class CharsMap {
 public:
  CharsMap() = default;  // matches nothing
  // Layout: u32 size of the trie in bytes, the trie's u32 units, NUL-terminated strings. Errors: a
  // size that does not fit, strings that are not UTF-8 or not terminated. Empty bytes match
  // nothing.
  static absl::StatusOr<CharsMap> Parse(std::string_view bytes);

  // At the start of `text`, which is UTF-8.
  struct Match {
    size_t length = 0;  // bytes of the text, whole characters; 0 if nothing matches
    std::string_view replacement;
  };
  Match Shortest(std::string_view text) const { return Find(text, true); }
  Match Longest(std::string_view text) const { return Find(text, false); }

  // The whole text as Hugging Face's Precompiled normalizer maps it: a grapheme cluster of fewer
  // than 6 bytes is replaced as a whole by the first match at its start, other characters one by
  // one.
  std::string NormalizeClusters(std::string_view text) const;

 private:
  Match Find(std::string_view text, bool first) const;

  std::vector<uint32_t> units_;
  std::string pool_;
};

}  // namespace permafrost

#endif  // PERMAFROST_IO_TOKENIZER_CHARSMAP_H_
