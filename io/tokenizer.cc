#include "io/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/file.h"
#include "io/json.h"
#include "io/tokenizer_parts.h"
#include "io/tokenizer_sentencepiece.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

using nlohmann::json;

constexpr int64_t kMaxModelBytes = int64_t{1} << 28;
constexpr int kMaxExtraIds = 1 << 16;

absl::StatusOr<json> ReadOptionalJson(const std::string& path) {
  if (!FileExists(path)) return json();
  return ReadJsonFile(path);
}

absl::Status InFile(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

// T5 and Llama use the same kind of file in different ways; the base's config.json says which it
// is, else the name of the file.
absl::StatusOr<SentencePieceOptions> OptionsFor(const std::string& folder, bool spiece) {
  const absl::StatusOr<json> model = ReadOptionalJson(folder + "/config.json");
  if (!model.ok()) return model.status();
  const absl::StatusOr<json> config = ReadOptionalJson(folder + "/tokenizer_config.json");
  if (!config.ok()) return config.status();
  const JsonFields model_fields(*model, folder + "/config.json");
  const JsonFields fields(*config, folder + "/tokenizer_config.json");
  const absl::StatusOr<std::string> type =
      model_fields.StringOr("model_type", spiece ? "t5" : "llama");
  if (!type.ok()) return type.status();
  const bool t5 = *type == "t5" || *type == "mt5" || *type == "umt5";
  SentencePieceOptions options;
  const absl::StatusOr<int64_t> extra_ids = fields.IntOr("extra_ids", t5 ? 100 : 0);
  if (!extra_ids.ok()) return extra_ids.status();
  if (*extra_ids < 0 || *extra_ids > kMaxExtraIds) {
    return absl::InvalidArgumentError(absl::StrCat(fields.source(), ": extra_ids is ", *extra_ids,
                                                   "; expected 0 to ", kMaxExtraIds));
  }
  options.extra_ids = t5 ? static_cast<int>(*extra_ids) : 0;
  const absl::StatusOr<bool> add_bos = fields.BoolOr("add_bos_token", !t5);
  if (!add_bos.ok()) return add_bos.status();
  const absl::StatusOr<bool> add_eos = fields.BoolOr("add_eos_token", false);
  if (!add_eos.ok()) return add_eos.status();
  options.add_bos = !t5 && *add_bos;
  options.add_eos = t5 || *add_eos;
  return options;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadModelFile(const std::string& folder,
                                                         const std::string& path, bool spiece) {
  const absl::StatusOr<std::string> bytes = ReadFile(path, kMaxModelBytes);
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<SentencePieceSpec> spec = ParseSentencePiece(*bytes);
  if (!spec.ok()) return InFile(path, spec.status());
  const absl::StatusOr<SentencePieceOptions> options = OptionsFor(folder, spiece);
  if (!options.ok()) return options.status();
  auto tokenizer = MakeSentencePieceTokenizer(*std::move(spec), *options);
  if (!tokenizer.ok()) return InFile(path, tokenizer.status());
  return tokenizer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  if (!FileExists(path)) {
    for (const bool spiece : {true, false}) {
      const std::string model = folder + (spiece ? "/spiece.model" : "/tokenizer.model");
      if (FileExists(model)) return LoadModelFile(folder, model, spiece);
    }
    return absl::NotFoundError(absl::StrCat(
        folder, ": no tokenizer.json, spiece.model or tokenizer.model in this folder"));
  }
  const absl::StatusOr<json> tokenizer = ReadJsonFile(path);
  if (!tokenizer.ok()) return tokenizer.status();
  const absl::StatusOr<json> config = ReadOptionalJson(folder + "/tokenizer_config.json");
  if (!config.ok()) return config.status();
  absl::StatusOr<TokenizerParts> parts = ParseTokenizerJson(*tokenizer, *config, path);
  if (!parts.ok()) return parts.status();
  auto made = MakeTokenizer(*std::move(parts));
  if (!made.ok()) return InFile(path, made.status());
  return made;
}

std::string StreamDecoder::Append(int id) {
  ids_.push_back(id);
  return Advance(false);
}

std::string StreamDecoder::Finish() {
  std::string rest = Advance(true);
  ids_.clear();
  written_.clear();
  return rest;
}

std::string StreamDecoder::Advance(bool last) {
  // A token's text depends on those before it (a leading space, the bytes of one character), so a
  // few ids stay in the window as context.
  constexpr size_t kContext = 4;
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  const std::string text = tokenizer_->Decode(ids_, skip_special_);
  if (!last && text.ends_with(kReplacement)) return "";  // perhaps half a character
  size_t same = 0;
  while (same < std::min(text.size(), written_.size()) && text[same] == written_[same]) ++same;
  while (same < text.size() && (static_cast<unsigned char>(text[same]) & 0xC0) == 0x80) --same;
  std::string piece = text.substr(same);
  written_ = text;
  if (ids_.size() > 4 * kContext) {
    std::vector<int> tail(ids_.end() - static_cast<std::ptrdiff_t>(kContext), ids_.end());
    std::string tail_text = tokenizer_->Decode(tail, skip_special_);
    // Not where the cut would change the text, as inside a run of byte pieces or after tokens that
    // are all skipped.
    if ((!tail_text.empty() && written_.ends_with(tail_text)) || ids_.size() > 64 * kContext) {
      ids_ = std::move(tail);
      written_ = std::move(tail_text);
    }
  }
  return piece;
}

}  // namespace permafrost
