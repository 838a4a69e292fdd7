// Byte-pair encoding by merge rank: the BPE model of a tokenizer.json and of GGUF's gpt2 kind.
//
// Non-goals: dropout; SentencePiece's merging by score (tokenizer_sentencepiece.h).

#ifndef PERMAFROST_IO_TOKENIZER_BPE_H_
#define PERMAFROST_IO_TOKENIZER_BPE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace permafrost {

// Token text to id.
using VocabularyMap = absl::flat_hash_map<std::string, int>;

struct BpeOptions {
  std::string unk_token;  // "" for none: unknown characters are dropped then
  std::string continuing_subword_prefix;
  std::string end_of_word_suffix;
  bool fuse_unk = false;
  bool byte_fallback = false;  // unknown characters become <0xXX> pieces where all of them exist
  bool ignore_merges = false;  // a word that is in the vocabulary is taken whole
};

class BpeModel {
 public:
  // `merges` in order of rank. Errors: a merge whose parts or result are not in the vocabulary, an
  // unknown token that is not.
  static absl::StatusOr<BpeModel> Create(
      VocabularyMap vocabulary, const std::vector<std::pair<std::string, std::string>>& merges,
      BpeOptions options);

  const VocabularyMap& vocabulary() const { return vocabulary_; }

  // Appends the ids of one word (valid UTF-8). O(n log n) in its length.
  absl::Status Encode(std::string_view word, std::vector<int>* ids) const;

 private:
  struct Merge {
    int rank, id;
  };

  BpeModel() = default;
  const Merge* FindMerge(int left, int right) const;
  // Ids of the characters of `word`, before any merge.
  std::vector<int> Characters(std::string_view word) const;
  void MergeShort(std::vector<int>* symbols) const;
  void MergeLong(std::vector<int>* symbols) const;

  VocabularyMap vocabulary_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by left id << 32 | right id
  std::vector<int> byte_ids_;                    // ids of <0x00> ... <0xFF>, -1 where missing
  int unk_ = -1;
  BpeOptions options_;
};

}  // namespace permafrost

#endif  // PERMAFROST_IO_TOKENIZER_BPE_H_
