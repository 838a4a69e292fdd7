#include "io/tokenizer_unigram.h"

#include <algorithm>
#include <tuple>

#include "io/unicode.h"

namespace permafrost {
namespace {

constexpr size_t kUnset = ~size_t{0};

// The best path that ends at some byte: its score and its last piece.
template <typename Real>
struct Best {
  Real score = 0;
  int id = 0;
  size_t begin = kUnset;
};

}  // namespace

PieceTrie PieceTrie::Build(std::vector<Entry> entries) {
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.text < b.text; });
  PieceTrie trie;
  trie.nodes_.emplace_back();
  // Breadth first, so that the edges of a node are neighbours: each item is a node and the range of
  // entries that start with its path.
  std::vector<std::tuple<size_t, size_t, size_t>> level = {{0, 0, entries.size()}};
  for (size_t depth = 0; !level.empty(); ++depth) {
    std::vector<std::tuple<size_t, size_t, size_t>> below;
    for (auto [node, begin, end] : level) {
      while (begin < end && entries[begin].text.size() == depth) {
        trie.nodes_[node].id = entries[begin++].id;
      }
      trie.nodes_[node].edges_begin = static_cast<uint32_t>(trie.labels_.size());
      while (begin < end) {
        const char label = entries[begin].text[depth];
        size_t stop = begin + 1;
        while (stop < end && entries[stop].text[depth] == label) ++stop;
        below.emplace_back(trie.nodes_.size(), begin, stop);
        trie.labels_.push_back(static_cast<unsigned char>(label));
        trie.targets_.push_back(static_cast<uint32_t>(trie.nodes_.size()));
        trie.nodes_.emplace_back();
        begin = stop;
      }
      trie.nodes_[node].edges_end = static_cast<uint32_t>(trie.labels_.size());
    }
    level = std::move(below);
  }
  return trie;
}

uint32_t PieceTrie::Child(uint32_t node, unsigned char byte) const {
  const auto begin = labels_.begin() + nodes_[node].edges_begin;
  const auto end = labels_.begin() + nodes_[node].edges_end;
  const auto it = std::lower_bound(begin, end, byte);
  if (it == end || *it != byte) return 0;
  return targets_[static_cast<size_t>(it - labels_.begin())];
}

PieceTrie::Match PieceTrie::Longest(std::string_view text) const {
  Match match;
  VisitPrefixes(text, [&](size_t length, int id) { match = {length, id}; });
  return match;
}

UnigramModel::UnigramModel(const std::vector<Piece>& pieces, double unk_score,
                           Arithmetic arithmetic)
    : unk_score_(unk_score), arithmetic_(arithmetic) {
  std::vector<PieceTrie::Entry> entries;
  entries.reserve(pieces.size());
  for (const Piece& piece : pieces) {
    if (!piece.text.empty()) entries.push_back({piece.text, static_cast<int>(scores_.size())});
    scores_.push_back(piece.score);
    ids_.push_back(piece.id);
  }
  trie_ = PieceTrie::Build(std::move(entries));
}

std::vector<UnigramModel::Span> UnigramModel::Segment(std::string_view text) const {
  return arithmetic_ == Arithmetic::kDouble ? Viterbi<double>(text) : Viterbi<float>(text);
}

template <typename Real>
std::vector<UnigramModel::Span> UnigramModel::Viterbi(std::string_view text) const {
  std::vector<Best<Real>> best(text.size() + 1);  // of the paths that end at each byte
  const Real unk_score = static_cast<Real>(unk_score_);
  for (size_t begin = 0; begin < text.size();) {
    const Real so_far = best[begin].score;
    const size_t character = Utf8Length(static_cast<unsigned char>(text[begin]));
    // Equal scores keep the earlier start, that is the longer last piece.
    const auto offer = [&](size_t length, Real score, int id) {
      Best<Real>& target = best[begin + length];
      const Real candidate = score + so_far;
      if (target.begin == kUnset || candidate > target.score) target = {candidate, id, begin};
    };
    bool covered = false;
    trie_.VisitPrefixes(text.substr(begin), [&](size_t length, int index) {
      covered |= length == character;
      offer(length, static_cast<Real>(scores_[static_cast<size_t>(index)]),
            ids_[static_cast<size_t>(index)]);
    });
    if (!covered) offer(character, unk_score, kUnknown);
    begin += character;
  }
  std::vector<Span> spans;
  for (size_t end = text.size(); end > 0; end = best[end].begin) {
    spans.push_back({best[end].begin, end, best[end].id});
  }
  std::reverse(spans.begin(), spans.end());
  return spans;
}

}  // namespace permafrost
