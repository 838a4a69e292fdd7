// Normalizers, pre-tokenizers and decoders of a tokenizer.json.

#include <cstdint>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "io/json.h"
#include "io/tokenizer_parts.h"
#include "io/tokenizer_view.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

using nlohmann::json;

absl::Status Unknown(const JsonFields& fields, std::string_view what, std::string_view type) {
  return absl::UnimplementedError(absl::StrCat(fields.source(), ": ", AbslView(what), " \"",
                                               AbslView(type), "\" is not implemented"));
}

absl::StatusOr<TextPattern> ParsePattern(const JsonFields& fields) {
  const json* node = fields.Find("pattern");
  if (node == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(fields.source(), ": field 'pattern' missing"));
  }
  if (node->is_string()) return TextPattern{node->get<std::string>(), {}};
  const JsonFields pattern(*node, fields.source());
  if (pattern.Has("String")) {
    absl::StatusOr<std::string> text = pattern.String("String");
    if (!text.ok()) return text.status();
    return TextPattern{*std::move(text), {}};
  }
  const absl::StatusOr<std::string> expression = pattern.String("Regex");
  if (!expression.ok()) return expression.status();
  absl::StatusOr<Regex> regex = Regex::Compile(*expression);
  if (!regex.ok()) return regex.status();
  return TextPattern{"", *std::move(regex)};
}

absl::StatusOr<SplitBehavior> ParseBehavior(const JsonFields& fields, const char* fallback) {
  const absl::StatusOr<std::string> name = fields.StringOr("behavior", fallback);
  if (!name.ok()) return name.status();
  if (*name == "Removed") return SplitBehavior::kRemoved;
  if (*name == "Isolated") return SplitBehavior::kIsolated;
  if (*name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (*name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (*name == "Contiguous") return SplitBehavior::kContiguous;
  return Unknown(fields, "split behavior", *name);
}

// Metaspace of a pre-tokenizer or decoder.
absl::StatusOr<MetaspaceStep> ParseMetaspace(const JsonFields& fields) {
  MetaspaceStep step;
  const absl::StatusOr<std::string> replacement = fields.StringOr("replacement", "\xE2\x96\x81");
  if (!replacement.ok()) return replacement.status();
  step.replacement = *replacement;
  if (step.replacement.empty() ||
      Utf8Length(static_cast<unsigned char>(step.replacement[0])) != step.replacement.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.source(), ": Metaspace's replacement must be one character"));
  }
  const absl::StatusOr<bool> prefix = fields.BoolOr("add_prefix_space", true);  // older files
  if (!prefix.ok()) return prefix.status();
  const absl::StatusOr<std::string> scheme =
      fields.StringOr("prepend_scheme", *prefix ? "always" : "never");
  if (!scheme.ok()) return scheme.status();
  if (*scheme == "always") {
    step.prepend = PrependScheme::kAlways;
  } else if (*scheme == "first") {
    step.prepend = PrependScheme::kFirst;
  } else if (*scheme == "never") {
    step.prepend = PrependScheme::kNever;
  } else {
    return Unknown(fields, "prepend_scheme", *scheme);
  }
  const absl::StatusOr<bool> split = fields.BoolOr("split", true);
  if (!split.ok()) return split.status();
  step.split = *split;
  return step;
}

absl::StatusOr<NormalizerStep> ParseNormalizer(const std::string& type, const JsonFields& fields) {
  if (type == "NFC") return NormalizeUnicodeStep{NormalForm::kNfc};
  if (type == "NFD") return NormalizeUnicodeStep{NormalForm::kNfd};
  if (type == "NFKC") return NormalizeUnicodeStep{NormalForm::kNfkc};
  if (type == "NFKD") return NormalizeUnicodeStep{NormalForm::kNfkd};
  if (type == "Lowercase") return LowercaseStep{};
  if (type == "StripAccents") return StripAccentsStep{};
  if (type == "Nmt") return NmtStep{};
  if (type == "ByteLevel") return ByteLevelNormalizerStep{};
  if (type == "Strip") {
    const absl::StatusOr<bool> left = fields.Bool("strip_left");
    if (!left.ok()) return left.status();
    const absl::StatusOr<bool> right = fields.Bool("strip_right");
    if (!right.ok()) return right.status();
    return StripSpacesStep{*left, *right};
  }
  if (type == "Prepend") {
    absl::StatusOr<std::string> text = fields.String("prepend");
    if (!text.ok()) return text.status();
    return PrependStep{*std::move(text)};
  }
  if (type == "Replace") {
    absl::StatusOr<TextPattern> pattern = ParsePattern(fields);
    if (!pattern.ok()) return pattern.status();
    absl::StatusOr<std::string> content = fields.String("content");
    if (!content.ok()) return content.status();
    return ReplaceStep{*std::move(pattern), *std::move(content)};
  }
  if (type == "Precompiled") {
    const absl::StatusOr<std::string> base64 = fields.StringOr("precompiled_charsmap", "");
    if (!base64.ok()) return base64.status();
    std::string bytes;
    if (!absl::Base64Unescape(*base64, &bytes)) {
      return absl::InvalidArgumentError(
          absl::StrCat(fields.source(), ": precompiled_charsmap is not base64"));
    }
    absl::StatusOr<CharsMap> map = CharsMap::Parse(bytes);
    if (!map.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(fields.source(), ": ", map.status().message()));
    }
    return PrecompiledStep{*std::move(map)};
  }
  return Unknown(fields, "normalizer", type);
}

absl::StatusOr<PreTokenizerStep> ParsePreTokenizer(const std::string& type,
                                                   const JsonFields& fields) {
  if (type == "WhitespaceSplit") {
    return ClassSplitStep{CharacterClass::kWhitespace, SplitBehavior::kRemoved};
  }
  if (type == "Whitespace") return WordsStep{};
  if (type == "Digits") {
    const absl::StatusOr<bool> individual = fields.BoolOr("individual_digits", false);
    if (!individual.ok()) return individual.status();
    return ClassSplitStep{CharacterClass::kNumber,
                          *individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous};
  }
  if (type == "Punctuation") {
    const absl::StatusOr<SplitBehavior> behavior = ParseBehavior(fields, "Isolated");
    if (!behavior.ok()) return behavior.status();
    return ClassSplitStep{CharacterClass::kPunctuation, *behavior};
  }
  if (type == "Metaspace") {
    absl::StatusOr<MetaspaceStep> step = ParseMetaspace(fields);
    if (!step.ok()) return step.status();
    return *std::move(step);
  }
  if (type == "ByteLevel") {
    ByteLevelStep step;
    const absl::StatusOr<bool> prefix = fields.BoolOr("add_prefix_space", true);
    if (!prefix.ok()) return prefix.status();
    step.add_prefix_space = *prefix;
    const absl::StatusOr<bool> use_regex = fields.BoolOr("use_regex", true);
    if (!use_regex.ok()) return use_regex.status();
    if (*use_regex) {
      absl::StatusOr<Regex> regex = Regex::Compile(kGpt2Pattern);
      if (!regex.ok()) return regex.status();
      step.regex = *std::move(regex);
    }
    return step;
  }
  if (type == "Split") {
    absl::StatusOr<TextPattern> pattern = ParsePattern(fields);
    if (!pattern.ok()) return pattern.status();
    const absl::StatusOr<SplitBehavior> behavior = ParseBehavior(fields, "Removed");
    if (!behavior.ok()) return behavior.status();
    const absl::StatusOr<bool> invert = fields.BoolOr("invert", false);
    if (!invert.ok()) return invert.status();
    return SplitStep{*std::move(pattern), *behavior, *invert};
  }
  return Unknown(fields, "pre-tokenizer", type);
}

absl::StatusOr<DecoderStep> ParseDecoder(const std::string& type, const JsonFields& fields) {
  if (type == "ByteLevel") return ByteLevelDecoder{};
  if (type == "ByteFallback") return ByteFallbackDecoder{};
  if (type == "Fuse") return FuseDecoder{};
  if (type == "Metaspace") {
    const absl::StatusOr<MetaspaceStep> step = ParseMetaspace(fields);
    if (!step.ok()) return step.status();
    return MetaspaceDecoder{step->replacement, step->prepend != PrependScheme::kNever};
  }
  if (type == "Strip") {
    const absl::StatusOr<std::string> content = fields.String("content");
    if (!content.ok()) return content.status();
    const absl::StatusOr<int64_t> start = fields.IntOr("start", 0);
    if (!start.ok()) return start.status();
    const absl::StatusOr<int64_t> stop = fields.IntOr("stop", 0);
    if (!stop.ok()) return stop.status();
    if (content->empty() || *start < 0 || *stop < 0 || *start > 1000 || *stop > 1000) {
      return absl::InvalidArgumentError(
          absl::StrCat(fields.source(), ": Strip needs a content and counts from 0 to 1000"));
    }
    return StripDecoder{*content, static_cast<int>(*start), static_cast<int>(*stop)};
  }
  if (type == "Replace") {
    absl::StatusOr<TextPattern> pattern = ParsePattern(fields);
    if (!pattern.ok()) return pattern.status();
    absl::StatusOr<std::string> content = fields.String("content");
    if (!content.ok()) return content.status();
    return ReplaceDecoder{*std::move(pattern), *std::move(content)};
  }
  if (type == "WordPiece") {
    const absl::StatusOr<std::string> prefix = fields.StringOr("prefix", "##");
    if (!prefix.ok()) return prefix.status();
    const absl::StatusOr<bool> cleanup = fields.BoolOr("cleanup", true);
    if (!cleanup.ok()) return cleanup.status();
    return WordPieceDecoder{*prefix, *cleanup};
  }
  if (type == "BPEDecoder") {
    const absl::StatusOr<std::string> suffix = fields.StringOr("suffix", "</w>");
    if (!suffix.ok()) return suffix.status();
    return BpeDecoder{*suffix};
  }
  return Unknown(fields, "decoder", type);
}

// Flattens Sequences (their steps are in `list`) and parses every other component.
template <typename Step, typename Parse>
absl::Status ParseSteps(const json& node, const std::string& source, const char* list,
                        const Parse& parse, std::vector<Step>* steps) {
  if (node.is_null()) return absl::OkStatus();
  const JsonFields fields(node, source);
  const absl::StatusOr<std::string> type = fields.String("type");
  if (!type.ok()) return type.status();
  if (*type != "Sequence") {
    absl::StatusOr<Step> step = parse(*type, fields);
    if (!step.ok()) return step.status();
    steps->push_back(*std::move(step));
    return absl::OkStatus();
  }
  const json* items = fields.Find(list);
  if (items == nullptr || !items->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": a Sequence without an array '", list, "'"));
  }
  for (const json& item : *items) {
    const absl::Status status = ParseSteps(item, source, list, parse, steps);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<NormalizerStep>> ParseNormalizers(const json& node,
                                                             const std::string& source) {
  std::vector<NormalizerStep> steps;
  const absl::Status status = ParseSteps(node, source, "normalizers", ParseNormalizer, &steps);
  if (!status.ok()) return status;
  return steps;
}

absl::StatusOr<std::vector<PreTokenizerStep>> ParsePreTokenizers(const json& node,
                                                                 const std::string& source) {
  std::vector<PreTokenizerStep> steps;
  const absl::Status status = ParseSteps(node, source, "pretokenizers", ParsePreTokenizer, &steps);
  if (!status.ok()) return status;
  return steps;
}

absl::StatusOr<std::vector<DecoderStep>> ParseDecoders(const json& node,
                                                       const std::string& source) {
  std::vector<DecoderStep> steps;
  const absl::Status status = ParseSteps(node, source, "decoders", ParseDecoder, &steps);
  if (!status.ok()) return status;
  return steps;
}

}  // namespace permafrost
