#include "convert_tokenizer.h"

#include <algorithm>
#include <memory>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/json.h"
#include "io/tokenizer_patterns.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

using nlohmann::json;

constexpr char kSpace[] = "\xE2\x96\x81";  // U+2581
constexpr int64_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5;

int64_t TypeOf(const GgufVocabulary& v, size_t id) {
  return v.token_types.empty() ? kNormal : v.token_types[id];
}

json AddedTokens(const GgufVocabulary& v) {
  json list = json::array();
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    const int64_t type = TypeOf(v, id);
    const bool special = type == kControl || (type == kUnknown && v.model == "llama");
    if (!special && type != kUserDefined) continue;
    list.push_back({{"id", id},
                    {"content", v.tokens[id]},
                    {"single_word", false},
                    {"lstrip", false},
                    {"rstrip", false},
                    {"normalized", false},
                    {"special", special}});
  }
  return list;
}

json VocabularyOf(const GgufVocabulary& v) {
  json vocabulary = json::object();
  for (size_t id = 0; id < v.tokens.size(); ++id) vocabulary[v.tokens[id]] = id;
  return vocabulary;
}

json Bpe(const GgufVocabulary& v, json merges) {
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", VocabularyOf(v)},
          {"merges", std::move(merges)}};
}

// [prefix] $A [suffix] around a text, or null if there is nothing around it.
json Template(const GgufVocabulary& v, const Tokenizer::SpecialIds& ids, bool add_bos,
              bool add_eos) {
  add_bos = add_bos && ids.bos.has_value();
  add_eos = add_eos && ids.eos.has_value();
  if (!add_bos && !add_eos) return nullptr;
  json specials = json::object();
  const auto special = [&](int id, int type) -> json {
    const std::string& token = v.tokens[static_cast<size_t>(id)];
    specials[token] = {{"id", token}, {"ids", {id}}, {"tokens", {token}}};
    return {{"SpecialToken", {{"id", token}, {"type_id", type}}}};
  };
  const auto sequence = [&](const char* name, int type, json* list) {
    if (add_bos) list->push_back(special(*ids.bos, type));
    list->push_back({{"Sequence", {{"id", name}, {"type_id", type}}}});
    if (add_eos) list->push_back(special(*ids.eos, type));
  };
  json single = json::array(), pair = json::array();
  sequence("A", 0, &single);
  sequence("A", 0, &pair);
  sequence("B", 1, &pair);
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", specials}};
}

json ByteLevel(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

json SplitThenByteLevel(const char* pattern) {
  const json split = {{"type", "Split"},
                      {"pattern", {{"Regex", pattern}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", json::array({split, ByteLevel(false)})}};
}

// `v` has passed TokenizerFromGguf, so that its pre-tokenizer is one of these.
json ByteLevelTokenizer(const GgufVocabulary& v, const Tokenizer::SpecialIds& ids) {
  json merges = json::array();
  for (const std::string& merge : v.merges) {
    const size_t space = merge.find(' ', 1);
    merges.push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  const bool llama3 = v.pre == "llama-bpe" || v.pre == "llama3" || v.pre == "llama-v3";
  json model = Bpe(v, std::move(merges));
  model["ignore_merges"] = llama3;
  json pre = ByteLevel(true);
  json normalizer;
  if (llama3) pre = SplitThenByteLevel(kLlama3Pattern);
  if (v.pre == "qwen2") {
    normalizer = {{"type", "NFC"}};
    pre = SplitThenByteLevel(kQwen2Pattern);
  }
  if (v.pre == "smollm") {
    const json digits = {{"type", "Digits"}, {"individual_digits", true}};
    pre = {{"type", "Sequence"}, {"pretokenizers", json::array({digits, ByteLevel(true)})}};
  }
  return {
      {"normalizer", normalizer},
      {"pre_tokenizer", pre},
      {"post_processor", Template(v, ids, v.add_bos.value_or(llama3), v.add_eos.value_or(false))},
      {"decoder", ByteLevel(true)},
      {"model", std::move(model)}};
}

// Every way to put a normal piece together from two, best score first. Splits of one piece share
// its score; they are ordered by the ids of their parts, as Hugging Face's converter does.
json MergesByScore(const GgufVocabulary& v) {
  std::unordered_map<std::string, size_t> ids;
  std::vector<size_t> order;
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    if (TypeOf(v, id) != kNormal) continue;
    ids.emplace(v.tokens[id], id);
    order.push_back(id);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return v.scores[a] > v.scores[b]; });
  json merges = json::array();
  for (const size_t id : order) {
    const std::string& piece = v.tokens[id];
    std::vector<std::pair<size_t, size_t>> splits;
    for (size_t at = 1; at < piece.size(); ++at) {
      const auto left = ids.find(piece.substr(0, at)), right = ids.find(piece.substr(at));
      if (left != ids.end() && right != ids.end()) splits.push_back({left->second, right->second});
    }
    std::sort(splits.begin(), splits.end());
    for (const auto& [left, right] : splits) merges.push_back({v.tokens[left], v.tokens[right]});
  }
  return merges;
}

absl::StatusOr<json> ScoreTokenizer(const GgufVocabulary& v, const Tokenizer::SpecialIds& ids) {
  json unk;
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    if (TypeOf(v, id) == kUnused) {
      return absl::UnimplementedError(
          absl::StrCat("GGUF tokenizer: unused piece ", id,
                       ": a tokenizer.json cannot merge through pieces that it never returns"));
    }
    if (TypeOf(v, id) == kUnknown) unk = v.tokens[id];
  }
  json model = Bpe(v, MergesByScore(v));
  model["unk_token"] = unk;
  model["fuse_unk"] = true;
  model["byte_fallback"] = true;
  const bool prefix = v.add_space_prefix.value_or(true);
  json normalizers = json::array();
  if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}});
  json decoders = json::array();
  decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (prefix) {
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  return json{
      {"normalizer", {{"type", "Sequence"}, {"normalizers", normalizers}}},
      {"pre_tokenizer", nullptr},
      {"post_processor", Template(v, ids, v.add_bos.value_or(true), v.add_eos.value_or(false))},
      {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}},
      {"model", std::move(model)}};
}

}  // namespace

absl::StatusOr<TokenizerFiles> TokenizerFilesOf(const GgufVocabulary& v) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> checked, TokenizerFromGguf(v));
  const Tokenizer::SpecialIds& ids = checked->special_ids();
  json tokenizer;
  if (v.model == "gpt2") {
    tokenizer = ByteLevelTokenizer(v, ids);
  } else {
    PERMAFROST_ASSIGN_OR_RETURN(tokenizer, ScoreTokenizer(v, ids));
  }
  tokenizer["version"] = "1.0";
  tokenizer["truncation"] = nullptr;
  tokenizer["padding"] = nullptr;
  tokenizer["added_tokens"] = AddedTokens(v);
  json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false}};
  for (const auto& [name, id] : {std::pair{"bos_token", ids.bos},
                                 {"eos_token", ids.eos},
                                 {"pad_token", ids.pad},
                                 {"unk_token", ids.unk}}) {
    if (id.has_value()) config[name] = v.tokens[static_cast<size_t>(*id)];
  }
  return TokenizerFiles{DumpJson(tokenizer) + "\n", DumpJson(config, 2) + "\n"};
}

}  // namespace permafrost
