// permafrost tokenize: texts to token ids and back, line by line. Needs a base's tokenizer only.
#include <cstdio>
#include <limits>

#include "absl/strings/str_cat.h"
#include "command.h"
#include "engine/check.h"
#include "io/file.h"
#include "io/json.h"
#include "io/lines.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

struct TokenizeFlags {
  std::string base, data;
  bool plain = false, decode = false;
};

absl::StatusOr<nlohmann::json> EncodeLine(const Tokenizer& tokenizer, const JsonFields& fields,
                                          Special special) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::string text, fields.String("text"));
  const absl::StatusOr<std::vector<int>> ids = tokenizer.Encode(text, special);
  if (!ids.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.source(), ": ", std::string(ids.status().message())));
  }
  return nlohmann::json{{"ids", *ids}};
}

// Special pieces are kept; ids without a piece read as the tokenizer's decoder has it.
absl::StatusOr<nlohmann::json> DecodeLine(const Tokenizer& tokenizer, const JsonFields& fields) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int64_t> given, fields.IntList("ids"));
  std::vector<int> ids;
  for (const int64_t id : given) {
    if (id < 0 || id > std::numeric_limits<int>::max()) {
      return absl::InvalidArgumentError(absl::StrCat(fields.source(),
                                                     ": field 'ids': expected 0 to ",
                                                     tokenizer.vocab_size() - 1, ", found ", id));
    }
    ids.push_back(static_cast<int>(id));
  }
  return nlohmann::json{{"text", tokenizer.Decode(ids, false)}};
}

absl::Status RunTokenize(const TokenizeFlags& f) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, OpenTokenizer(f.base));
  PERMAFROST_ASSIGN_OR_RETURN(const std::string text, ReadFile(f.data));
  const Special special = f.plain ? Special::kNone : Special::kAdd;
  return ForEachJsonLine(text, f.data, [&](int line, const nlohmann::json& object) -> absl::Status {
    const JsonFields fields(object, absl::StrCat(f.data, ":", line));
    PERMAFROST_ASSIGN_OR_RETURN(
        const nlohmann::json result,
        f.decode ? DecodeLine(*tokenizer, fields) : EncodeLine(*tokenizer, fields, special));
    std::printf("%s\n",
                result.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).c_str());
    return absl::OkStatus();
  });
}

}  // namespace

void AddTokenize(Commands& commands) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* app = commands.Add("tokenize", "{\"text\"} lines to {\"ids\"} lines, or back",
                               [flags] { return RunTokenize(*flags); });
  app->add_option("--base", flags->base, "Hugging Face folder or .gguf file")->required();
  app->add_option("--data", flags->data, "JSON lines")->required();
  app->add_flag("--plain", flags->plain, "without the tokens that start and end a text");
  app->add_flag("--decode", flags->decode, "{\"ids\"} lines to {\"text\"} lines");
}

}  // namespace permafrost
