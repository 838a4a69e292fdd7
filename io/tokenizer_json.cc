// tokenizer.json and tokenizer_config.json: added tokens, post-processor, special tokens.

#include <algorithm>
#include <utility>

#include "io/tokenizer_json_util.h"

namespace permafrost {
namespace {

using nlohmann::json;

// --- Added tokens ---

absl::StatusOr<AddedToken> ParseAddedToken(const json& node, const std::string& source) {
  const JsonFields fields(node, source);
  AddedToken token;
  absl::StatusOr<std::string> content = fields.String("content");
  if (!content.ok()) return content.status();
  token.content = *std::move(content);
  const absl::StatusOr<bool> special = fields.BoolOr("special", false);
  if (!special.ok()) return special.status();
  token.special = *special;
  token.normalized = !*special;
  for (const auto& [name, target] : {std::pair{"single_word", &token.single_word},
                                     {"lstrip", &token.lstrip},
                                     {"rstrip", &token.rstrip},
                                     {"normalized", &token.normalized}}) {
    const absl::StatusOr<bool> value = fields.BoolOr(name, *target);
    if (!value.ok()) return value.status();
    *target = *value;
  }
  return token;
}

AddedToken* FindAdded(TokenizerParts* parts, std::string_view content) {
  for (AddedToken& token : parts->added) {
    if (token.content == content) return &token;
  }
  return nullptr;
}

std::optional<int> FindId(TokenizerParts* parts, std::string_view content) {
  if (const AddedToken* token = FindAdded(parts, content)) return token->id;
  const VocabularyMap& vocabulary = VocabularyOf(parts->model);
  const auto it = vocabulary.find(AbslView(content));
  if (it != vocabulary.end()) return it->second;
  return std::nullopt;
}

// A token that the model knows keeps its id; another one gets the next free id, as in the
// reference.
absl::Status Add(AddedToken token, const std::string& source, TokenizerParts* parts) {
  constexpr size_t kMaxAdded = 1 << 15;
  if (token.content.empty()) return absl::OkStatus();
  if (AddedToken* existing = FindAdded(parts, token.content)) {
    token.id = existing->id;
    *existing = std::move(token);
    return absl::OkStatus();
  }
  if (parts->added.size() == kMaxAdded) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": more than ", kMaxAdded, " added tokens"));
  }
  if (const std::optional<int> id = FindId(parts, token.content)) {
    token.id = *id;
  } else {
    token.id = static_cast<int>(VocabularyOf(parts->model).size());
    for (const AddedToken& other : parts->added) token.id = std::max(token.id, other.id + 1);
  }
  parts->added.push_back(std::move(token));
  return absl::OkStatus();
}

// --- Post-processor ---

absl::Status AppendTemplateIds(const JsonFields& fields, const std::string& name,
                               std::vector<int>* ids) {
  const json* tokens = fields.Find("special_tokens");
  if (tokens == nullptr || !tokens->is_object() || !tokens->contains(name)) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.source(), ": the template's \"", name, "\" is not in special_tokens"));
  }
  const json& list = Child(tokens->at(name), "ids");
  if (!list.is_array()) return Bad(fields.source(), "an array 'ids'", list);
  for (const json& item : list) {
    const absl::StatusOr<int> id = ParseId(item, fields.source());
    if (!id.ok()) return id.status();
    ids->push_back(*id);
  }
  return absl::OkStatus();
}

absl::Status ParseTemplate(const JsonFields& fields, std::vector<int>* before,
                           std::vector<int>* after) {
  const json* single = fields.Find("single");
  if (single == nullptr || !single->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.source(), ": TemplateProcessing without an array 'single'"));
  }
  bool seen = false;
  for (const json& item : *single) {
    if (item.is_object() && item.contains("SpecialToken")) {
      const JsonFields token(item["SpecialToken"], fields.source());
      const absl::StatusOr<std::string> name = token.String("id");
      if (!name.ok()) return name.status();
      const absl::Status status = AppendTemplateIds(fields, *name, seen ? after : before);
      if (!status.ok()) return status;
    } else if (item.is_object() && item.contains("Sequence") && !seen) {
      seen = true;
    } else {
      return Bad(fields.source(), "a SpecialToken or one Sequence in the template", item);
    }
  }
  if (!seen) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.source(), ": the template has no Sequence"));
  }
  return absl::OkStatus();
}

absl::Status ParsePostProcessor(const json& node, const std::string& source,
                                TokenizerParts* parts) {
  if (node.is_null()) return absl::OkStatus();
  const JsonFields fields(node, source);
  const absl::StatusOr<std::string> type = fields.String("type");
  if (!type.ok()) return type.status();
  if (*type == "ByteLevel") return absl::OkStatus();  // changes offsets only
  if (*type == "Sequence") {
    const json& items = Child(node, "processors");
    if (!items.is_array()) return Bad(source, "an array 'processors'", items);
    for (const json& item : items) {
      const absl::Status status = ParsePostProcessor(item, source, parts);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  std::vector<int> before, after;
  if (*type == "TemplateProcessing") {
    const absl::Status status = ParseTemplate(fields, &before, &after);
    if (!status.ok()) return status;
  } else if (*type == "BertProcessing" || *type == "RobertaProcessing") {
    for (const auto& [name, target] : {std::pair{"cls", &before}, {"sep", &after}}) {
      const json& pair = Child(node, name);  // [token, id]
      if (!pair.is_array() || pair.size() != 2) return Bad(source, "[token, id]", pair);
      const absl::StatusOr<int> id = ParseId(pair[1], source);
      if (!id.ok()) return id.status();
      target->push_back(*id);
    }
  } else {
    return absl::UnimplementedError(
        absl::StrCat(source, ": post-processor \"", *type, "\" is not implemented"));
  }
  parts->prefix_ids.insert(parts->prefix_ids.begin(), before.begin(), before.end());
  parts->suffix_ids.insert(parts->suffix_ids.end(), after.begin(), after.end());
  return absl::OkStatus();
}

// --- tokenizer_config.json ---

// A special token in the config: a string, or an object like an added token.
absl::StatusOr<std::optional<AddedToken>> ConfigToken(const json& node, const std::string& source) {
  if (node.is_null()) return std::nullopt;
  AddedToken token;
  if (node.is_object()) {
    absl::StatusOr<AddedToken> parsed = ParseAddedToken(node, source);
    if (!parsed.ok()) return parsed.status();
    token = *std::move(parsed);
  } else if (node.is_string()) {
    token.content = node.get<std::string>();
  } else {
    return Bad(source, "a special token", node);
  }
  token.special = true;
  return token;
}

absl::Status ApplyConfig(const json& config, const std::string& source, TokenizerParts* parts) {
  const json& decoder = Child(config, "added_tokens_decoder");
  for (const auto& [key, node] : decoder.items()) {
    absl::StatusOr<AddedToken> token = ParseAddedToken(node, source);
    if (!token.ok()) return token.status();
    if (absl::Status status = Add(*std::move(token), source, parts); !status.ok()) return status;
  }
  const auto add_special = [&](const json& node, std::optional<int>* id) -> absl::Status {
    absl::StatusOr<std::optional<AddedToken>> token = ConfigToken(node, source);
    if (!token.ok()) return token.status();
    if (!token->has_value() || (*token)->content.empty()) return absl::OkStatus();
    const std::string content = (*token)->content;
    if (FindAdded(parts, content) == nullptr) {
      absl::Status status = Add(**std::move(token), source, parts);
      if (!status.ok()) return status;
    }
    if (id != nullptr) *id = FindId(parts, content);
    return absl::OkStatus();
  };
  std::optional<int> ignored;
  Tokenizer::SpecialIds& ids = parts->special_ids;
  for (const auto& [name, target] : {std::pair{"bos_token", &ids.bos},
                                     {"eos_token", &ids.eos},
                                     {"unk_token", &ids.unk},
                                     {"sep_token", &ignored},
                                     {"pad_token", &ids.pad},
                                     {"cls_token", &ignored},
                                     {"mask_token", &ignored}}) {
    const absl::Status status = add_special(Child(config, name), target);
    if (!status.ok()) return status;
  }
  for (const char* name : {"additional_special_tokens", "extra_special_tokens"}) {
    const json& list = Child(config, name);
    if (!list.is_array() && !list.is_object()) continue;
    for (const json& node : list) {
      const absl::Status status = add_special(node, nullptr);
      if (!status.ok()) return status;
    }
  }
  const JsonFields fields(config, source);
  const absl::StatusOr<bool> add_bos = fields.BoolOr("add_bos_token", false);
  if (!add_bos.ok()) return add_bos.status();
  const absl::StatusOr<bool> add_eos = fields.BoolOr("add_eos_token", false);
  if (!add_eos.ok()) return add_eos.status();
  const bool stated = fields.Has("add_bos_token") || fields.Has("add_eos_token");
  const json& name = Child(config, "tokenizer_class");
  const bool t5 = name == "T5Tokenizer" || name == "T5TokenizerFast";  // its own template stays
  if (stated && !t5) {
    parts->prefix_ids.clear();
    parts->suffix_ids.clear();
    if (*add_bos && ids.bos.has_value()) parts->prefix_ids.push_back(*ids.bos);
    if (*add_eos && ids.eos.has_value()) parts->suffix_ids.push_back(*ids.eos);
  }
  return absl::OkStatus();
}

// Without a tokenizer_config.json the usual names say which tokens are which.
void GuessSpecialIds(TokenizerParts* parts) {
  const auto first = [&](std::initializer_list<const char*> names) -> std::optional<int> {
    for (const char* name : names) {
      const AddedToken* token = FindAdded(parts, name);
      if (token != nullptr && token->special) return token->id;
    }
    return std::nullopt;
  };
  Tokenizer::SpecialIds& ids = parts->special_ids;
  ids.bos = first({"<s>", "<|begin_of_text|>"});
  ids.eos = first({"</s>", "<|end_of_text|>", "<|endoftext|>"});
  ids.pad = first({"<pad>"});
}

}  // namespace

absl::StatusOr<TokenizerParts> ParseTokenizerJson(const json& tokenizer, const json& config,
                                                  const std::string& source) {
  if (!tokenizer.is_object()) return Bad(source, "an object", tokenizer);
  // transformers reads the scores in Python (exactly) for T5Tokenizer, which is also what a folder
  // without a tokenizer class gets, and leaves them to the library for the generic classes.
  const json& tokenizer_class = Child(config, "tokenizer_class");
  const bool exact_scores =
      tokenizer_class != "PreTrainedTokenizerFast" && tokenizer_class != "TokenizersBackend";
  absl::StatusOr<WordModel> model =
      ParseWordModel(Child(tokenizer, "model"), source + ": model", exact_scores);
  if (!model.ok()) return model.status();
  TokenizerParts parts{*std::move(model), {}, {}, {}, {}, {}, {}, {}};
  auto normalizers = ParseNormalizers(Child(tokenizer, "normalizer"), source + ": normalizer");
  if (!normalizers.ok()) return normalizers.status();
  parts.normalizers = *std::move(normalizers);
  auto pre = ParsePreTokenizers(Child(tokenizer, "pre_tokenizer"), source + ": pre_tokenizer");
  if (!pre.ok()) return pre.status();
  parts.pre_tokenizers = *std::move(pre);
  auto decoders = ParseDecoders(Child(tokenizer, "decoder"), source + ": decoder");
  if (!decoders.ok()) return decoders.status();
  parts.decoders = *std::move(decoders);
  const json& added = Child(tokenizer, "added_tokens");
  if (!added.is_null() && !added.is_array()) return Bad(source, "an array 'added_tokens'", added);
  for (const json& node : added) {
    absl::StatusOr<AddedToken> token = ParseAddedToken(node, source + ": added_tokens");
    if (!token.ok()) return token.status();
    if (absl::Status status = Add(*std::move(token), source, &parts); !status.ok()) return status;
  }
  absl::Status status =
      ParsePostProcessor(Child(tokenizer, "post_processor"), source + ": post_processor", &parts);
  if (!status.ok()) return status;
  if (config.is_null()) {
    GuessSpecialIds(&parts);
  } else {
    if (!config.is_object()) return Bad("tokenizer_config.json", "an object", config);
    status = ApplyConfig(config, "tokenizer_config.json", &parts);
    if (!status.ok()) return status;
  }
  if (!parts.special_ids.unk.has_value()) {
    if (const auto* unigram = std::get_if<UnigramWords>(&parts.model)) {
      parts.special_ids.unk = unigram->unk;
    }
  }
  return parts;
}

}  // namespace permafrost
