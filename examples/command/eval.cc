// permafrost eval and predict: metrics of a data file; a label, scores or text for each line.
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
  bool json = false;
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
    std::printf("%s\n", object.dump().c_str());
    return absl::OkStatus();
  }
  std::printf("examples %zu\nloss %.6f\n", data.lines.size(), e.loss);
  for (const auto& [name, value] : e.metrics) std::printf("%s %.4f\n", name.c_str(), value);
  return absl::OkStatus();
}

absl::Status PredictLabels(const EvalFlags& f, Session& session, AdapterSet& adapters,
                           const LoadedData& data) {
  for (const std::vector<double>& scores :
       ScoreChoices(*session.context, *session.model, adapters, data.choices, ScoreOf(f.score),
                    f.batch_size)) {
    const size_t best = static_cast<size_t>(BestChoice(scores));
    double sum = 0;
    for (double s : scores) sum += std::exp(s - scores[best]);
    nlohmann::ordered_json line = {{"label", data.label_words[best]}};
    for (size_t i = 0; i < scores.size(); ++i) {
      line["scores"][data.label_words[i]] = std::exp(scores[i] - scores[best]) / sum;
    }
    std::printf("%s\n", line.dump().c_str());
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
    std::printf("%s\n", object.dump().c_str());
  }
  return absl::OkStatus();
}

absl::Status RunPredict(const EvalFlags& f) {
  PERMAFROST_ASSIGN_OR_RETURN(Session session, OpenSession(f.base));
  PERMAFROST_ASSIGN_OR_RETURN(AdapterSet adapters, OpenAdapters(f.adapters, session));
  PERMAFROST_ASSIGN_OR_RETURN(const LoadedData data,
                              LoadData(f.data_path, f.data, Labels::kOptional, session, adapters));
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
  app->add_option("--max-new-tokens", flags->max_new_tokens, "longest generated text")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

}  // namespace permafrost
