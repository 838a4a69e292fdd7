#include "predictions.h"

#include <algorithm>

#include "engine/check.h"
#include "models/generate.h"
#include "shots.h"

namespace permafrost {
namespace {

// The ids of a line without those of its target, which a decoder's line holds behind the text.
std::vector<int32_t> InputIds(const TokenLine& line, bool encoder_decoder) {
  std::vector<int32_t> ids = line.input_ids;
  if (encoder_decoder) return ids;
  const auto first = std::find_if(line.labels.begin(), line.labels.end(),
                                  [](int32_t label) { return label != kIgnoredLabel; });
  if (first != line.labels.end()) ids.resize(static_cast<size_t>(first - line.labels.begin()));
  return ids;
}

}  // namespace

void AddAnswerFlags(CLI::App* app, AnswerFlags& flags) {
  AddBaseFlags(app, flags.base);
  AddAdapterFlag(app, flags.adapters);
  AddDataFlags(app, flags.data);
  AddShotFlags(app, flags.data);
  app->add_option("--data", flags.data_path, "data file")->required();
  app->add_option("--score", flags.score,
                  "score of a label word: sum, mean or first of its tokens' log-probabilities")
      ->check(CLI::IsMember({"sum", "mean", "first"}))
      ->capture_default_str();
  app->add_option("--batch-size", flags.batch_size, "lines")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--max-new-tokens", flags.max_new_tokens, "longest generated text")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--ensemble", flags.ensemble,
                  "every adapter on every line: mean of their probabilities (what the flag means "
                  "without a value), or vote (ties: the higher mean)")
      ->expected(0, 1)
      ->default_str("mean")
      ->check(CLI::IsMember({"mean", "vote"}));
}

absl::StatusOr<AnswerSession> OpenAnswers(const AnswerFlags& flags, Labels labels) {
  if (!flags.ensemble.empty() && flags.adapters.empty()) {
    return UsageError("--ensemble: expected adapters (--adapter NAME=DIR), found none");
  }
  PERMAFROST_RETURN_IF_ERROR(CheckScore(flags.score, flags.data));
  AnswerSession s;
  PERMAFROST_ASSIGN_OR_RETURN(s.session, OpenSession(flags.base));
  PERMAFROST_ASSIGN_OR_RETURN(s.adapters, OpenAdapters(flags.adapters, s.session));
  PERMAFROST_ASSIGN_OR_RETURN(s.data,
                              LoadData(flags.data_path, flags.data, labels, s.session, s.adapters));
  for (size_t i = 0; !flags.ensemble.empty() && i < s.adapters.size(); ++i) {
    const Method& m = *s.adapters.method(i);
    if (m.Prompts() == 1 && m.InputTemplate().empty()) continue;
    return absl::InvalidArgumentError(
        "--ensemble: expected adapters that read a line as it is, found one with tasks or with "
        "anchored virtual tokens");
  }
  if (!flags.ensemble.empty() && s.data.choices.empty()) {
    return absl::InvalidArgumentError(
        "--ensemble: expected label words (--task or --label-words), found none");
  }
  return s;
}

std::vector<EnsembleAnswer> LabelAnswers(const AnswerFlags& flags, AnswerSession& s) {
  const bool ensemble = !flags.ensemble.empty();
  const size_t members = ensemble ? s.adapters.size() : 1;
  std::vector<ChoiceLine> lines;
  for (const ChoiceLine& line : s.data.choices) {
    for (size_t m = 0; m < members; ++m) {
      lines.push_back(line);
      if (ensemble) lines.back().task = s.adapters.method(m)->task();
    }
  }
  std::vector<std::vector<double>> probabilities;
  for (const std::vector<double>& scores :
       ScoreChoices(*s.session.context, *s.session.model, s.adapters, lines, ScoreOf(flags.score),
                    flags.batch_size)) {
    probabilities.push_back(Probabilities(scores));
  }
  const Ensemble how = flags.ensemble == "vote" ? Ensemble::kVote : Ensemble::kMean;
  std::vector<EnsembleAnswer> answers;
  for (size_t i = 0; i < probabilities.size(); i += members) {
    answers.push_back(CombineMembers(absl::MakeSpan(probabilities).subspan(i, members), how));
  }
  return answers;
}

std::string AnswerText(std::vector<int32_t> ids, const AnswerSession& s) {
  const std::vector<int32_t>& start = s.data.target_start;
  if (!start.empty() && absl::MakeSpan(ids).subspan(0, start.size()) == absl::MakeSpan(start)) {
    ids.erase(ids.begin(), ids.begin() + static_cast<long>(start.size()));
  }
  return s.session.tokenizer->Decode(ids, true);
}

absl::StatusOr<GeneratedText> GenerateAnswer(const AnswerFlags& flags, AnswerSession& s, size_t i) {
  const TokenLine& line = s.data.lines[i];
  GeneratedText answer;
  PERMAFROST_ASSIGN_OR_RETURN(
      answer.ids,
      Generate(*s.session.context, *s.session.model, s.adapters, line.task,
               InputIds(line, s.session.model->info().encoder_decoder),
               {.max_new_tokens = flags.max_new_tokens, .prompt = line.prompt}, nullptr));
  if (s.session.tokenizer != nullptr) answer.text = AnswerText(answer.ids, s);
  return answer;
}

}  // namespace permafrost
