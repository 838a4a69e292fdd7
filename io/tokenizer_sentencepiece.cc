#include "io/tokenizer_sentencepiece.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "io/tokenizer_view.h"
#include "io/unicode.h"

namespace permafrost {
namespace {

constexpr char kSpace[] = "\xE2\x96\x81";  // U+2581
constexpr char kReplacement[] = "\xEF\xBF\xBD";
constexpr size_t kMaxPieces = size_t{1} << 22;

size_t LengthAt(std::string_view text, size_t pos) {
  return Utf8Length(static_cast<unsigned char>(text[pos]));
}

// The byte that a piece such as <0x0A> stands for, or -1.
int ByteOfPiece(const std::string& text) {
  int byte = 0;
  const bool hexadecimal = text.size() == 6 && absl::SimpleHexAtoi(text.substr(3, 2), &byte);
  return hexadecimal && text == absl::StrFormat("<0x%02X>", byte) ? byte : -1;
}

// Decodes the bytes of byte pieces: what is not UTF-8 becomes U+FFFD byte by byte.
std::string DecodeBytes(std::string_view bytes) {
  std::string out;
  for (size_t pos = 0; pos < bytes.size();) {
    const std::string_view character = bytes.substr(pos, LengthAt(bytes, pos));
    const bool valid = CheckUtf8(character).ok();
    out.append(valid ? character : kReplacement);
    pos += valid ? character.size() : 1;
  }
  return out;
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(SentencePieceSpec spec, const SentencePieceOptions& options)
      : spec_(std::move(spec)), options_(options) {}

  absl::Status Init();

  absl::StatusOr<std::vector<int>> Encode(std::string_view text, Special special) const override;
  std::string Decode(absl::Span<const int> ids, bool skip_special) const override;
  int vocab_size() const override { return static_cast<int>(spec_.pieces.size()); }
  std::string Piece(int id) const override {
    return id >= 0 && id < vocab_size() ? spec_.pieces[static_cast<size_t>(id)].text : "";
  }
  const SpecialIds& special_ids() const override { return special_ids_; }

 private:
  struct Segment {
    size_t begin, end;
    int id;  // UnigramModel::kUnknown for an unknown character
  };

  absl::Status InitPieces();
  void InitUnigram();
  void AddSentinels();
  std::string Normalize(std::string_view text) const;
  // The normalized form of the character or symbol at the start of `text`, and its length there.
  std::pair<std::string_view, size_t> NormalizePrefix(std::string_view text) const;
  void EncodeNormalized(std::string_view text, std::vector<int>* ids) const;
  std::vector<Segment> SegmentBpe(std::string_view text) const;
  PieceType TypeOf(int id) const { return spec_.pieces[static_cast<size_t>(id)].type; }

  SentencePieceSpec spec_;
  SentencePieceOptions options_;
  SpecialIds special_ids_;
  int unk_ = 0;
  VocabularyMap mergeable_;    // NORMAL, USER_DEFINED and UNUSED pieces
  std::vector<int> byte_ids_;  // of the 256 bytes, -1 where missing
  std::vector<int> byte_of_;   // by id: the byte of a BYTE piece, else -1
  PieceTrie user_defined_;
  PieceTrie sentinels_;
  CharsMap charsmap_;
  std::optional<UnigramModel> unigram_;
};

absl::Status SentencePieceTokenizer::InitPieces() {
  if (spec_.pieces.size() > kMaxPieces) {
    return absl::InvalidArgumentError(absl::StrCat(spec_.pieces.size(), " pieces are too many"));
  }
  VocabularyMap all;
  std::vector<PieceTrie::Entry> user_defined;
  byte_ids_.assign(256, -1);
  byte_of_.assign(spec_.pieces.size(), -1);
  int unknowns = 0;
  for (size_t i = 0; i < spec_.pieces.size(); ++i) {
    const SentencePieceSpec::Piece& piece = spec_.pieces[i];
    const int id = static_cast<int>(i);
    if (piece.text.empty() || !CheckUtf8(piece.text).ok() || !all.emplace(piece.text, id).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("piece ", i, " is empty, not UTF-8 or a repetition"));
    }
    switch (piece.type) {
      case PieceType::kUserDefined:
        user_defined.push_back({piece.text, id});
        mergeable_.emplace(piece.text, id);
        break;
      case PieceType::kNormal:
      case PieceType::kUnused:
        mergeable_.emplace(piece.text, id);
        break;
      case PieceType::kUnknown:
        unk_ = id;
        ++unknowns;
        break;
      case PieceType::kControl:
        if (piece.text == spec_.bos_piece) special_ids_.bos = id;
        if (piece.text == spec_.eos_piece) special_ids_.eos = id;
        if (piece.text == spec_.pad_piece) special_ids_.pad = id;
        break;
      case PieceType::kByte:
        byte_of_[i] = ByteOfPiece(piece.text);
        if (byte_of_[i] < 0) {
          return absl::InvalidArgumentError(
              absl::StrCat("piece ", i, " \"", piece.text, "\": expected a byte such as <0x0A>"));
        }
        byte_ids_[static_cast<size_t>(byte_of_[i])] = id;
        break;
    }
  }
  if (unknowns != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(unknowns, " unknown pieces; expected exactly one"));
  }
  special_ids_.unk = unk_;
  user_defined_ = PieceTrie::Build(std::move(user_defined));
  return absl::OkStatus();
}

void SentencePieceTokenizer::InitUnigram() {
  float lowest = std::numeric_limits<float>::max();
  float highest = std::numeric_limits<float>::min();  // the smallest positive: as the reference
  for (const SentencePieceSpec::Piece& piece : spec_.pieces) {
    if (piece.type != PieceType::kNormal) continue;
    lowest = std::min(lowest, piece.score);
    highest = std::max(highest, piece.score);
  }
  std::vector<UnigramModel::Piece> pieces;
  for (size_t i = 0; i < spec_.pieces.size(); ++i) {
    const SentencePieceSpec::Piece& piece = spec_.pieces[i];
    if (piece.type == PieceType::kNormal) {
      pieces.push_back({piece.text, piece.score, static_cast<int>(i)});
    } else if (piece.type == PieceType::kUserDefined) {
      const float bonus = static_cast<float>(piece.text.size()) * highest - 0.1f;
      pieces.push_back({piece.text, bonus, static_cast<int>(i)});
    }
  }
  constexpr float kUnkPenalty = 10;
  unigram_.emplace(pieces, lowest - kUnkPenalty, UnigramModel::Arithmetic::kFloat);
}

// Sentinels that the file does not hold go above its pieces, <extra_id_0> last.
void SentencePieceTokenizer::AddSentinels() {
  std::vector<std::string> names;
  std::vector<int> ids;
  for (int n = options_.extra_ids - 1; n >= 0; --n) {
    std::string name = absl::StrCat("<extra_id_", n, ">");
    int id = -1;
    for (size_t i = 0; i < spec_.pieces.size() && id < 0; ++i) {
      if (spec_.pieces[i].text == name) id = static_cast<int>(i);
    }
    if (id < 0) {
      id = static_cast<int>(spec_.pieces.size());
      spec_.pieces.push_back({name, 0, PieceType::kControl});
      byte_of_.push_back(-1);
    }
    names.push_back(std::move(name));
    ids.push_back(id);
  }
  std::vector<PieceTrie::Entry> entries;
  for (size_t i = 0; i < names.size(); ++i) entries.push_back({names[i], ids[i]});
  sentinels_ = PieceTrie::Build(std::move(entries));
}

absl::Status SentencePieceTokenizer::Init() {
  if (absl::Status status = InitPieces(); !status.ok()) return status;
  absl::StatusOr<CharsMap> map = CharsMap::Parse(spec_.charsmap);
  if (!map.ok()) return map.status();
  charsmap_ = *std::move(map);
  if (!spec_.bpe) InitUnigram();
  if (options_.add_bos && !special_ids_.bos.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model starts texts with \"", spec_.bos_piece, "\", which it lacks"));
  }
  if (options_.add_eos && !special_ids_.eos.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model ends texts with \"", spec_.eos_piece, "\", which it lacks"));
  }
  AddSentinels();
  return absl::OkStatus();
}

std::pair<std::string_view, size_t> SentencePieceTokenizer::NormalizePrefix(
    std::string_view text) const {
  if (const size_t length = user_defined_.Longest(text).length; length > 0) {
    return {text.substr(0, length), length};
  }
  if (const CharsMap::Match match = charsmap_.Longest(text); match.length > 0) {
    return {match.replacement, match.length};
  }
  const size_t length = LengthAt(text, 0);
  return {text.substr(0, length), length};
}

std::string SentencePieceTokenizer::Normalize(std::string_view text) const {
  const bool collapse = spec_.remove_extra_whitespaces;
  const std::string space = spec_.escape_whitespaces ? kSpace : " ";
  while (collapse && !text.empty()) {
    const auto [normalized, length] = NormalizePrefix(text);
    if (normalized != " ") break;
    text.remove_prefix(length);
  }
  std::string out;
  if (text.empty()) return out;
  out.reserve(text.size() * 3 / 2 + 3);
  if (!spec_.whitespace_suffix && spec_.add_dummy_prefix) out += space;
  bool after_space = collapse;
  while (!text.empty()) {
    auto [normalized, length] = NormalizePrefix(text);
    text.remove_prefix(length);
    while (after_space && normalized.starts_with(' ')) normalized.remove_prefix(1);
    if (normalized.empty()) continue;
    for (const char c : normalized) {
      if (c == ' ') {
        out += space;
      } else {
        out.push_back(c);
      }
    }
    after_space = collapse && normalized.ends_with(' ');
  }
  while (collapse && out.ends_with(space)) out.resize(out.size() - space.size());
  if (spec_.whitespace_suffix && spec_.add_dummy_prefix) out += space;
  return out;
}

std::vector<SentencePieceTokenizer::Segment> SentencePieceTokenizer::SegmentBpe(
    std::string_view text) const {
  struct Symbol {
    size_t begin, end;  // empty once merged into its left neighbour
    int previous, next;
    bool frozen;  // a user-defined symbol
  };
  std::vector<Symbol> symbols;
  for (size_t pos = 0; pos < text.size();) {
    const PieceTrie::Match fixed = user_defined_.Longest(text.substr(pos));
    const size_t length = fixed.length > 0 ? fixed.length : LengthAt(text, pos);
    const int index = static_cast<int>(symbols.size());
    symbols.push_back({pos, pos + length, index - 1, index + 1, fixed.length > 0});
    pos += length;
  }
  if (!symbols.empty()) symbols.back().next = -1;
  struct Pair {
    float score;
    int left, right;
    size_t size;
    bool operator<(const Pair& other) const {  // the queue's top is its greatest element
      return score != other.score ? score < other.score : left > other.left;
    }
  };
  std::priority_queue<Pair> queue;
  absl::flat_hash_map<int, size_t> halves;  // an UNUSED result: size of its left part
  const auto find = [&](size_t begin, size_t end) {
    const auto it = mergeable_.find(AbslView(text.substr(begin, end - begin)));
    return it == mergeable_.end() ? -1 : it->second;
  };
  const auto offer = [&](int left, int right) {
    if (left < 0 || right < 0) return;
    const Symbol& a = symbols[static_cast<size_t>(left)];
    const Symbol& b = symbols[static_cast<size_t>(right)];
    if (a.frozen || b.frozen) return;
    const int id = find(a.begin, b.end);
    if (id < 0) return;
    queue.push({spec_.pieces[static_cast<size_t>(id)].score, left, right, b.end - a.begin});
    if (TypeOf(id) == PieceType::kUnused) halves[id] = a.end - a.begin;
  };
  for (size_t i = 1; i < symbols.size(); ++i) offer(static_cast<int>(i) - 1, static_cast<int>(i));
  while (!queue.empty()) {
    const Pair top = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(top.left)];
    Symbol& right = symbols[static_cast<size_t>(top.right)];
    const bool gone = left.begin == left.end || right.begin == right.end;
    if (gone || left.end - left.begin + right.end - right.begin != top.size) continue;
    left.end = right.end;
    left.next = right.next;
    if (right.next >= 0) symbols[static_cast<size_t>(right.next)].previous = top.left;
    right.begin = right.end;
    offer(left.previous, top.left);
    offer(top.left, left.next);
  }
  std::vector<Segment> segments;
  for (int i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    const Symbol& symbol = symbols[static_cast<size_t>(i)];
    std::vector<std::pair<size_t, size_t>> stack = {{symbol.begin, symbol.end}};
    while (!stack.empty()) {  // an UNUSED piece goes back into the parts it was merged from
      const auto [begin, end] = stack.back();
      stack.pop_back();
      const int id = find(begin, end);
      const auto half =
          id >= 0 && TypeOf(id) == PieceType::kUnused ? halves.find(id) : halves.end();
      if (half == halves.end()) {
        segments.push_back({begin, end, id >= 0 ? id : UnigramModel::kUnknown});
        continue;
      }
      stack.push_back({begin + half->second, end});
      stack.push_back({begin, begin + half->second});
    }
  }
  return segments;
}

void SentencePieceTokenizer::EncodeNormalized(std::string_view text, std::vector<int>* ids) const {
  std::vector<Segment> segments;
  if (unigram_.has_value()) {
    for (const UnigramModel::Span& s : unigram_->Segment(text)) {
      segments.push_back({s.begin, s.end, s.id});
    }
  } else {
    segments = SegmentBpe(text);
  }
  bool after_unk = false;
  for (const Segment& segment : segments) {
    const bool unknown = segment.id == UnigramModel::kUnknown;
    if (!unknown) {
      ids->push_back(segment.id);
    } else if (spec_.byte_fallback) {
      for (const char c : text.substr(segment.begin, segment.end - segment.begin)) {
        const int id = byte_ids_[static_cast<unsigned char>(c)];
        ids->push_back(id >= 0 ? id : unk_);
      }
    } else if (!after_unk) {  // neighbours make one unknown token
      ids->push_back(unk_);
    }
    after_unk = unknown;
  }
}

absl::StatusOr<std::vector<int>> SentencePieceTokenizer::Encode(std::string_view text,
                                                                Special special) const {
  if (absl::Status status = CheckUtf8(text); !status.ok()) return status;
  std::vector<int> ids;
  if (special == Special::kAdd && options_.add_bos) ids.push_back(*special_ids_.bos);
  size_t done = 0;
  for (size_t pos = 0; pos < text.size();) {
    const PieceTrie::Match match = sentinels_.Longest(text.substr(pos));
    if (match.length == 0) {
      ++pos;
      continue;
    }
    EncodeNormalized(Normalize(text.substr(done, pos - done)), &ids);
    ids.push_back(match.id);
    pos += match.length;
    done = pos;
  }
  EncodeNormalized(Normalize(text.substr(done)), &ids);
  if (special == Special::kAdd && options_.add_eos) ids.push_back(*special_ids_.eos);
  return ids;
}

std::string SentencePieceTokenizer::Decode(absl::Span<const int> ids, bool skip_special) const {
  const bool strip = spec_.add_dummy_prefix || spec_.remove_extra_whitespaces;
  std::string out, bytes;
  bool at_start = true;  // the next piece's leading space is the dummy prefix
  const auto flush = [&] {
    if (!bytes.empty()) at_start = false;
    out += DecodeBytes(bytes);
    bytes.clear();
  };
  for (const int id : ids) {
    const bool known = id >= 0 && id < vocab_size();
    if (known && byte_of_[static_cast<size_t>(id)] >= 0) {
      bytes.push_back(static_cast<char>(byte_of_[static_cast<size_t>(id)]));
      continue;
    }
    flush();
    const PieceType type = known ? TypeOf(id) : PieceType::kUnknown;
    if (type == PieceType::kControl) {
      if (skip_special) continue;
      out += Piece(id);
    } else if (type == PieceType::kUnknown) {
      out += spec_.unk_surface;
    } else {
      std::string_view piece = spec_.pieces[static_cast<size_t>(id)].text;
      if (at_start && strip && piece.starts_with(kSpace)) {
        piece.remove_prefix(sizeof(kSpace) - 1);
        if (piece.empty() && spec_.remove_extra_whitespaces) continue;
      }
      out += absl::StrReplaceAll(AbslView(piece), {{kSpace, " "}});
    }
    at_start = false;
  }
  flush();
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(
    SentencePieceSpec spec, const SentencePieceOptions& options) {
  auto tokenizer = std::make_unique<SentencePieceTokenizer>(std::move(spec), options);
  if (absl::Status status = tokenizer->Init(); !status.ok()) return status;
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace permafrost
