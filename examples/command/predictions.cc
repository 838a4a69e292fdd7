#include "predictions.h"

#include <algorithm>
#include <cmath>

#include "engine/check.h"
#include "models/generate.h"

namespace permafrost {
namespace {

// Softmax of one line's scores.
std::vector<double> Probabilities(const std::vector<double>& scores) {
  const double best = *std::max_element(scores.begin(), scores.end());
  std::vector<double> p;
  double sum = 0;
  for (double s : scores) sum += p.emplace_back(std::exp(s - best));
  for (double& v : p) v /= sum;
  return p;
}

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
  app->add_flag("--ensemble", flags.ensemble,
                "every adapter on every line, mean of their probabilities");
}

absl::StatusOr<AnswerSession> OpenAnswers(const AnswerFlags& flags, Labels labels) {
  if (flags.ensemble && flags.adapters.empty()) {
    return UsageError("--ensemble: expected adapters (--adapter NAME=DIR), found none");
  }
  AnswerSession s;
  PERMAFROST_ASSIGN_OR_RETURN(s.session, OpenSession(flags.base));
  PERMAFROST_ASSIGN_OR_RETURN(s.adapters, OpenAdapters(flags.adapters, s.session));
  PERMAFROST_ASSIGN_OR_RETURN(s.data,
                              LoadData(flags.data_path, flags.data, labels, s.session, s.adapters));
  for (size_t i = 0; flags.ensemble && i < s.adapters.size(); ++i) {
    const Method& m = *s.adapters.method(i);
    if (m.Prompts() == 1 && m.InputTemplate().empty()) continue;
    return absl::InvalidArgumentError(
        "--ensemble: expected adapters that read a line as it is, found one with tasks or with "
        "anchored virtual tokens");
  }
  if (flags.ensemble && s.data.choices.empty()) {
    return absl::InvalidArgumentError(
        "--ensemble: expected label words (--task or --label-words), found none");
  }
  return s;
}

std::vector<std::vector<double>> LabelProbabilities(const AnswerFlags& flags, AnswerSession& s) {
  const size_t members = flags.ensemble ? s.adapters.size() : 1;
  std::vector<ChoiceLine> lines;
  for (const ChoiceLine& line : s.data.choices) {
    for (size_t m = 0; m < members; ++m) {
      lines.push_back(line);
      if (flags.ensemble) lines.back().task = s.adapters.method(m)->task();
    }
  }
  const auto scores = ScoreChoices(*s.session.context, *s.session.model, s.adapters, lines,
                                   ScoreOf(flags.score), flags.batch_size);
  std::vector<std::vector<double>> result;
  for (size_t i = 0; i < scores.size(); ++i) {
    const std::vector<double> p = Probabilities(scores[i]);
    if (i % members == 0) result.emplace_back(p.size(), 0.0);
    for (size_t j = 0; j < p.size(); ++j) result.back()[j] += p[j] / static_cast<double>(members);
  }
  return result;
}

absl::StatusOr<GeneratedText> GenerateAnswer(const AnswerFlags& flags, AnswerSession& s, size_t i) {
  const TokenLine& line = s.data.lines[i];
  GeneratedText answer;
  PERMAFROST_ASSIGN_OR_RETURN(
      answer.ids,
      Generate(*s.session.context, *s.session.model, s.adapters, line.task,
               InputIds(line, s.session.model->info().encoder_decoder),
               {.max_new_tokens = flags.max_new_tokens, .prompt = line.prompt}, nullptr));
  if (s.session.tokenizer != nullptr) answer.text = s.session.tokenizer->Decode(answer.ids, true);
  return answer;
}

}  // namespace permafrost
