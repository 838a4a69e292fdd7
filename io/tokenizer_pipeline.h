// The stages of a tokenizer.json around its model: normalizers, pre-tokenizers, decoders.
//
// Each stage is a flat list of steps; a Sequence in the file is just more steps. Meaning and corner
// cases follow Hugging Face tokenizers 0.23.
//
// Non-goals: offsets into the original text; BertNormalizer and UnicodeScripts.

#ifndef PERMAFROST_IO_TOKENIZER_PIPELINE_H_
#define PERMAFROST_IO_TOKENIZER_PIPELINE_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "io/tokenizer_charsmap.h"
#include "io/tokenizer_regex.h"
#include "io/unicode.h"

namespace permafrost {

// A text or a regular expression to look for.
struct TextPattern {
  std::string text;
  std::optional<Regex> regex;

  absl::StatusOr<std::vector<TextRange>> FindAll(std::string_view in) const;
  absl::StatusOr<std::string> ReplaceAll(std::string_view in, std::string_view by) const;
};

// --- Normalizers ---

struct NormalizeUnicodeStep {
  NormalForm form;
};
struct LowercaseStep {};
struct StripAccentsStep {};
struct NmtStep {};
struct StripSpacesStep {
  bool left, right;
};
struct ReplaceStep {
  TextPattern pattern;
  std::string content;
};
struct PrependStep {
  std::string text;
};
struct PrecompiledStep {
  CharsMap map;
};
struct ByteLevelNormalizerStep {};
using NormalizerStep =
    std::variant<NormalizeUnicodeStep, LowercaseStep, StripAccentsStep, NmtStep, StripSpacesStep,
                 ReplaceStep, PrependStep, PrecompiledStep, ByteLevelNormalizerStep>;

absl::StatusOr<std::string> ApplyNormalizers(const std::vector<NormalizerStep>& steps,
                                             std::string text);

// --- Pre-tokenizers ---

// What becomes of the matches of a split.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  TextPattern pattern;
  SplitBehavior behavior;
  bool invert;
};
struct ByteLevelStep {
  bool add_prefix_space;
  std::optional<Regex> regex;
};
enum class PrependScheme { kAlways, kFirst, kNever };
struct MetaspaceStep {
  std::string replacement;  // one character
  PrependScheme prepend;
  bool split;
};
// Splits at single characters of a class.
enum class CharacterClass { kWhitespace, kNumber, kPunctuation, kBertPunctuation };
struct ClassSplitStep {
  CharacterClass characters;
  SplitBehavior behavior;
};
struct WordsStep {};  // the Whitespace pre-tokenizer: runs of word characters, runs of others
using PreTokenizerStep =
    std::variant<SplitStep, ByteLevelStep, MetaspaceStep, ClassSplitStep, WordsStep>;

struct Word {
  std::string text;
  bool at_start;  // begins where the whole input begins
};

// Cuts `words` further, in place.
absl::Status ApplyPreTokenizers(const std::vector<PreTokenizerStep>& steps,
                                std::vector<Word>* words);

// GPT-2's pattern, used by ByteLevel with use_regex.
extern const char kGpt2Pattern[];

// GPT-2's reversible map of bytes to printable characters.
std::string BytesToByteLevel(std::string_view bytes);

// --- Decoders ---

struct ByteLevelDecoder {};
struct MetaspaceDecoder {
  std::string replacement;
  bool drop_first;
};
struct ByteFallbackDecoder {};
struct FuseDecoder {};
struct StripDecoder {
  std::string content;  // one character
  int start, stop;
};
struct ReplaceDecoder {
  TextPattern pattern;
  std::string content;
};
struct WordPieceDecoder {
  std::string prefix;
  bool cleanup;
};
struct BpeDecoder {
  std::string suffix;
};
using DecoderStep =
    std::variant<ByteLevelDecoder, MetaspaceDecoder, ByteFallbackDecoder, FuseDecoder, StripDecoder,
                 ReplaceDecoder, WordPieceDecoder, BpeDecoder>;

// The text of `tokens`; without any step they are joined with spaces.
std::string ApplyDecoders(const std::vector<DecoderStep>& steps, std::vector<std::string> tokens);

}  // namespace permafrost

#endif  // PERMAFROST_IO_TOKENIZER_PIPELINE_H_
