// SentencePiece models: Unigram (T5) and BPE by score (Llama 2), read from a .model file or filled
// from a GGUF vocabulary. Gives the ids of the sentencepiece library; where scores tie, those of
// version 0.2.2 and later, which counts in float.
//
// Non-goals: WORD and CHAR models, training, sampling, byte offsets.

#ifndef PERMAFROST_IO_TOKENIZER_SENTENCEPIECE_H_
#define PERMAFROST_IO_TOKENIZER_SENTENCEPIECE_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "io/tokenizer.h"
#include "io/tokenizer_bpe.h"
#include "io/tokenizer_charsmap.h"
#include "io/tokenizer_unigram.h"

namespace permafrost {

enum class PieceType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// What a .model file says.
struct SentencePieceSpec {
  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::kNormal;
  };
  std::vector<Piece> pieces;  // by id
  bool bpe = false;           // else Unigram
  bool byte_fallback = false;
  bool whitespace_suffix = false;  // a word ends with its space instead of starting with it
  std::string bos_piece = "<s>", eos_piece = "</s>", pad_piece = "<pad>";
  std::string unk_surface = " \xE2\x81\x87 ";
  std::string charsmap;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// Reads a .model file's protocol buffer. Errors: malformed bytes, a model type that is not
// implemented.
absl::StatusOr<SentencePieceSpec> ParseSentencePiece(std::string_view bytes);

struct SentencePieceOptions {
  // T5's sentinels <extra_id_0>, ...: recognized in text, numbered downwards above the pieces.
  int extra_ids = 0;
  bool add_bos = false, add_eos = false;
};

// Errors: empty or repeated pieces, not exactly one unknown piece, add_bos without a bos piece.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(
    SentencePieceSpec spec, const SentencePieceOptions& options);

}  // namespace permafrost

#endif  // PERMAFROST_IO_TOKENIZER_SENTENCEPIECE_H_
