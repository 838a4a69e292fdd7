// Tokenizers: text to token ids and back, with the ids that the published models were trained on.
//
// Three kinds of files give one interface: a Hugging Face tokenizer.json (byte-level and
// byte-fallback BPE, Unigram, WordLevel), a SentencePiece model (spiece.model, tokenizer.model) and
// the vocabulary inside a GGUF file. All methods are const and may be called from several threads.
//
// Non-goals: training a tokenizer, offsets into the text, pairs of texts, truncation and padding,
// chat templates.

#ifndef PERMAFROST_IO_TOKENIZER_H_
#define PERMAFROST_IO_TOKENIZER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/gguf.h"

namespace permafrost {

// Whether Encode adds what the model's own tokenizer adds around a text: T5 ends it with </s>,
// Llama starts it with <s>, GPT-2 and SmolLM2 add nothing, a tokenizer.json says it in its
// template.
enum class Special { kNone, kAdd };

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // The ids of `text`, which is one document or one field. Errors: invalid UTF-8 (with the byte
  // offset), a character that the vocabulary cannot express and that has no unknown token.
  virtual absl::StatusOr<std::vector<int>> Encode(std::string_view text, Special special) const = 0;

  // The text of `ids`, always valid UTF-8. `skip_special` leaves bos, eos, pad and the like out. An
  // id outside the vocabulary reads as the unknown token.
  virtual std::string Decode(absl::Span<const int> ids, bool skip_special) const = 0;

  // Number of ids, added tokens included. A model's embedding may have more rows.
  virtual int vocab_size() const = 0;

  // The vocabulary's own spelling of an id, such as "▁the" or "Ġthe"; "" if there is none.
  virtual std::string Piece(int id) const = 0;

  struct SpecialIds {
    std::optional<int> bos, eos, pad, unk;
  };
  virtual const SpecialIds& special_ids() const = 0;

  std::optional<int> bos_id() const { return special_ids().bos; }
  std::optional<int> eos_id() const { return special_ids().eos; }
  std::optional<int> pad_id() const { return special_ids().pad; }
  std::optional<int> unk_id() const { return special_ids().unk; }
};

// The tokenizer of a Hugging Face folder: tokenizer.json, else spiece.model, else tokenizer.model.
// tokenizer_config.json, where there is one, adds special tokens and says whether bos and eos are
// added. Errors: no such file, a damaged file, a component that is not implemented (by name).
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& folder);

// The vocabulary of a GGUF file; see gguf's tokenizer.ggml.* keys for the meaning of the fields.
struct GgufVocabulary {
  std::string model;  // "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE)
  std::string pre;    // pre-tokenizer of a gpt2 vocabulary: "smollm", "llama-bpe", ...
  std::vector<std::string> tokens;   // by id
  std::vector<float> scores;         // by id; llama only
  std::vector<int64_t> token_types;  // 1 normal 2 unknown 3 control 4 user-defined 5 unused 6 byte
  std::vector<std::string> merges;   // "a b"; gpt2 only
  std::optional<int64_t> bos, eos, pad, unk;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

// Reads the tokenizer.ggml.* keys. Errors: a missing key or one of another type.
absl::StatusOr<GgufVocabulary> ReadGgufVocabulary(const GgufFile& file);

// Errors: a model or pre-tokenizer that is not implemented (by name), inconsistent arrays.
absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerFromGguf(const GgufVocabulary& vocabulary);

// Turns ids that arrive one by one into text, for streaming: the concatenation of all pieces equals
// Decode of all ids, and no piece ends inside a character. (Byte pieces that first complete a
// character and then go on with broken bytes are the one exception: a byte-fallback Decode takes
// the whole run for broken.) The tokenizer must outlive it.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // The text that `id` completes; often one word, "" while a character is incomplete.
  std::string Append(int id);
  // What is left at the end, incomplete characters as U+FFFD.
  std::string Finish();

 private:
  std::string Advance(bool last);

  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::vector<int> ids_;  // a window: some context, then what has not been written out
  std::string written_;   // text of the window that is out
};

}  // namespace permafrost

#endif  // PERMAFROST_IO_TOKENIZER_H_
