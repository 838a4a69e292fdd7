// A tokenizer put together from stages: added tokens, normalizers, pre-tokenizers, a model, the
// tokens around a text, decoders. Built from a tokenizer.json or from a GGUF vocabulary.

#ifndef PERMAFROST_IO_TOKENIZER_PARTS_H_
#define PERMAFROST_IO_TOKENIZER_PARTS_H_

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "io/tokenizer.h"
#include "io/tokenizer_bpe.h"
#include "io/tokenizer_pipeline.h"
#include "io/tokenizer_unigram.h"
#include "nlohmann/json_fwd.hpp"

namespace permafrost {

// A token that is looked for in the text before the model sees it.
struct AddedToken {
  std::string content;
  int id = -1;
  bool single_word = false;  // only where no word character is next to it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space after it along
  bool normalized = false;   // is looked for after normalization, in its own normalized form
  bool special = false;      // left out by Decode with skip_special
};

// Unigram as Hugging Face runs it on each word.
struct UnigramWords {
  UnigramModel model;
  VocabularyMap vocabulary;
  std::optional<int> unk;
  std::vector<int> byte_ids;  // of <0x00>..<0xFF> with byte_fallback, -1 where missing; or empty

  absl::Status Encode(std::string_view word, std::vector<int>* ids) const;
};

struct WordLevelModel {
  VocabularyMap vocabulary;
  std::optional<int> unk;

  absl::Status Encode(std::string_view word, std::vector<int>* ids) const;
};

using WordModel = std::variant<BpeModel, UnigramWords, WordLevelModel>;

const VocabularyMap& VocabularyOf(const WordModel& model);

struct TokenizerParts {
  WordModel model;
  std::vector<AddedToken> added;
  std::vector<NormalizerStep> normalizers;
  std::vector<PreTokenizerStep> pre_tokenizers;
  std::vector<DecoderStep> decoders;
  std::vector<int> prefix_ids, suffix_ids;  // around a text with Special::kAdd
  Tokenizer::SpecialIds special_ids;
};

// Errors: an id beyond kMaxTokenId, an added token that does not survive normalization.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(TokenizerParts parts);

inline constexpr int kMaxTokenId = (1 << 22) - 1;

// Parses tokenizer.json and tokenizer_config.json (null if there is none). `source` is the path of
// the former, for messages.
absl::StatusOr<TokenizerParts> ParseTokenizerJson(const nlohmann::json& tokenizer,
                                                  const nlohmann::json& config,
                                                  const std::string& source);

// The model of a tokenizer.json. Unigram scores are read exactly, or as the tokenizers library
// reads them from a file (which decides ties).
absl::StatusOr<WordModel> ParseWordModel(const nlohmann::json& node, const std::string& source,
                                         bool exact_scores);

// The stages of a tokenizer.json; null gives none. Errors name unknown components.
absl::StatusOr<std::vector<NormalizerStep>> ParseNormalizers(const nlohmann::json& node,
                                                             const std::string& source);
absl::StatusOr<std::vector<PreTokenizerStep>> ParsePreTokenizers(const nlohmann::json& node,
                                                                 const std::string& source);
absl::StatusOr<std::vector<DecoderStep>> ParseDecoders(const nlohmann::json& node,
                                                       const std::string& source);

}  // namespace permafrost

#endif  // PERMAFROST_IO_TOKENIZER_PARTS_H_
