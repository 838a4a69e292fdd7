#include "io/tokenizer_parts.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/tokenizer_view.h"

namespace permafrost {
namespace {

// Where added tokens are in a text. Finds the leftmost, of those the longest, without overlap.
class AddedTokenFinder {
 public:
  struct Part {
    size_t begin, end;
    const AddedToken* token;  // nullptr for the text between tokens
  };

  // `tokens` and `patterns` (what to look for, one per token) must outlive the finder.
  AddedTokenFinder(const std::vector<const AddedToken*>& tokens,
                   const std::vector<std::string>& patterns)
      : tokens_(tokens) {
    std::vector<PieceTrie::Entry> entries;
    for (size_t i = 0; i < patterns.size(); ++i) {
      if (!patterns[i].empty()) entries.push_back({patterns[i], static_cast<int>(i)});
    }
    trie_ = PieceTrie::Build(std::move(entries));
  }

  std::vector<Part> Split(std::string_view text) const {
    std::vector<Part> parts;
    size_t done = 0;
    for (size_t pos = 0; pos < text.size();) {
      const PieceTrie::Match match = trie_.Longest(text.substr(pos));
      if (match.length == 0) {
        ++pos;
        continue;
      }
      const AddedToken* token = tokens_[static_cast<size_t>(match.id)];
      size_t begin = pos, end = pos + match.length;
      pos = end;
      if (token->single_word && !StandsAlone(text, begin, end)) continue;
      if (token->lstrip) begin = std::max(done, SpaceBefore(text, begin));
      if (token->rstrip) end = SpaceAfter(text, end);
      if (done < begin) parts.push_back({done, begin, nullptr});
      parts.push_back({begin, end, token});
      done = end;
    }
    if (done < text.size()) parts.push_back({done, text.size(), nullptr});
    return parts;
  }

 private:
  static size_t CharacterBefore(std::string_view text, size_t end) {
    --end;
    while ((static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    return end;
  }

  static bool StandsAlone(std::string_view text, size_t begin, size_t end) {
    if (begin > 0 && IsWord(Utf8CharAt(text, CharacterBefore(text, begin)))) return false;
    return end == text.size() || !IsWord(Utf8CharAt(text, end));
  }

  static size_t SpaceBefore(std::string_view text, size_t end) {
    while (end > 0) {
      const size_t start = CharacterBefore(text, end);
      if (!IsWhitespace(Utf8CharAt(text, start))) break;
      end = start;
    }
    return end;
  }

  static size_t SpaceAfter(std::string_view text, size_t begin) {
    while (begin < text.size() && IsWhitespace(Utf8CharAt(text, begin))) {
      begin += Utf8Length(static_cast<unsigned char>(text[begin]));
    }
    return begin;
  }

  std::vector<const AddedToken*> tokens_;
  PieceTrie trie_;
};

class PartsTokenizer : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(TokenizerParts parts) {
    auto tokenizer = std::unique_ptr<PartsTokenizer>(new PartsTokenizer(std::move(parts)));
    if (absl::Status status = tokenizer->Init(); !status.ok()) return status;
    return std::unique_ptr<Tokenizer>(std::move(tokenizer));
  }

  absl::StatusOr<std::vector<int>> Encode(std::string_view text, Special special) const override {
    if (absl::Status status = CheckUtf8(text); !status.ok()) return status;
    std::vector<int> ids;
    if (special == Special::kAdd) ids = parts_.prefix_ids;
    for (const AddedTokenFinder::Part& part : raw_->Split(text)) {
      if (part.token != nullptr) {
        ids.push_back(part.token->id);
        continue;
      }
      const std::string segment(text.substr(part.begin, part.end - part.begin));
      const absl::Status status = EncodeSegment(segment, part.begin == 0, &ids);
      if (!status.ok()) return status;
    }
    if (special == Special::kAdd) {
      ids.insert(ids.end(), parts_.suffix_ids.begin(), parts_.suffix_ids.end());
    }
    return ids;
  }

  std::string Decode(absl::Span<const int> ids, bool skip_special) const override {
    std::vector<std::string> tokens;
    for (const int id : ids) {
      if (id < 0 || id >= vocab_size()) {
        const std::optional<int> unk = parts_.special_ids.unk;
        tokens.push_back(unk.has_value() ? Piece(*unk) : "\xEF\xBF\xBD");
      } else if (!(skip_special && is_special_[static_cast<size_t>(id)])) {
        tokens.push_back(pieces_[static_cast<size_t>(id)]);
      }
    }
    return ApplyDecoders(parts_.decoders, std::move(tokens));
  }

  int vocab_size() const override { return static_cast<int>(pieces_.size()); }

  std::string Piece(int id) const override {
    return id >= 0 && id < vocab_size() ? pieces_[static_cast<size_t>(id)] : "";
  }

  const SpecialIds& special_ids() const override { return parts_.special_ids; }

 private:
  explicit PartsTokenizer(TokenizerParts parts) : parts_(std::move(parts)) {}

  absl::Status Init() {
    for (const auto& [text, id] : VocabularyOf(parts_.model)) {
      if (absl::Status status = SetPiece(id, text); !status.ok()) return status;
    }
    std::vector<const AddedToken*> raw_tokens, normalized_tokens;
    std::vector<std::string> raw_patterns;
    for (const AddedToken& token : parts_.added) {
      if (absl::Status status = SetPiece(token.id, token.content); !status.ok()) return status;
      if (token.special) is_special_[static_cast<size_t>(token.id)] = true;
      if (token.normalized) {
        absl::StatusOr<std::string> pattern = ApplyNormalizers(parts_.normalizers, token.content);
        if (!pattern.ok()) return pattern.status();
        normalized_tokens.push_back(&token);
        // The reference also decodes the token in its normalized form.
        pieces_[static_cast<size_t>(token.id)] = *pattern;
        normalized_patterns_.push_back(*std::move(pattern));
      } else {
        raw_tokens.push_back(&token);
        raw_patterns.push_back(token.content);
      }
    }
    raw_.emplace(raw_tokens, raw_patterns);
    normalized_.emplace(normalized_tokens, normalized_patterns_);
    return absl::OkStatus();
  }

  absl::Status SetPiece(int id, std::string_view text) {
    if (id < 0 || id > kMaxTokenId) {
      return absl::InvalidArgumentError(absl::StrCat("token \"", AbslView(text), "\" has id ", id,
                                                     "; expected 0 to ", kMaxTokenId));
    }
    if (id >= vocab_size()) {
      pieces_.resize(static_cast<size_t>(id) + 1);
      is_special_.resize(static_cast<size_t>(id) + 1);
    }
    pieces_[static_cast<size_t>(id)] = std::string(text);
    return absl::OkStatus();
  }

  absl::Status EncodeSegment(const std::string& segment, bool at_start,
                             std::vector<int>* ids) const {
    const absl::StatusOr<std::string> text = ApplyNormalizers(parts_.normalizers, segment);
    if (!text.ok()) return text.status();
    for (const AddedTokenFinder::Part& part : normalized_->Split(*text)) {
      if (part.token != nullptr) {
        ids->push_back(part.token->id);
        continue;
      }
      std::vector<Word> words = {
          {text->substr(part.begin, part.end - part.begin), at_start && part.begin == 0}};
      absl::Status status = ApplyPreTokenizers(parts_.pre_tokenizers, &words);
      for (size_t i = 0; i < words.size() && status.ok(); ++i) {
        status = std::visit([&](const auto& model) { return model.Encode(words[i].text, ids); },
                            parts_.model);
      }
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  TokenizerParts parts_;
  std::vector<std::string> pieces_;
  std::vector<bool> is_special_;
  std::vector<std::string> normalized_patterns_;
  std::optional<AddedTokenFinder> raw_, normalized_;
};

}  // namespace

absl::Status UnigramWords::Encode(std::string_view word, std::vector<int>* ids) const {
  const std::vector<UnigramModel::Span> spans = model.Segment(word);
  const auto is_unk = [&](const UnigramModel::Span& s) {
    return s.id == UnigramModel::kUnknown || (unk.has_value() && s.id == *unk);
  };
  for (size_t i = 0; i < spans.size();) {
    if (!is_unk(spans[i])) {
      ids->push_back(spans[i++].id);
      continue;
    }
    const size_t begin = spans[i].begin;
    size_t end = begin;
    for (; i < spans.size() && is_unk(spans[i]); ++i) end = spans[i].end;
    const std::string_view text = word.substr(begin, end - begin);
    const auto byte_id = [&](char c) { return byte_ids[static_cast<unsigned char>(c)]; };
    if (const auto it = vocabulary.find(AbslView(text)); it != vocabulary.end()) {
      ids->push_back(it->second);
    } else if (!byte_ids.empty() &&
               std::all_of(text.begin(), text.end(), [&](char c) { return byte_id(c) >= 0; })) {
      for (const char c : text) ids->push_back(byte_id(c));
    } else if (unk.has_value()) {
      ids->push_back(*unk);
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "\"", AbslView(text), "\" is not in the vocabulary, which has no unknown token"));
    }
  }
  return absl::OkStatus();
}

absl::Status WordLevelModel::Encode(std::string_view word, std::vector<int>* ids) const {
  if (const auto it = vocabulary.find(AbslView(word)); it != vocabulary.end()) {
    ids->push_back(it->second);
  } else if (unk.has_value()) {
    ids->push_back(*unk);
  } else {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", AbslView(word), "\" is not in the vocabulary, which has no unknown token"));
  }
  return absl::OkStatus();
}

const VocabularyMap& VocabularyOf(const WordModel& model) {
  if (const auto* bpe = std::get_if<BpeModel>(&model)) return bpe->vocabulary();
  if (const auto* unigram = std::get_if<UnigramWords>(&model)) return unigram->vocabulary;
  return std::get<WordLevelModel>(model).vocabulary;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(TokenizerParts parts) {
  return PartsTokenizer::Create(std::move(parts));
}

}  // namespace permafrost
