// The protocol buffer of a SentencePiece model file (ModelProto).

#include <bit>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "io/tokenizer_sentencepiece.h"
#include "io/unicode.h"

namespace permafrost {
namespace {

struct Field {
  uint32_t number = 0;
  uint64_t value = 0;      // of a varint or fixed field
  std::string_view bytes;  // of a length-delimited field
};

// Reads the fields of one message in order.
class MessageReader {
 public:
  explicit MessageReader(std::string_view bytes) : rest_(bytes) {}

  // False at the end or at malformed bytes; ok() tells which.
  bool Next(Field* field) {
    uint64_t key = 0;
    if (rest_.empty() || !Varint(&key)) return false;
    *field = Field();
    field->number = static_cast<uint32_t>(key >> 3);
    switch (key & 7) {
      case 0:
        return Varint(&field->value);
      case 1:
        return Fixed(8, &field->value);
      case 2: {
        uint64_t size = 0;
        if (!Varint(&size)) return false;
        if (size > rest_.size()) return Fail();
        field->bytes = rest_.substr(0, size);
        rest_.remove_prefix(size);
        return true;
      }
      case 5:
        return Fixed(4, &field->value);
      default:
        return Fail();
    }
  }

  bool ok() const { return ok_; }

 private:
  bool Fail() {
    ok_ = false;
    return false;
  }

  bool Varint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_[0]);
      rest_.remove_prefix(1);
      *value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    return Fail();
  }

  bool Fixed(size_t size, uint64_t* value) {
    if (rest_.size() < size) return Fail();
    *value = 0;
    for (size_t i = size; i-- > 0;) *value = *value << 8 | static_cast<unsigned char>(rest_[i]);
    rest_.remove_prefix(size);
    return true;
  }

  std::string_view rest_;
  bool ok_ = true;
};

absl::Status Malformed(const char* where) {
  return absl::InvalidArgumentError(
      absl::StrCat("not a SentencePiece model: malformed bytes in ", where));
}

absl::Status ParsePiece(std::string_view bytes, SentencePieceSpec* spec) {
  SentencePieceSpec::Piece piece;
  MessageReader reader(bytes);
  for (Field f; reader.Next(&f);) {
    if (f.number == 1) piece.text = std::string(f.bytes);
    if (f.number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(f.value));
    if (f.number == 3) {
      if (f.value < 1 || f.value > 6) {
        return absl::InvalidArgumentError(absl::StrCat("piece ", spec->pieces.size(), " has type ",
                                                       f.value, "; expected 1 to 6"));
      }
      piece.type = static_cast<PieceType>(f.value);
    }
  }
  if (!reader.ok()) return Malformed("a piece");
  spec->pieces.push_back(std::move(piece));
  return absl::OkStatus();
}

absl::Status ParseTrainerSpec(std::string_view bytes, SentencePieceSpec* spec) {
  MessageReader reader(bytes);
  for (Field f; reader.Next(&f);) {
    switch (f.number) {
      case 3:
        if (f.value != 1 && f.value != 2) {
          return absl::UnimplementedError(
              absl::StrCat("SentencePiece model type ", f.value,
                           " is not implemented; 1 (unigram) and 2 (BPE) are"));
        }
        spec->bpe = f.value == 2;
        break;
      case 24:
        spec->whitespace_suffix = f.value != 0;
        break;
      case 35:
        spec->byte_fallback = f.value != 0;
        break;
      case 44:
        spec->unk_surface = std::string(f.bytes);
        break;
      case 46:
        spec->bos_piece = std::string(f.bytes);
        break;
      case 47:
        spec->eos_piece = std::string(f.bytes);
        break;
      case 48:
        spec->pad_piece = std::string(f.bytes);
        break;
      default:
        break;
    }
  }
  return reader.ok() ? absl::OkStatus() : Malformed("trainer_spec");
}

absl::Status ParseNormalizerSpec(std::string_view bytes, SentencePieceSpec* spec) {
  MessageReader reader(bytes);
  for (Field f; reader.Next(&f);) {
    if (f.number == 2) spec->charsmap = std::string(f.bytes);
    if (f.number == 3) spec->add_dummy_prefix = f.value != 0;
    if (f.number == 4) spec->remove_extra_whitespaces = f.value != 0;
    if (f.number == 5) spec->escape_whitespaces = f.value != 0;
  }
  return reader.ok() ? absl::OkStatus() : Malformed("normalizer_spec");
}

}  // namespace

absl::StatusOr<SentencePieceSpec> ParseSentencePiece(std::string_view bytes) {
  SentencePieceSpec spec;
  MessageReader reader(bytes);
  for (Field f; reader.Next(&f);) {
    absl::Status status;
    if (f.number == 1) status = ParsePiece(f.bytes, &spec);
    if (f.number == 2) status = ParseTrainerSpec(f.bytes, &spec);
    if (f.number == 3) status = ParseNormalizerSpec(f.bytes, &spec);
    if (!status.ok()) return status;
  }
  if (!reader.ok()) return Malformed("the model");
  if (spec.pieces.empty()) return Malformed("the model: it has no pieces");
  return spec;
}

}  // namespace permafrost
