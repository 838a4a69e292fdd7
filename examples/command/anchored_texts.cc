#include "anchored_texts.h"

#include "absl/strings/str_cat.h"
#include "engine/check.h"

namespace permafrost {

std::string TemplateOf(const AdapterSet& adapters) {
  for (size_t i = 0; i < adapters.size(); ++i) {
    const std::string input = adapters.method(i)->InputTemplate();
    if (!input.empty()) return input;
  }
  return "";
}

absl::Status CheckAnchorFlags(const DataFlags& flags, const AdapterSet& adapters) {
  const std::string input = HasAnchors(flags.input) ? flags.input : TemplateOf(adapters);
  if (input.empty()) return absl::OkStatus();
  if (flags.objective.objective != "supervised") {
    return UsageError(absl::StrCat("--objective ", flags.objective.objective,
                                   ": expected virtual tokens in front of the text, found them in "
                                   "the input template '",
                                   input, "'"));
  }
  if (flags.shots.shots > 0) {
    return UsageError(absl::StrCat(
        "--shots: expected an input template without virtual tokens, found '", input, "'"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<AnchoredPiece>> AnchoredTexts::Row(size_t row, const Method& method) {
  const std::string own = method.InputTemplate();
  if (!input_.empty() && !HasAnchors(input_)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--input '", input_, "': expected none, or one with ", method.AnchoredTokens(method.task()),
        " virtual tokens, as in the adapter's '", own, "'"));
  }
  const std::string& input = input_.empty() ? own : input_;
  if (rendered_.count(input) == 0) {
    PERMAFROST_RETURN_IF_ERROR(Render(input, method.AnchoredTokens(method.task())));
  }
  return rendered_[input][row];
}

absl::Status AnchoredTexts::Render(const std::string& input, int64_t count) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<AnchoredPiece> pieces, ParseAnchors(input));
  if (CountVirtualTokens(pieces) != count) {
    return absl::InvalidArgumentError(absl::StrCat("--input '", input, "': expected ", count,
                                                   " virtual tokens, as the adapter has, found ",
                                                   CountVirtualTokens(pieces)));
  }
  std::vector<std::vector<AnchoredPiece>> rows(source_.table.rows.size(), pieces);
  for (size_t p = 0; p < pieces.size(); ++p) {
    if (pieces[p].text.empty()) continue;
    TextOptions options = source_.options;
    options.input = pieces[p].text;
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<TextExample> examples,
                                MakeTextExamples(source_.table, options));
    for (size_t i = 0; i < rows.size(); ++i) rows[i][p].text = examples[i].input;
  }
  rendered_[input] = std::move(rows);
  return absl::OkStatus();
}

}  // namespace permafrost
