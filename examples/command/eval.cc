// permafrost eval: loss and metrics of a data file. A classification is decided by scoring the
// label words, or with --generate by what greedy generation writes.
#include <cmath>
#include <cstdio>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "nlohmann/json.hpp"
#include "objectives.h"
#include "peft/metrics.h"
#include "predictions.h"

namespace permafrost {
namespace {

struct EvalFlags {
  AnswerFlags answers;
  bool generate = false, json = false;
};

std::string Trimmed(const std::string& text) {
  return std::string(absl::StripAsciiWhitespace(text));
}

// The labels that the generated texts name; -1 where a text is no label word.
absl::StatusOr<std::vector<int>> GeneratedLabels(const AnswerFlags& flags, AnswerSession& s) {
  std::vector<int> labels;
  for (size_t i = 0; i < s.data.lines.size(); ++i) {
    PERMAFROST_ASSIGN_OR_RETURN(const GeneratedText answer, GenerateAnswer(flags, s, i));
    int label = -1;
    for (size_t w = 0; w < s.data.label_words.size(); ++w) {
      if (Trimmed(answer.text) == Trimmed(s.data.label_words[w])) label = static_cast<int>(w);
    }
    labels.push_back(label);
  }
  return labels;
}

// Fraction of lines whose generated text is the line's target, white space around both ignored.
absl::StatusOr<double> ExactMatch(const AnswerFlags& flags, AnswerSession& s) {
  double equal = 0;
  for (size_t i = 0; i < s.data.lines.size(); ++i) {
    PERMAFROST_ASSIGN_OR_RETURN(const GeneratedText answer, GenerateAnswer(flags, s, i));
    std::vector<int32_t> target;
    for (int32_t label : s.data.lines[i].labels) {
      if (label != kIgnoredLabel) target.push_back(label);
    }
    equal += Trimmed(answer.text) == Trimmed(AnswerText(std::move(target), s));
  }
  return equal / static_cast<double>(s.data.lines.size());
}

absl::Status GenerationMetrics(const AnswerFlags& flags, AnswerSession& s, Evaluation& e) {
  PERMAFROST_RETURN_IF_ERROR(NeedTokenizer(s.session).status());
  e.metrics.clear();
  if (s.data.choices.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(const double value, ExactMatch(flags, s));
    e.metrics.emplace_back("exact_match", value);
    return absl::OkStatus();
  }
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> labels, GeneratedLabels(flags, s));
  e.metrics = ComputeMetrics(s.data.metrics, labels, s.data.labels,
                             static_cast<int>(s.data.label_words.size()));
  return absl::OkStatus();
}

// The mean of the members' losses, and the metrics of their common answers.
Evaluation EvaluateEnsemble(const AnswerFlags& flags, AnswerSession& s) {
  Evaluation e;
  const double members = static_cast<double>(s.adapters.size());
  for (size_t m = 0; m < s.adapters.size(); ++m) {
    std::vector<TokenLine> lines = s.data.lines;
    for (TokenLine& line : lines) line.task = s.adapters.method(m)->task();
    e.loss +=
        ComputeLosses(*s.session.context, *s.session.model, s.adapters, lines, flags.batch_size)
            .mean /
        members;
  }
  std::vector<int> predictions;
  for (const EnsembleAnswer& answer : LabelAnswers(flags, s)) {
    predictions.push_back(answer.choice);
  }
  e.metrics = ComputeMetrics(s.data.metrics, predictions, s.data.labels,
                             static_cast<int>(s.data.label_words.size()));
  return e;
}

absl::Status RunEval(const EvalFlags& flags) {
  if (flags.generate && !flags.answers.ensemble.empty()) {
    return UsageError("expected one of --generate and --ensemble, found both");
  }
  PERMAFROST_RETURN_IF_ERROR(CheckObjectiveFlags(flags.answers.data));
  const std::string& objective = flags.answers.data.objective.objective;
  if (flags.generate && objective != "supervised") {
    return UsageError(
        absl::StrCat("--generate: expected --objective supervised, found ", objective));
  }
  PERMAFROST_ASSIGN_OR_RETURN(AnswerSession s, OpenAnswers(flags.answers, Labels::kRequired));
  Evaluation e;
  if (!flags.answers.ensemble.empty()) {
    e = EvaluateEnsemble(flags.answers, s);
  } else {
    EvaluationSet set =
        MakeEvaluationSet(s.data, ScoreOf(flags.answers.score), flags.answers.batch_size);
    if (flags.generate) set.choices.clear();
    e = Evaluate(*s.session.context, *s.session.model, s.adapters, set);
  }
  if (!std::isfinite(e.loss)) {
    return absl::FailedPreconditionError(absl::StrCat(flags.answers.data_path, ": the loss is ",
                                                      e.loss, "; expected a finite value"));
  }
  if (flags.generate) PERMAFROST_RETURN_IF_ERROR(GenerationMetrics(flags.answers, s, e));
  if (flags.json) {
    nlohmann::ordered_json object = {{"examples", s.data.lines.size()}, {"loss", e.loss}};
    for (const auto& [name, value] : e.metrics) object[name] = value;
    std::printf("%s\n", object.dump(-1, ' ', true).c_str());
    return absl::OkStatus();
  }
  std::printf("examples %zu\nloss %.6f\n", s.data.lines.size(), e.loss);
  for (const auto& [name, value] : e.metrics) std::printf("%s %.4f\n", name.c_str(), value);
  return absl::OkStatus();
}

}  // namespace

void AddEval(Commands& commands) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* app = commands.Add("eval", "Metric and loss of a base and adapter on a data file",
                               [flags] { return RunEval(*flags); });
  AddAnswerFlags(app, flags->answers);
  AddObjectiveFlags(app, flags->answers.data.objective);
  app->add_flag("--generate", flags->generate,
                "metrics of greedily generated text: of label words, or exact match");
  app->add_flag("--json", flags->json, "one JSON object");
}

}  // namespace permafrost
