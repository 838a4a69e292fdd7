// permafrost predict: one JSON line per input line, the label and its scores or generated text.
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "nlohmann/json.hpp"
#include "predictions.h"

namespace permafrost {
namespace {

void PrintLine(const nlohmann::ordered_json& line) {
  std::printf("%s\n", line.dump(-1, ' ', true).c_str());
}

absl::Status RunPredict(const AnswerFlags& flags) {
  PERMAFROST_ASSIGN_OR_RETURN(AnswerSession s, OpenAnswers(flags, Labels::kOptional));
  const std::vector<std::string>& words = s.data.label_words;
  if (!s.data.choices.empty()) {
    const std::vector<EnsembleAnswer> answers = LabelAnswers(flags, s);
    for (size_t n = 0; n < answers.size(); ++n) {
      const std::vector<double>& p = answers[n].mean;
      if (!std::isfinite(p[0])) {
        return absl::FailedPreconditionError(
            absl::StrCat(flags.data_path, ":", s.data.line_numbers[n],
                         ": the scores are not finite; expected a base and adapter without "
                         "overflow"));
      }
      nlohmann::ordered_json line = {{"label", words[static_cast<size_t>(answers[n].choice)]}};
      for (size_t i = 0; i < p.size(); ++i) line["scores"][words[i]] = p[i];
      if (flags.ensemble == "vote") {
        for (size_t i = 0; i < p.size(); ++i) line["votes"][words[i]] = answers[n].votes[i];
      }
      PrintLine(line);
    }
    return absl::OkStatus();
  }
  for (size_t i = 0; i < s.data.lines.size(); ++i) {
    PERMAFROST_ASSIGN_OR_RETURN(const GeneratedText answer, GenerateAnswer(flags, s, i));
    nlohmann::ordered_json line;
    if (s.session.tokenizer != nullptr) line["text"] = answer.text;
    line["ids"] = answer.ids;
    PrintLine(line);
  }
  return absl::OkStatus();
}

}  // namespace

void AddPredict(Commands& commands) {
  auto flags = std::make_shared<AnswerFlags>();
  CLI::App* app =
      commands.Add("predict", "One output line per input line: label and scores, or text",
                   [flags] { return RunPredict(*flags); });
  AddAnswerFlags(app, *flags);
}

}  // namespace permafrost
