// permafrost train: trains a method on data and writes an adapter folder; with --runs several at
// once on one base.
#include <atomic>
#include <csignal>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "data.h"
#include "engine/check.h"
#include "io/bytes.h"
#include "io/file.h"
#include "train_flags.h"
#include "train_runs.h"

namespace permafrost {
namespace {

// Set by SIGINT and SIGTERM; the trainer writes a checkpoint and stops.
std::atomic<bool> g_interrupt{false};

// A second signal ends the process at once.
void OnInterrupt(int signal) {
  g_interrupt = true;
  std::signal(signal, SIG_DFL);
}

absl::StatusOr<std::string> FileHash(const std::vector<std::string>& paths) {
  std::string hashes;
  for (const std::string& path : paths) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
    absl::StrAppendFormat(&hashes, "%016x", Fingerprint(bytes.data(), bytes.size()));
  }
  if (paths.size() == 1) return hashes;
  return absl::StrFormat("%016x", Fingerprint(hashes.data(), hashes.size()));
}

// The training data: one file as a mixture without parts.
absl::StatusOr<Mixture> LoadTrainingData(const TrainFlags& f, const Session& session,
                                         const AdapterSet& hooks) {
  if (!f.mixture.file.empty()) return LoadMixture(f.mixture, f.data, session, hooks);
  Mixture single;
  PERMAFROST_ASSIGN_OR_RETURN(single.data,
                              LoadData(f.data_path, f.data, Labels::kRequired, session, hooks));
  single.files = {f.data_path};
  return single;
}

absl::Status CheckLabelled(const std::string& path, absl::Span<const TokenLine> lines,
                           const Session& session, const AdapterSet& hooks) {
  for (const TokenLine& line : lines) {
    // Without a prompt nothing predicts a decoder's first token.
    const bool first = session.model->info().encoder_decoder || hooks.VirtualTokens(line.task) > 0;
    for (size_t i = first ? 0 : 1; i < line.labels.size(); ++i) {
      if (line.labels[i] != kIgnoredLabel) return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError(absl::StrCat(
      path,
      ": no labelled token: expected at least one label other than -100 that a token predicts"));
}

// "12000 lines", and an epoch's share of each part of a mixture.
std::string DescribeData(const Mixture& m) {
  std::string text = absl::StrCat(m.data.lines.size(), " lines");
  for (size_t i = 0; i < m.parts.size(); ++i) {
    absl::StrAppend(&text, i == 0 ? " (an epoch: " : ", ", m.parts[i].quota, " of ",
                    m.parts[i].lines, " of ", m.files[i]);
  }
  return text + (m.parts.empty() ? "" : ")");
}

std::string DescribeEvaluation(const Evaluation& e) {
  std::string text = absl::StrFormat("eval loss %.4f", e.loss);
  for (const auto& [name, value] : e.metrics)
    absl::StrAppendFormat(&text, "  %s %.4f", name, value);
  return text;
}

// A bar on a terminal; nothing otherwise (metrics.jsonl has every step).
void ShowProgress(const StepReport& r) {
  constexpr int kWidth = 30;
  const int done = static_cast<int>(kWidth * r.step / r.steps);
  std::fprintf(stderr, "\r[%s%s] %lld/%lld  loss %.4f  lr %.2e  %.0f tokens/s ",
               std::string(static_cast<size_t>(done), '#').c_str(),
               std::string(static_cast<size_t>(kWidth - done), '.').c_str(),
               static_cast<long long>(r.step), static_cast<long long>(r.steps), r.loss,
               r.learning_rate, static_cast<double>(r.tokens) / std::max(r.seconds, 1e-9));
  if (r.step == r.steps) std::fprintf(stderr, "\n");
}

// A run with its files read.
struct PreparedRun {
  TrainFlags flags;
  Adapter adapter;
  Mixture mixture;
  EvaluationSet evaluation;
  nlohmann::json settings;

  std::string source() const {
    return flags.mixture.file.empty() ? flags.data_path : flags.mixture.file;
  }
};

absl::StatusOr<std::unique_ptr<PreparedRun>> Prepare(TrainFlags flags, int task, Session& session) {
  auto run = std::make_unique<PreparedRun>();
  TrainFlags& f = run->flags = std::move(flags);
  f.data.seed = f.seed;
  PERMAFROST_ASSIGN_OR_RETURN(run->adapter, MakeAdapter(f.method, f.data, f.seed, task, session));
  FillDefaults(f, run->adapter.config, session.model->info());
  AdapterSet hooks;
  hooks.Add("", run->adapter.method);
  PERMAFROST_ASSIGN_OR_RETURN(run->mixture, LoadTrainingData(f, session, hooks));
  PERMAFROST_RETURN_IF_ERROR(CheckLabelled(run->source(), run->mixture.data.lines, session, hooks));
  if (!f.eval_path.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(const LoadedData eval,
                                LoadData(f.eval_path, f.data, Labels::kRequired, session, hooks));
    run->evaluation = MakeEvaluationSet(eval, ScoreOf(f.score), f.eval_batch_size);
  }
  std::vector<std::string> files = run->mixture.files;
  if (!f.mixture.file.empty()) files.push_back(f.mixture.file);
  PERMAFROST_ASSIGN_OR_RETURN(const std::string data_hash, FileHash(files));
  run->settings = TrainSettings(f, *session.model, data_hash);
  return run;
}

void Announce(const PreparedRun& run, const std::string& prefix, const Model& model) {
  const MethodFlags& m = run.flags.method;
  Say(absl::StrFormat("%straining %d parameters of %s on %s; base %d parameters, frozen", prefix,
                      run.adapter.method->parameters().count(),
                      m.method.empty() ? m.init_adapter : m.method, DescribeData(run.mixture),
                      model.parameter_count()));
  Say(absl::StrCat(prefix, "settings: ", run.settings.dump()));
}

// `prefix` stands in front of the run's messages; alone: a progress bar on a terminal.
RunSpec SpecOf(PreparedRun& run, const std::string& prefix, bool alone) {
  const TrainFlags& f = run.flags;
  RunSpec spec;
  spec.adapter = &run.adapter;
  spec.lines = run.mixture.data.lines;
  spec.evaluation = f.eval_path.empty() ? nullptr : &run.evaluation;
  spec.options = OptionsOf(f, run.adapter.config);
  spec.options.mixture = run.mixture.parts;
  spec.options.make_line = run.mixture.data.make_line;
  spec.options.settings = run.settings.dump();
  spec.events.interrupt = &g_interrupt;
  if (f.quiet) return spec;
  if (alone && StderrIsTerminal()) spec.events.on_step = ShowProgress;
  spec.events.on_evaluation = [prefix](int64_t step, const Evaluation& e) {
    Say(absl::StrCat(prefix, "step ", step, ": ", DescribeEvaluation(e)));
  };
  return spec;
}

absl::Status WriteRecord(const PreparedRun& run, const Session& session,
                         const TrainResult& result) {
  nlohmann::json record = run.settings;
  record["base"] = run.flags.base.base;
  record["data"] = run.source();
  record["data_files"] = run.mixture.files;
  record["threads"] = session.context->pool.threads();
  record["version"] = "0.1.0";
  record["peft_format"] = "0.21.2";
  record["steps_done"] = result.steps;
  for (const GateMean& gate : result.gates) record["gates"][gate.name] = gate.mean;
  return WriteFileAtomically(run.flags.out + "/run.json", record.dump(2) + "\n");
}

absl::Status TrainAll(const std::vector<TrainFlags>& all) {
  PERMAFROST_ASSIGN_OR_RETURN(Session session, OpenSession(all[0].base));
  session.context->recompute = ParseRecompute(all[0].recompute);
  const bool alone = all.size() == 1;
  std::vector<std::unique_ptr<PreparedRun>> runs;
  std::vector<RunSpec> specs;
  for (size_t i = 0; i < all.size(); ++i) {
    PERMAFROST_ASSIGN_OR_RETURN(std::unique_ptr<PreparedRun> run,
                                Prepare(all[i], static_cast<int>(i), session));
    const std::string prefix = alone ? "" : run->flags.out + ": ";
    if (!run->flags.quiet) Announce(*run, prefix, *session.model);
    specs.push_back(SpecOf(*run, prefix, alone));
    runs.push_back(std::move(run));
  }
  std::signal(SIGINT, OnInterrupt);
  std::signal(SIGTERM, OnInterrupt);
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<TrainResult> results,
                              TrainTogether(*session.context, *session.model, specs));
  const TrainResult* interrupted = nullptr;
  for (size_t i = 0; i < runs.size(); ++i) {
    const TrainFlags& f = runs[i]->flags;
    PERMAFROST_RETURN_IF_ERROR(WriteRecord(*runs[i], session, results[i]));
    if (results[i].interrupted) interrupted = &results[i];
    if (f.quiet || results[i].interrupted) continue;
    Say(absl::StrFormat("done: %d steps, last loss %.4f; adapter in %s%s", results[i].steps,
                        results[i].last_loss, f.out,
                        results[i].stopped_early ? " (stopped early)" : ""));
  }
  if (interrupted == nullptr) return absl::OkStatus();
  return absl::CancelledError(
      absl::StrCat("interrupted after step ", interrupted->steps, "; ",
                   alone ? absl::StrCat("the checkpoint in ", all[0].out, "/checkpoint is complete")
                         : std::string("the runs' checkpoints are complete"),
                   ": run the same command with --resume to go on"));
}

absl::Status RunTrain(const TrainFlags& flags, const std::string& runs, const CLI::App& app) {
  if (runs.empty()) {
    PERMAFROST_RETURN_IF_ERROR(CheckTrainFlags(flags));
    return TrainAll({flags});
  }
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<TrainFlags> all, ReadRuns(runs, app));
  return TrainAll(all);
}

}  // namespace

void AddTrain(Commands& commands) {
  auto flags = std::make_shared<TrainFlags>();
  auto runs = std::make_shared<std::string>();
  auto self = std::make_shared<CLI::App*>();
  CLI::App* app = commands.Add("train", "Train a method on data; writes an adapter folder",
                               [flags, runs, self] { return RunTrain(*flags, *runs, **self); });
  *self = app;
  AddTrainFlags(app, *flags);
  app->add_option("--runs", *runs,
                  "several runs at once: a JSON list of objects of these flags, each with its out; "
                  "flags beside it are those of all runs that have none of their own");
}

}  // namespace permafrost
