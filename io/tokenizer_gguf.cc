// Tokenizers from the vocabulary of a GGUF file.

#include <cstdint>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/tokenizer_parts.h"
#include "io/tokenizer_patterns.h"
#include "io/tokenizer_sentencepiece.h"

namespace permafrost {
namespace {

constexpr int64_t kControl = 3, kUserDefined = 4;

absl::Status Bad(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("GGUF tokenizer: ", what));
}

absl::StatusOr<std::optional<int>> CheckId(std::optional<int64_t> id, const char* name,
                                           size_t size) {
  constexpr int64_t kNoToken = 0xFFFFFFFF;  // -1 as converters write it
  if (!id.has_value() || *id == kNoToken || *id == -1) return std::nullopt;
  if (*id < 0 || static_cast<uint64_t>(*id) >= size) {
    return Bad(absl::StrCat(name, " is ", *id, "; expected 0 to ", size - 1));
  }
  return static_cast<int>(*id);
}

absl::StatusOr<Tokenizer::SpecialIds> CheckIds(const GgufVocabulary& vocabulary) {
  Tokenizer::SpecialIds ids;
  const size_t size = vocabulary.tokens.size();
  for (const auto& [id, name, target] : {std::tuple{vocabulary.bos, "bos_token_id", &ids.bos},
                                         {vocabulary.eos, "eos_token_id", &ids.eos},
                                         {vocabulary.pad, "padding_token_id", &ids.pad},
                                         {vocabulary.unk, "unknown_token_id", &ids.unk}}) {
    const absl::StatusOr<std::optional<int>> checked = CheckId(id, name, size);
    if (!checked.ok()) return checked.status();
    *target = *checked;
  }
  return ids;
}

absl::Status AddByteLevel(const char* pattern, TokenizerParts* parts) {
  absl::StatusOr<Regex> regex = Regex::Compile(pattern);
  if (!regex.ok()) return regex.status();
  parts->pre_tokenizers.emplace_back(ByteLevelStep{false, *std::move(regex)});
  return absl::OkStatus();
}

absl::Status AddPreTokenizer(const std::string& pre, TokenizerParts* parts) {
  if (pre == "gpt-2" || pre == "gpt2") return AddByteLevel(kGpt2Pattern, parts);
  if (pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3") {
    return AddByteLevel(kLlama3Pattern, parts);
  }
  if (pre == "smollm") {
    parts->pre_tokenizers.emplace_back(
        ClassSplitStep{CharacterClass::kNumber, SplitBehavior::kIsolated});
    return AddByteLevel(kGpt2Pattern, parts);
  }
  if (pre == "qwen2") {
    parts->normalizers.emplace_back(NormalizeUnicodeStep{NormalForm::kNfc});
    return AddByteLevel(kQwen2Pattern, parts);
  }
  return absl::UnimplementedError(
      absl::StrCat("GGUF tokenizer: pre-tokenizer \"", pre,
                   "\" is not implemented; gpt-2, smollm, llama-bpe and qwen2 are"));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ByteLevelTokenizer(const GgufVocabulary& vocabulary,
                                                              const Tokenizer::SpecialIds& ids) {
  VocabularyMap map;
  std::vector<AddedToken> added;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const std::string& text = vocabulary.tokens[i];
    const int id = static_cast<int>(i);
    if (absl::Status status = CheckUtf8(text); !status.ok() || !map.emplace(text, id).second) {
      return Bad(absl::StrCat("token ", i, " is a repetition or not UTF-8"));
    }
    const int64_t type = vocabulary.token_types.empty() ? 1 : vocabulary.token_types[i];
    if (type == kControl || type == kUserDefined) {
      AddedToken token;
      token.content = text;
      token.id = id;
      token.special = type == kControl;
      added.push_back(std::move(token));
    }
  }
  std::vector<std::pair<std::string, std::string>> merges;
  for (const std::string& merge : vocabulary.merges) {
    const size_t space = merge.find(' ', 1);  // a part is never empty, but may be a space itself
    if (space == std::string::npos || !CheckUtf8(merge).ok()) {
      return Bad(absl::StrCat("merge ", merges.size(), ": expected two parts and a space"));
    }
    merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  BpeOptions options;
  options.ignore_merges =
      vocabulary.pre == "llama-bpe" || vocabulary.pre == "llama3" || vocabulary.pre == "llama-v3";
  const bool llama3 = options.ignore_merges;
  absl::StatusOr<BpeModel> model = BpeModel::Create(std::move(map), merges, std::move(options));
  if (!model.ok()) return Bad(std::string(model.status().message()));
  TokenizerParts parts{*std::move(model), std::move(added), {}, {}, {}, {}, {}, ids};
  if (absl::Status status = AddPreTokenizer(vocabulary.pre, &parts); !status.ok()) return status;
  parts.decoders.push_back(ByteLevelDecoder{});
  if (vocabulary.add_bos.value_or(llama3) && ids.bos.has_value()) {
    parts.prefix_ids.push_back(*ids.bos);
  }
  if (vocabulary.add_eos.value_or(false) && ids.eos.has_value()) {
    parts.suffix_ids.push_back(*ids.eos);
  }
  return MakeTokenizer(std::move(parts));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ScoreTokenizer(const GgufVocabulary& vocabulary,
                                                          const Tokenizer::SpecialIds& ids) {
  if (vocabulary.scores.size() != vocabulary.tokens.size() || vocabulary.token_types.empty()) {
    return Bad(absl::StrCat(vocabulary.tokens.size(), " tokens, ", vocabulary.scores.size(),
                            " scores, ", vocabulary.token_types.size(),
                            " token types; a llama vocabulary needs all three"));
  }
  SentencePieceSpec spec;
  spec.bpe = true;
  spec.byte_fallback = true;
  spec.add_dummy_prefix = vocabulary.add_space_prefix.value_or(true);
  spec.remove_extra_whitespaces = false;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const int64_t type = vocabulary.token_types[i];
    if (type < 1 || type > 6) {
      return Bad(absl::StrCat("token ", i, " has type ", type, "; expected 1 to 6"));
    }
    spec.pieces.push_back(
        {vocabulary.tokens[i], vocabulary.scores[i], static_cast<PieceType>(type)});
  }
  for (const auto& [id, name] : {std::pair{ids.bos, &spec.bos_piece},
                                 {ids.eos, &spec.eos_piece},
                                 {ids.pad, &spec.pad_piece}}) {
    if (id.has_value()) *name = spec.pieces[static_cast<size_t>(*id)].text;
  }
  SentencePieceOptions options;
  options.add_bos = vocabulary.add_bos.value_or(true);
  options.add_eos = vocabulary.add_eos.value_or(false);
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      MakeSentencePieceTokenizer(std::move(spec), options);
  if (!tokenizer.ok()) return Bad(std::string(tokenizer.status().message()));
  return tokenizer;
}

}  // namespace

absl::StatusOr<GgufVocabulary> ReadGgufVocabulary(const GgufFile& file) {
  GgufVocabulary vocabulary;
  const std::string prefix = "tokenizer.ggml.";
  const auto model = file.String(prefix + "model");
  if (!model.ok()) return model.status();
  vocabulary.model = *model;
  const auto pre = file.StringOr(prefix + "pre", "");
  if (!pre.ok()) return pre.status();
  vocabulary.pre = *pre;
  auto tokens = file.StringArray(prefix + "tokens");
  if (!tokens.ok()) return tokens.status();
  vocabulary.tokens = *std::move(tokens);
  if (file.Has(prefix + "scores")) {
    const auto scores = file.FloatArray(prefix + "scores");
    if (!scores.ok()) return scores.status();
    for (const double score : *scores) vocabulary.scores.push_back(static_cast<float>(score));
  }
  if (file.Has(prefix + "token_type")) {
    auto types = file.IntArray(prefix + "token_type");
    if (!types.ok()) return types.status();
    vocabulary.token_types = *std::move(types);
  }
  if (file.Has(prefix + "merges")) {
    auto merges = file.StringArray(prefix + "merges");
    if (!merges.ok()) return merges.status();
    vocabulary.merges = *std::move(merges);
  }
  for (const auto& [name, target] : {std::pair{"bos_token_id", &vocabulary.bos},
                                     {"eos_token_id", &vocabulary.eos},
                                     {"padding_token_id", &vocabulary.pad},
                                     {"unknown_token_id", &vocabulary.unk}}) {
    if (!file.Has(prefix + name)) continue;
    const auto id = file.Int(prefix + name);
    if (!id.ok()) return id.status();
    *target = *id;
  }
  for (const auto& [name, target] : {std::pair{"add_bos_token", &vocabulary.add_bos},
                                     {"add_eos_token", &vocabulary.add_eos},
                                     {"add_space_prefix", &vocabulary.add_space_prefix}}) {
    if (!file.Has(prefix + name)) continue;
    const auto flag = file.Bool(prefix + name);
    if (!flag.ok()) return flag.status();
    *target = *flag;
  }
  return vocabulary;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerFromGguf(const GgufVocabulary& vocabulary) {
  if (vocabulary.tokens.empty()) return Bad("no tokens");
  if (!vocabulary.token_types.empty() &&
      vocabulary.token_types.size() != vocabulary.tokens.size()) {
    return Bad(absl::StrCat(vocabulary.tokens.size(), " tokens but ", vocabulary.token_types.size(),
                            " token types"));
  }
  const absl::StatusOr<Tokenizer::SpecialIds> ids = CheckIds(vocabulary);
  if (!ids.ok()) return ids.status();
  if (vocabulary.model == "gpt2") return ByteLevelTokenizer(vocabulary, *ids);
  if (vocabulary.model == "llama") return ScoreTokenizer(vocabulary, *ids);
  return absl::UnimplementedError(absl::StrCat("GGUF tokenizer: model \"", vocabulary.model,
                                               "\" is not implemented; gpt2 and llama are"));
}

}  // namespace permafrost
