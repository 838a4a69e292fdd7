// Unigram segmentation (Kudo 2018, "Subword Regularization"): the most probable sequence of pieces.
//
// Scores that are equal in exact arithmetic decide by rounding which segmentation wins, for example
// of runs of one character, so the arithmetic is part of the format: a tokenizer.json counts in
// double, as Hugging Face tokenizers does; a SentencePiece model in float, as sentencepiece 0.2.2
// and later do.
//
// Non-goals: sampling, n-best lists, training.

#ifndef PERMAFROST_IO_TOKENIZER_UNIGRAM_H_
#define PERMAFROST_IO_TOKENIZER_UNIGRAM_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace permafrost {

// Strings with ids; finds every string that is a prefix of a text.
class PieceTrie {
 public:
  struct Entry {
    std::string_view text;  // not empty
    int id;                 // >= 0
  };
  // Of equal strings the one that comes last counts.
  static PieceTrie Build(std::vector<Entry> entries);

  // Calls visit(length in bytes, id) for every prefix of `text`, shortest first.
  template <typename Visit>
  void VisitPrefixes(std::string_view text, const Visit& visit) const {
    if (nodes_.empty()) return;
    uint32_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      node = Child(node, static_cast<unsigned char>(text[i]));
      if (node == 0) return;
      if (nodes_[node].id >= 0) visit(i + 1, nodes_[node].id);
    }
  }

  // Length and id of the longest prefix of `text`; {0, -1} if there is none.
  struct Match {
    size_t length = 0;
    int id = -1;
  };
  Match Longest(std::string_view text) const;

 private:
  struct Node {
    uint32_t edges_begin = 0, edges_end = 0;
    int id = -1;
  };
  uint32_t Child(uint32_t node, unsigned char byte) const;  // 0 if there is none

  std::vector<Node> nodes_;  // the root first
  std::vector<unsigned char> labels_;
  std::vector<uint32_t> targets_;
};

class UnigramModel {
 public:
  enum class Arithmetic { kDouble, kFloat };
  struct Piece {
    std::string text;
    double score;
    int id;
  };
  struct Span {
    size_t begin, end;  // bytes
    int id;             // kUnknown for a character that no piece covers
  };
  static constexpr int kUnknown = -1;

  // `unk_score` is the score of one uncovered character.
  UnigramModel(const std::vector<Piece>& pieces, double unk_score, Arithmetic arithmetic);

  // The best segmentation of `text` (valid UTF-8), in order.
  std::vector<Span> Segment(std::string_view text) const;

 private:
  template <typename Real>
  std::vector<Span> Viterbi(std::string_view text) const;

  PieceTrie trie_;  // to indices into the next two
  std::vector<double> scores_;
  std::vector<int> ids_;
  double unk_score_;
  Arithmetic arithmetic_;
};

}  // namespace permafrost

#endif  // PERMAFROST_IO_TOKENIZER_UNIGRAM_H_
