// permafrost eval and predict: metrics of a data file; a label, scores or text for each line.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "command.h"
#include "data.h"
#include "engine/check.h"
#include "models/generate.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

struct EvalFlags {
  BaseFlags base;
  DataFlags data;
  std::vector<std::string> adapters;
  std::string data_path, score = "sum";
  int64_t batch_size = 16, max_new_tokens = 32;
  bool json = false, ensemble = false;
};

Score ScoreOf(const std::string& name) {
  return name == "mean" ? Score::kMean : name == "first" ? Score::kFirst : Score::kSum;
}

absl::Status RunEval(const EvalFlags& f) {
  PERMAFROST_ASSIGN_OR_RETURN(Session session, OpenSession(f.base));
  PERMAFROST_ASSIGN_OR_RETURN(AdapterSet adapters, OpenAdapters(f.adapters, session));
  PERMAFROST_ASSIGN_OR_RETURN(const LoadedData data,
                              LoadData(f.data_path, f.data, Labels::kRequired, session, adapters));
  const Evaluation e = Evaluate(*session.context, *session.model, adapters,
                                MakeEvaluationSet(data, ScoreOf(f.score), f.batch_size));
  if (f.json) {
    nlohmann::ordered_json object = {{"examples", data.lines.size()}, {"loss", e.loss}};
    for (const auto& [name, value] : e.metrics) object[name] = value;
    std::printf("%s\n", object.dump(-1, ' ', true).c_str());
    return absl::OkStatus();
  }
  std::printf("examples %zu\nloss %.6f\n", data.lines.size(), e.loss);
  for (const auto& [name, value] : e.metrics) std::printf("%s %.4f\n", name.c_str(), value);
  return absl::OkStatus();
}

// Softmax of one line's scores.
std::vector<double> Probabilities(const std::vector<double>& scores) {
  const double best = *std::max_element(scores.begin(), scores.end());
  std::vector<double> p;
  double sum = 0;
  for (double s : scores) sum += p.emplace_back(std::exp(s - best));
  for (double& v : p) v /= sum;
  return p;
}

// Probabilities [lines][labels]; with --ensemble each line runs with every adapter in the same
// batch and the adapters' probabilities are averaged (Lester et al. 2021, section 6).
std::vector<std::vector<double>> LabelProbabilities(const EvalFlags& f, Session& session,
                                                    AdapterSet& adapters, const LoadedData& data) {
  const size_t members = f.ensemble ? adapters.size() : 1;
  std::vector<ChoiceLine> lines;
  for (const ChoiceLine& line : data.choices) {
    for (size_t m = 0; m < members; ++m) {
      lines.push_back(line);
      if (f.ensemble) lines.back().task = adapters.method(m)->task();
    }
  }
  const auto scores = ScoreChoices(*session.context, *session.model, adapters, lines,
                                   ScoreOf(f.score), f.batch_size);
  std::vector<std::vector<double>> result;
  for (size_t i = 0; i < scores.size(); ++i) {
    const std::vector<double> p = Probabilities(scores[i]);
    if (i % members == 0) result.emplace_back(p.size(), 0.0);
    for (size_t j = 0; j < p.size(); ++j) result.back()[j] += p[j] / static_cast<double>(members);
  }
  return result;
}

absl::Status PredictLabels(const EvalFlags& f, Session& session, AdapterSet& adapters,
                           const LoadedData& data) {
  for (const std::vector<double>& p : LabelProbabilities(f, session, adapters, data)) {
    nlohmann::ordered_json line = {{"label", data.label_words[static_cast<size_t>(BestChoice(p))]}};
    for (size_t i = 0; i < p.size(); ++i) line["scores"][data.label_words[i]] = p[i];
    std::printf("%s\n", line.dump(-1, ' ', true).c_str());
  }
  return absl::OkStatus();
}

absl::Status PredictTexts(const EvalFlags& f, Session& session, AdapterSet& adapters,
                          const LoadedData& data) {
  for (const TokenLine& line : data.lines) {
    std::vector<int32_t> input = line.input_ids;
    if (!session.model->info().encoder_decoder) {
      // The text without its target.
      size_t target = 0;
      for (int32_t label : line.labels) target += label != kIgnoredLabel;
      input.resize(input.size() - target);
    }
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                                Generate(*session.context, *session.model, adapters, line.task,
                                         input, {.max_new_tokens = f.max_new_tokens}, nullptr));
    nlohmann::ordered_json object;
    if (session.tokenizer != nullptr) object["text"] = session.tokenizer->Decode(ids, true);
    object["ids"] = ids;
    std::printf("%s\n", object.dump(-1, ' ', true).c_str());
  }
  return absl::OkStatus();
}

absl::Status RunPredict(const EvalFlags& f) {
  PERMAFROST_ASSIGN_OR_RETURN(Session session, OpenSession(f.base));
  PERMAFROST_ASSIGN_OR_RETURN(AdapterSet adapters, OpenAdapters(f.adapters, session));
  PERMAFROST_ASSIGN_OR_RETURN(const LoadedData data,
                              LoadData(f.data_path, f.data, Labels::kOptional, session, adapters));
  if (f.ensemble && adapters.size() == 0) {
    return absl::InvalidArgumentError(
        "--ensemble: expected adapters (--adapter NAME=DIR), found none");
  }
  return data.choices.empty() ? PredictTexts(f, session, adapters, data)
                              : PredictLabels(f, session, adapters, data);
}

CLI::App* AddShared(Commands& commands, const char* name, const char* text, EvalFlags& f, Run run) {
  CLI::App* app = commands.Add(name, text, std::move(run));
  AddBaseFlags(app, f.base);
  AddAdapterFlag(app, f.adapters);
  AddDataFlags(app, f.data);
  app->add_option("--data", f.data_path, "data file")->required();
  app->add_option("--score", f.score,
                  "score of a label word: sum, mean or first of its tokens' log-probabilities")
      ->check(CLI::IsMember({"sum", "mean", "first"}))
      ->capture_default_str();
  app->add_option("--batch-size", f.batch_size, "lines")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  return app;
}

}  // namespace

void AddEval(Commands& commands) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* app =
      AddShared(commands, "eval", "Metric and loss of a base and adapter on a data file", *flags,
                [flags] { return RunEval(*flags); });
  app->add_flag("--json", flags->json, "one JSON object");
}

void AddPredict(Commands& commands) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* app =
      AddShared(commands, "predict", "One output line per input line: label and scores, or text",
                *flags, [flags] { return RunPredict(*flags); });
  app->add_flag("--ensemble", flags->ensemble,
                "every adapter on every line, mean of probabilities");
  app->add_option("--max-new-tokens", flags->max_new_tokens, "longest generated text")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

}  // namespace permafrost
