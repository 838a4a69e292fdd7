// Models of a tokenizer.json: BPE, Unigram, WordLevel.

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <utility>

#include "absl/strings/str_format.h"
#include "io/tokenizer_json_util.h"

namespace permafrost {
namespace {

using nlohmann::json;

absl::StatusOr<VocabularyMap> ParseVocabulary(const json& node, const std::string& source) {
  if (!node.is_object()) return Bad(source, "an object 'vocab' of ids by token", node);
  VocabularyMap vocabulary;
  vocabulary.reserve(node.size());
  for (const auto& [token, value] : node.items()) {
    const absl::StatusOr<int> id = ParseId(value, source);
    if (!id.ok()) return id.status();
    vocabulary.emplace(token, *id);
  }
  return vocabulary;
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ParseMerges(
    const json& node, const std::string& source) {
  if (!node.is_array()) return Bad(source, "an array 'merges'", node);
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(node.size());
  for (const json& item : node) {
    if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      merges.emplace_back(item[0].get<std::string>(), item[1].get<std::string>());
      continue;
    }
    if (!item.is_string()) return Bad(source, "a merge (\"a b\" or [\"a\", \"b\"])", item);
    const std::string& text = item.get_ref<const std::string&>();
    if (text.starts_with("#version")) continue;  // the first line of an old merges.txt
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return Bad(source, "a merge of two parts and one space", item);
    }
    merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return merges;
}

std::vector<int> ByteIds(const VocabularyMap& vocabulary) {
  std::vector<int> ids;
  for (int byte = 0; byte < 256; ++byte) {
    const auto it = vocabulary.find(absl::StrFormat("<0x%02X>", byte));
    ids.push_back(it == vocabulary.end() ? -1 : it->second);
  }
  return ids;
}

absl::StatusOr<WordModel> ParseBpe(const JsonFields& fields, const json& node) {
  absl::StatusOr<VocabularyMap> vocabulary = ParseVocabulary(Child(node, "vocab"), fields.source());
  if (!vocabulary.ok()) return vocabulary.status();
  const auto merges = ParseMerges(Child(node, "merges"), fields.source());
  if (!merges.ok()) return merges.status();
  const absl::StatusOr<double> dropout = fields.DoubleOr("dropout", 0);
  if (!dropout.ok()) return dropout.status();
  if (*dropout != 0) {
    return absl::UnimplementedError(
        absl::StrCat(fields.source(), ": BPE dropout ", *dropout, " is not implemented"));
  }
  BpeOptions options;
  for (const auto& [name, target] :
       {std::pair{"unk_token", &options.unk_token},
        {"continuing_subword_prefix", &options.continuing_subword_prefix},
        {"end_of_word_suffix", &options.end_of_word_suffix}}) {
    absl::StatusOr<std::string> value = fields.StringOr(name, "");
    if (!value.ok()) return value.status();
    *target = *std::move(value);
  }
  for (const auto& [name, target] : {std::pair{"fuse_unk", &options.fuse_unk},
                                     {"byte_fallback", &options.byte_fallback},
                                     {"ignore_merges", &options.ignore_merges}}) {
    const absl::StatusOr<bool> value = fields.BoolOr(name, false);
    if (!value.ok()) return value.status();
    *target = *value;
  }
  absl::StatusOr<BpeModel> model =
      BpeModel::Create(*std::move(vocabulary), *merges, std::move(options));
  if (!model.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.source(), ": ", model.status().message()));
  }
  return *std::move(model);
}

// The double that Hugging Face tokenizers reads from a file: its JSON parser takes the digits as
// one whole number and divides by a power of ten, which may be off by one unit in the last place.
// Scores that tie depend on it.
double AsRustReads(double exact) {
  char buffer[64];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof(buffer), exact);
  if (error != std::errc()) return exact;
  uint64_t digits = 0;
  int exponent = 0;
  bool fraction = false;
  for (const char* p = buffer + (exact < 0 ? 1 : 0); p != end; ++p) {
    if (*p == 'e') {
      const char* number = p[1] == '+' ? p + 2 : p + 1;
      int written = 0;
      std::from_chars(number, end, written);
      exponent += written;
      break;
    }
    if (*p == '.') {
      fraction = true;
    } else {  // at most 17 significant digits: no overflow unless the number is huge
      if (digits > (std::numeric_limits<uint64_t>::max() - 9) / 10) return exact;
      digits = digits * 10 + static_cast<uint64_t>(*p - '0');
      if (fraction) --exponent;
    }
  }
  constexpr int kExactPowers = 308;
  if (exponent < -kExactPowers || exponent > kExactPowers) return exact;
  double power = 1;
  const std::string power_text = absl::StrCat("1e", std::abs(exponent));
  std::from_chars(power_text.data(), power_text.data() + power_text.size(), power);
  const double whole = static_cast<double>(digits);
  const double magnitude = exponent < 0 ? whole / power : whole * power;
  return exact < 0 ? -magnitude : magnitude;
}

absl::StatusOr<WordModel> ParseUnigram(const JsonFields& fields, const json& node,
                                       bool exact_scores) {
  const json& list = Child(node, "vocab");
  if (!list.is_array() || list.empty() || list.size() > kMaxTokenId) {
    return Bad(fields.source(), "an array 'vocab' of [token, score]", list);
  }
  std::vector<UnigramModel::Piece> pieces;
  VocabularyMap vocabulary;
  double min_score = std::numeric_limits<double>::infinity();
  for (const json& item : list) {
    if (!item.is_array() || item.size() != 2 || !item[0].is_string() || !item[1].is_number()) {
      return Bad(fields.source(), "[token, score]", item);
    }
    const int id = static_cast<int>(pieces.size());
    const double score = item[1].get<double>();
    pieces.push_back({item[0].get<std::string>(), exact_scores ? score : AsRustReads(score), id});
    vocabulary[pieces.back().text] = id;
    min_score = std::min(min_score, pieces.back().score);
  }
  std::optional<int> unk;
  if (fields.Has("unk_id")) {
    const absl::StatusOr<int> id = ParseId(Child(node, "unk_id"), fields.source());
    if (!id.ok()) return id.status();
    if (static_cast<size_t>(*id) >= pieces.size()) {
      return Bad(fields.source(), "an unk_id below the size of the vocabulary",
                 Child(node, "unk_id"));
    }
    unk = *id;
  }
  const absl::StatusOr<bool> byte_fallback = fields.BoolOr("byte_fallback", false);
  if (!byte_fallback.ok()) return byte_fallback.status();
  constexpr double kUnkPenalty = 10;
  std::vector<int> byte_ids = *byte_fallback ? ByteIds(vocabulary) : std::vector<int>();
  return UnigramWords{
      UnigramModel(pieces, min_score - kUnkPenalty, UnigramModel::Arithmetic::kDouble),
      std::move(vocabulary), unk, std::move(byte_ids)};
}

absl::StatusOr<WordModel> ParseWordLevel(const JsonFields& fields, const json& node) {
  absl::StatusOr<VocabularyMap> vocabulary = ParseVocabulary(Child(node, "vocab"), fields.source());
  if (!vocabulary.ok()) return vocabulary.status();
  const absl::StatusOr<std::string> unk = fields.StringOr("unk_token", "");
  if (!unk.ok()) return unk.status();
  WordLevelModel model{*std::move(vocabulary), std::nullopt};
  if (const auto it = model.vocabulary.find(*unk); it != model.vocabulary.end()) {
    model.unk = it->second;
  }
  return model;
}

}  // namespace

absl::StatusOr<WordModel> ParseWordModel(const json& node, const std::string& source,
                                         bool exact_scores) {
  const JsonFields fields(node, source);
  std::string guess;  // old files have no type
  if (node.is_object() && !fields.Has("type")) {
    guess = fields.Has("merges")              ? "BPE"
            : Child(node, "vocab").is_array() ? "Unigram"
                                              : "WordPiece";
  }
  const absl::StatusOr<std::string> type =
      guess.empty() ? fields.String("type") : fields.StringOr("type", guess);
  if (!type.ok()) return type.status();
  if (*type == "BPE") return ParseBpe(fields, node);
  if (*type == "Unigram") return ParseUnigram(fields, node, exact_scores);
  if (*type == "WordLevel") return ParseWordLevel(fields, node);
  return absl::UnimplementedError(
      absl::StrCat(source, ": model \"", *type, "\" is not implemented"));
}

}  // namespace permafrost
