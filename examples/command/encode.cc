#include "encode.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "engine/rows.h"
#include "io/examples.h"

namespace permafrost {
namespace {

std::vector<int32_t> ToIds(const std::vector<int>& ids) { return {ids.begin(), ids.end()}; }

// Decoder: a continuation's ids are what encoding the joined text adds, so that word boundaries
// come out as in running text; if the text's own ids are not a prefix of that, the parts are
// encoded one by one.
absl::StatusOr<Encoded> EncodeDecoder(const Tokenizer& tokenizer, const std::string& input,
                                      const std::vector<std::string>& targets, Special special) {
  Encoded e;
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> ids, tokenizer.Encode(input, special));
  e.input = ToIds(ids);
  bool prefix = true;
  for (const std::string& target : targets) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> joined,
                                tokenizer.Encode(input + target, special));
    prefix =
        prefix && joined.size() > ids.size() && std::equal(ids.begin(), ids.end(), joined.begin());
    e.targets.emplace_back(joined.begin() + static_cast<long>(std::min(ids.size(), joined.size())),
                           joined.end());
  }
  if (prefix) return e;
  e.targets.clear();
  for (const std::string& target : targets) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> alone,
                                tokenizer.Encode(target, Special::kNone));
    e.targets.push_back(ToIds(alone));
  }
  return e;
}

// What the tokenizer adds in front of and behind a text.
struct Around {
  std::vector<int> front, back;
};
absl::StatusOr<Around> SpecialTokens(const Tokenizer& tokenizer) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> with, tokenizer.Encode("a", Special::kAdd));
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> text, tokenizer.Encode("a", Special::kNone));
  const auto at = std::search(with.begin(), with.end(), text.begin(), text.end());
  if (at == with.end()) return Around{};
  return Around{{with.begin(), at}, {at + static_cast<long>(text.size()), with.end()}};
}

}  // namespace

absl::StatusOr<Encoded> EncodeText(const Tokenizer& tokenizer, bool decoder,
                                   const std::string& input,
                                   const std::vector<std::string>& targets) {
  if (decoder) return EncodeDecoder(tokenizer, input, targets, Special::kAdd);
  Encoded e;
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> ids, tokenizer.Encode(input, Special::kAdd));
  e.input = ToIds(ids);
  for (const std::string& target : targets) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> t, tokenizer.Encode(target, Special::kAdd));
    e.targets.push_back(ToIds(t));
  }
  return e;
}

absl::StatusOr<Encoded> EncodePieces(const Tokenizer& tokenizer, bool decoder,
                                     const std::vector<AnchoredPiece>& pieces,
                                     const std::vector<std::string>& targets) {
  PERMAFROST_ASSIGN_OR_RETURN(const Around around, SpecialTokens(tokenizer));
  Encoded e;
  e.input = ToIds(around.front);
  for (size_t i = 0; i < pieces.size(); ++i) {
    e.input.insert(e.input.end(), static_cast<size_t>(pieces[i].virtual_tokens), kVirtual);
    const bool last = i + 1 == pieces.size();
    // A continuation depends on the text right in front of it.
    PERMAFROST_ASSIGN_OR_RETURN(
        Encoded piece,
        EncodeDecoder(tokenizer, pieces[i].text,
                      last && decoder ? targets : std::vector<std::string>(), Special::kNone));
    e.input.insert(e.input.end(), piece.input.begin(), piece.input.end());
    if (last) e.targets = std::move(piece.targets);
  }
  if (decoder) return e;
  e.input.insert(e.input.end(), around.back.begin(), around.back.end());
  for (const std::string& target : targets) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> t, tokenizer.Encode(target, Special::kAdd));
    e.targets.push_back(ToIds(t));
  }
  return e;
}

absl::StatusOr<std::vector<AnchoredPiece>> PiecesOfPrompt(const std::string& input_template,
                                                          const std::string& text, int64_t count) {
  const bool whole = HasAnchors(text);
  PERMAFROST_ASSIGN_OR_RETURN(std::vector<AnchoredPiece> pieces,
                              ParseAnchors(whole ? text : input_template));
  if (CountVirtualTokens(pieces) != count) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected ", count, " virtual tokens, as in the adapter's \"", input_template,
                     "\", found ", CountVirtualTokens(pieces)));
  }
  std::vector<std::string> columns;
  for (AnchoredPiece& piece : pieces) {
    PERMAFROST_ASSIGN_OR_RETURN(const TextTemplate part, TextTemplate::Parse(piece.text));
    for (const std::string& column : part.Columns()) {
      if (std::find(columns.begin(), columns.end(), column) == columns.end()) {
        columns.push_back(column);
      }
    }
    PERMAFROST_ASSIGN_OR_RETURN(
        piece.text, part.Render([&](const std::string&) -> absl::StatusOr<std::string_view> {
          return std::string_view(text);
        }));
  }
  if (columns.size() == (whole ? 0u : 1u)) return pieces;
  return absl::InvalidArgumentError(absl::StrCat(
      "expected the input as the adapter's \"", input_template,
      "\" makes it, {v*N} included and no column, or a template with one column; found ",
      columns.empty() ? "no column" : absl::StrJoin(columns, ", ")));
}

}  // namespace permafrost
