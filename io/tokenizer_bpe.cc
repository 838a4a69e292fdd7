#include "io/tokenizer_bpe.h"

#include <algorithm>
#include <cstddef>
#include <queue>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "io/tokenizer_view.h"
#include "io/unicode.h"

namespace permafrost {
namespace {

constexpr size_t kShortWord = 48;  // below this a linear search per merge beats a heap

uint64_t PairKey(int left, int right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

absl::StatusOr<BpeModel> BpeModel::Create(
    VocabularyMap vocabulary, const std::vector<std::pair<std::string, std::string>>& merges,
    BpeOptions options) {
  BpeModel model;
  model.vocabulary_ = std::move(vocabulary);
  model.options_ = std::move(options);
  model.merges_.reserve(merges.size());
  const size_t prefix = model.options_.continuing_subword_prefix.size();
  int rank = 0;
  for (const auto& [left, right] : merges) {
    if (right.size() < prefix) {
      return absl::InvalidArgumentError(
          absl::StrCat("merge ", rank, " (\"", left, "\" \"", right,
                       "\"): the second part is shorter than the continuing_subword_prefix"));
    }
    const std::string whole = left + right.substr(prefix);
    const auto left_id = model.vocabulary_.find(left);
    const auto right_id = model.vocabulary_.find(right);
    const auto whole_id = model.vocabulary_.find(whole);
    const auto end = model.vocabulary_.end();
    if (left_id == end || right_id == end || whole_id == end) {
      const std::string& missing = left_id == end ? left : right_id == end ? right : whole;
      return absl::InvalidArgumentError(absl::StrCat("merge ", rank, " (\"", left, "\" \"", right,
                                                     "\"): \"", missing,
                                                     "\" is not in the vocabulary"));
    }
    model.merges_[PairKey(left_id->second, right_id->second)] = {rank++, whole_id->second};
  }
  if (!model.options_.unk_token.empty()) {
    const auto unk = model.vocabulary_.find(model.options_.unk_token);
    if (unk == model.vocabulary_.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("unk_token \"", model.options_.unk_token, "\" is not in the vocabulary"));
    }
    model.unk_ = unk->second;
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto it = model.vocabulary_.find(absl::StrFormat("<0x%02X>", byte));
    model.byte_ids_.push_back(it == model.vocabulary_.end() ? -1 : it->second);
  }
  return model;
}

const BpeModel::Merge* BpeModel::FindMerge(int left, int right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

std::vector<int> BpeModel::Characters(std::string_view word) const {
  std::vector<int> ids;
  ids.reserve(word.size());
  const bool plain =
      options_.continuing_subword_prefix.empty() && options_.end_of_word_suffix.empty();
  bool pending_unk = false;
  std::string decorated;
  for (size_t pos = 0; pos < word.size();) {
    const size_t length = Utf8Length(static_cast<unsigned char>(word[pos]));
    std::string_view key = word.substr(pos, length);
    if (!plain) {
      decorated = absl::StrCat(pos > 0 ? options_.continuing_subword_prefix : "", AbslView(key),
                               pos + length == word.size() ? options_.end_of_word_suffix : "");
      key = decorated;
    }
    pos += length;
    if (const auto it = vocabulary_.find(AbslView(key)); it != vocabulary_.end()) {
      if (pending_unk) ids.push_back(unk_);
      pending_unk = false;
      ids.push_back(it->second);
      continue;
    }
    const auto byte_id = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)]; };
    if (options_.byte_fallback &&
        std::all_of(key.begin(), key.end(), [&](char c) { return byte_id(c) >= 0; })) {
      // An unknown token that is still pending comes after these bytes: the reference does so.
      for (const char c : key) ids.push_back(byte_id(c));
      continue;
    }
    if (unk_ < 0) continue;
    if (pending_unk && !options_.fuse_unk) ids.push_back(unk_);
    pending_unk = true;
  }
  if (pending_unk) ids.push_back(unk_);
  return ids;
}

void BpeModel::MergeShort(std::vector<int>* symbols) const {
  while (symbols->size() > 1) {
    const Merge* best = nullptr;
    size_t at = 0;
    for (size_t i = 0; i + 1 < symbols->size(); ++i) {
      const Merge* merge = FindMerge((*symbols)[i], (*symbols)[i + 1]);
      if (merge != nullptr && (best == nullptr || merge->rank < best->rank)) {
        best = merge;
        at = i;
      }
    }
    if (best == nullptr) return;
    (*symbols)[at] = best->id;
    symbols->erase(symbols->begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

void BpeModel::MergeLong(std::vector<int>* symbols) const {
  struct Candidate {
    int rank, position, id;
    bool operator<(const Candidate& other) const {  // the queue's top is its greatest element
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  const int n = static_cast<int>(symbols->size());
  std::vector<int>& ids = *symbols;
  std::vector<int> previous(symbols->size()), next(symbols->size());
  std::priority_queue<Candidate> queue;
  const auto push = [&](int left, int right) {
    if (left < 0 || right >= n) return;
    if (const Merge* merge = FindMerge(ids[left], ids[right])) {
      queue.push({merge->rank, left, merge->id});
    }
  };
  for (int i = 0; i < n; ++i) {
    previous[i] = i - 1;
    next[i] = i + 1;
    push(i, i + 1);
  }
  constexpr int kGone = -1;
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const int left = top.position;
    if (ids[left] == kGone || next[left] >= n) continue;
    const int right = next[left];
    const Merge* merge = FindMerge(ids[left], ids[right]);
    if (merge == nullptr || merge->id != top.id) continue;  // out of date
    ids[left] = top.id;
    ids[right] = kGone;
    next[left] = next[right];
    if (next[right] < n) previous[next[right]] = left;
    push(previous[left], left);
    push(left, next[left]);
  }
  symbols->erase(std::remove(symbols->begin(), symbols->end(), kGone), symbols->end());
}

absl::Status BpeModel::Encode(std::string_view word, std::vector<int>* ids) const {
  if (word.empty()) return absl::OkStatus();
  if (options_.ignore_merges) {
    if (const auto it = vocabulary_.find(AbslView(word)); it != vocabulary_.end()) {
      ids->push_back(it->second);
      return absl::OkStatus();
    }
  }
  if (word.size() > size_t{1} << 30) {
    return absl::ResourceExhaustedError("a word of more than 2^30 bytes");
  }
  std::vector<int> symbols = Characters(word);
  if (symbols.size() < kShortWord) {
    MergeShort(&symbols);
  } else {
    MergeLong(&symbols);
  }
  ids->insert(ids->end(), symbols.begin(), symbols.end());
  return absl::OkStatus();
}

}  // namespace permafrost
