// permafrost train: trains a method on data and writes an adapter folder.
#include <atomic>
#include <csignal>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "command.h"
#include "data.h"
#include "engine/check.h"
#include "io/bytes.h"
#include "io/file.h"
#include "mixture.h"
#include "nlohmann/json.hpp"
#include "objectives.h"
#include "peft/objectives.h"
#include "peft/trainer.h"
#include "train_method.h"

namespace permafrost {
namespace {

// Set by SIGINT and SIGTERM; the trainer writes a checkpoint and stops.
std::atomic<bool> g_interrupt{false};

// A second signal ends the process at once.
void OnInterrupt(int signal) {
  g_interrupt = true;
  std::signal(signal, SIG_DFL);
}

struct TrainFlags {
  BaseFlags base;
  DataFlags data;
  MethodFlags method;
  MixtureFlags mixture;
  std::string data_path, eval_path, out;
  int64_t steps = 0, epochs = 1, batch_size = 8, accumulate = 1, warmup = 0, seed = 0;
  int64_t checkpoint_every = 0, eval_every = 0, eval_batch_size = 16, log_every = 1, patience = 0;
  std::string optimizer, schedule, order = "shuffle", score = "sum";
  double lr = -1, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = -1, clip = 0;
  double z_loss = -1;
  std::string recompute = kDefaultRecompute;
  bool resume = false, quiet = false;
};

// The learning rate that a method is known to train well with.
double DefaultRate(const AdapterConfig& config, bool adafactor) {
  if (std::holds_alternative<PromptTuningConfig>(config)) return adafactor ? 0.3 : 0.03;
  if (std::holds_alternative<PTuningConfig>(config)) return 1e-3;
  if (std::holds_alternative<MultitaskPromptConfig>(config)) return adafactor ? 0.3 : 0.03;
  if (std::holds_alternative<LoraConfig>(config)) return 1e-3;
  if (std::holds_alternative<AdaLoraConfig>(config)) return 1e-3;
  if (std::holds_alternative<Ia3Config>(config)) return 3e-3;
  if (std::holds_alternative<PrefixTuningConfig>(config)) return 1e-2;
  if (std::holds_alternative<BottleneckConfig>(config)) return 1e-3;
  if (std::holds_alternative<BitFitConfig>(config)) return 1e-3;
  if (std::holds_alternative<UniPeltConfig>(config)) return 1e-3;
  const FullConfig& full = std::get<FullConfig>(config);
  if (full.part == FullConfig::Part::kNorms) return 1e-3;
  return adafactor ? 1e-3 : 5e-5;
}

// Values that flags leave open, by method and model (peft-survey section 3).
void FillDefaults(TrainFlags& f, const AdapterConfig& config, const ModelInfo& info) {
  const bool t5_prompt = std::holds_alternative<PromptTuningConfig>(config) && info.encoder_decoder;
  if (f.optimizer.empty()) f.optimizer = t5_prompt ? "adafactor" : "adamw";
  const bool adafactor = f.optimizer == "adafactor";
  if (f.schedule.empty()) f.schedule = adafactor ? "constant" : "linear";
  if (f.lr < 0) f.lr = DefaultRate(config, adafactor);
  if (f.weight_decay < 0) f.weight_decay = adafactor ? (t5_prompt ? 1e-5 : 0) : 0.01;
  if (f.data.objective.objective == "span-corruption") {
    ObjectiveFlags& o = f.data.objective;
    o.noise_density = o.noise_density.value_or(SpanCorruption().density);
    o.mean_span = o.mean_span.value_or(SpanCorruption().mean_span);
  }
  if (f.z_loss < 0) f.z_loss = t5_prompt && adafactor ? 1e-4 : 0;
}

OptimizerConfig OptimizerOf(const TrainFlags& f, const AdapterConfig& config) {
  OptimizerConfig o;
  o.kind = f.optimizer == "adamw"       ? OptimizerKind::kAdamW
           : f.optimizer == "adafactor" ? OptimizerKind::kAdafactor
                                        : OptimizerKind::kSgd;
  o.learning_rate = f.lr;
  o.beta1 = f.beta1;
  o.beta2 = f.beta2;
  o.epsilon = f.epsilon;
  o.weight_decay = f.weight_decay;
  o.clip = f.clip;
  const FullConfig* full = std::get_if<FullConfig>(&config);
  o.factored = o.scale_parameter = full != nullptr && full->part == FullConfig::Part::kAll;
  return o;
}

// Of one file, or of several one behind the other.
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

// Everything that decides the run's result: what a resumed run must share.
nlohmann::json Settings(const TrainFlags& f, const Model& model, const std::string& data_hash) {
  const MethodFlags& m = f.method;
  return {{"method", m.init_adapter.empty() ? m.method : "init-adapter"},
          {"init_adapter", m.init_adapter},
          {"base_hash", absl::StrFormat("%016x", model.info().hash)},
          {"data_hash", data_hash},
          {"virtual_tokens", m.virtual_tokens},
          {"encoder_width", m.encoder_width},
          {"encoder", m.encoder},
          {"encoder_layers", m.encoder_layers},
          {"num_tasks", m.num_tasks},
          {"num_ranks", m.num_ranks},
          {"init", m.init},
          {"init_text", m.init_text},
          {"init_file", m.init_file},
          {"init_range", m.init_range},
          {"rank", m.rank},
          {"alpha", m.alpha},
          {"dropout", m.dropout},
          {"rslora", m.rslora},
          {"targets", m.targets},
          {"modules", ModuleSettings(m.modules)},
          {"exclude", m.exclude},
          {"layers", m.layers},
          {"init_lora", m.init_lora},
          {"bias", m.bias},
          {"lora_bias", m.lora_bias},
          {"modules_to_save", m.modules_to_save},
          {"lora_plus_ratio", m.lora_plus_ratio},
          {"steps", f.steps},
          {"epochs", f.epochs},
          {"batch_size", f.batch_size},
          {"accumulate", f.accumulate},
          {"optimizer", f.optimizer},
          {"lr", f.lr},
          {"beta1", f.beta1},
          {"beta2", f.beta2},
          {"epsilon", f.epsilon},
          {"weight_decay", f.weight_decay},
          {"clip", f.clip},
          {"schedule", f.schedule},
          {"warmup", f.warmup},
          {"order", f.order},
          {"seed", f.seed},
          {"z_loss", f.z_loss},
          {"precision", f.base.precision},
          {"recompute", f.recompute},
          {"task", f.data.task},
          {"input", f.data.input},
          {"target", f.data.target},
          {"label_words", f.data.label_words},
          {"label_column", f.data.label_column},
          {"task_column", f.data.task_column},
          {"target_format", f.data.target_format},
          {"objective", f.data.objective.objective},
          {"noise_density", f.data.objective.noise_density.value_or(0)},
          {"mean_span", f.data.objective.mean_span.value_or(0)},
          {"mixture_cap", f.mixture.cap},
          {"mixture_temperature", f.mixture.temperature},
          {"max_tokens", f.data.max_tokens},
          {"truncate", f.data.truncate}};
}

ScheduleKind ScheduleOf(const std::string& name) {
  if (name == "linear") return ScheduleKind::kLinear;
  if (name == "cosine") return ScheduleKind::kCosine;
  return name == "inverse-sqrt" ? ScheduleKind::kInverseSqrt : ScheduleKind::kConstant;
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

// Usage errors that need no file.
absl::Status CheckDataFlags(const TrainFlags& f) {
  if (f.data_path.empty() == f.mixture.file.empty()) {
    return UsageError(absl::StrCat("expected one of --data FILE and --mixture FILE, found ",
                                   f.data_path.empty() ? "neither" : "both"));
  }
  if (f.mixture.file.empty() && (f.mixture.cap > 0 || f.mixture.temperature != 1)) {
    return UsageError("--mixture-cap and --mixture-temperature: expected with --mixture FILE");
  }
  PERMAFROST_RETURN_IF_ERROR(CheckScore(f.score, f.data));
  return CheckObjectiveFlags(f.data);
}

absl::Status RunTrain(TrainFlags f) {
  PERMAFROST_RETURN_IF_ERROR(CheckMethodFlags(f.method));
  PERMAFROST_RETURN_IF_ERROR(CheckDataFlags(f));
  f.data.seed = f.seed;
  PERMAFROST_ASSIGN_OR_RETURN(Session session, OpenSession(f.base));
  session.context->recompute = ParseRecompute(f.recompute);
  PERMAFROST_ASSIGN_OR_RETURN(Adapter adapter, MakeAdapter(f.method, f.data, f.seed, session));
  FillDefaults(f, adapter.config, session.model->info());
  AdapterSet hooks;
  hooks.Add("", adapter.method);

  PERMAFROST_ASSIGN_OR_RETURN(const Mixture mixture, LoadTrainingData(f, session, hooks));
  const LoadedData& data = mixture.data;
  const std::string source = f.mixture.file.empty() ? f.data_path : f.mixture.file;
  PERMAFROST_RETURN_IF_ERROR(CheckLabelled(source, data.lines, session, hooks));
  EvaluationSet evaluation;
  if (!f.eval_path.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(const LoadedData eval,
                                LoadData(f.eval_path, f.data, Labels::kRequired, session, hooks));
    evaluation = MakeEvaluationSet(eval, ScoreOf(f.score), f.eval_batch_size);
  }
  std::vector<std::string> files = mixture.files;
  if (!f.mixture.file.empty()) files.push_back(f.mixture.file);
  PERMAFROST_ASSIGN_OR_RETURN(const std::string data_hash, FileHash(files));
  const nlohmann::json settings = Settings(f, *session.model, data_hash);

  TrainOptions options;
  options.out = f.out;
  options.steps = f.steps;
  options.epochs = f.epochs;
  options.batch_size = f.batch_size;
  options.accumulate = f.accumulate;
  options.optimizer = OptimizerOf(f, adapter.config);
  options.schedule = {ScheduleOf(f.schedule), f.warmup, 0};
  options.shuffle = f.order == "shuffle";
  options.seed = static_cast<uint64_t>(f.seed);
  options.z_loss = static_cast<float>(f.z_loss);
  options.log_every = f.log_every;
  options.evaluate_every = f.eval_every;
  options.checkpoint_every = f.checkpoint_every;
  options.patience = f.patience;
  options.mixture = mixture.parts;
  options.make_line = data.make_line;
  options.resume = f.resume;
  options.settings = settings.dump();

  TrainEvents events;
  events.interrupt = &g_interrupt;
  std::signal(SIGINT, OnInterrupt);
  std::signal(SIGTERM, OnInterrupt);
  if (!f.quiet) {
    Say(absl::StrFormat("training %d parameters of %s on %s; base %d parameters, frozen",
                        hooks.method(0)->parameters().count(),
                        f.method.method.empty() ? f.method.init_adapter : f.method.method,
                        DescribeData(mixture), session.model->parameter_count()));
    Say(absl::StrCat("settings: ", settings.dump()));
    if (StderrIsTerminal()) events.on_step = ShowProgress;
    events.on_evaluation = [](int64_t step, const Evaluation& e) {
      Say(absl::StrCat("step ", step, ": ", DescribeEvaluation(e)));
    };
  }
  PERMAFROST_ASSIGN_OR_RETURN(const TrainResult result,
                              Train(*session.context, *session.model, adapter, data.lines,
                                    f.eval_path.empty() ? nullptr : &evaluation, options, events));
  nlohmann::json record = settings;
  record["base"] = f.base.base;
  record["data"] = source;
  record["data_files"] = mixture.files;
  record["threads"] = session.context->pool.threads();
  record["version"] = "0.1.0";
  record["peft_format"] = "0.21.2";
  record["steps_done"] = result.steps;
  for (const GateMean& gate : result.gates) record["gates"][gate.name] = gate.mean;
  PERMAFROST_RETURN_IF_ERROR(WriteFileAtomically(f.out + "/run.json", record.dump(2) + "\n"));
  if (result.interrupted) {
    return absl::CancelledError(
        absl::StrCat("interrupted after step ", result.steps, "; the checkpoint in ", f.out,
                     "/checkpoint is complete: run the same command with --resume to go on"));
  }
  if (!f.quiet) {
    Say(absl::StrFormat("done: %d steps, last loss %.4f; adapter in %s%s", result.steps,
                        result.last_loss, f.out, result.stopped_early ? " (stopped early)" : ""));
  }
  return absl::OkStatus();
}

}  // namespace

void AddTrain(Commands& commands) {
  auto flags = std::make_shared<TrainFlags>();
  TrainFlags& f = *flags;
  CLI::App* app = commands.Add("train", "Train a method on data; writes an adapter folder",
                               [flags] { return RunTrain(*flags); });
  AddBaseFlags(app, f.base);
  AddDataFlags(app, f.data);
  AddMethodFlags(app, f.method);
  AddObjectiveFlags(app, f.data.objective);
  app->add_option("--data", f.data_path, "training data (.tsv, .csv, .jsonl)");
  AddMixtureFlags(app, f.mixture);
  app->add_option("--eval-data", f.eval_path, "data to evaluate on");
  app->add_option("--out", f.out, "folder for the adapter, logs and checkpoint")->required();
  CLI::Option* steps = app->add_option("--steps", f.steps, "optimizer steps (instead of --epochs)")
                           ->check(Positive());
  app->add_option("--epochs", f.epochs, "passes over the data")
      ->check(Positive())
      ->excludes(steps)
      ->capture_default_str();
  app->add_option("--batch-size", f.batch_size, "lines of a batch")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--accumulate", f.accumulate, "batches of an optimizer step")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--optimizer", f.optimizer, "default adafactor for T5 prompts, else adamw")
      ->check(CLI::IsMember({"adamw", "adafactor", "sgd"}));
  app->add_option("--lr", f.lr, "learning rate (default by method)")->check(NonNegative());
  app->add_option("--beta1", f.beta1, "AdamW, SGD momentum")
      ->check(Between(0.0, 1.0))
      ->capture_default_str();
  app->add_option("--beta2", f.beta2, "AdamW")->check(Between(0.0, 1.0))->capture_default_str();
  app->add_option("--epsilon", f.epsilon, "AdamW")->check(NonNegative())->capture_default_str();
  app->add_option("--weight-decay", f.weight_decay, "default by method")->check(NonNegative());
  app->add_option("--clip", f.clip, "largest gradient norm; 0 = off")
      ->check(NonNegative())
      ->capture_default_str();
  app->add_option("--schedule", f.schedule, "default linear (constant for adafactor)")
      ->check(CLI::IsMember({"constant", "linear", "cosine", "inverse-sqrt"}));
  app->add_option("--warmup", f.warmup, "warm-up steps")->check(NonNegative());
  app->add_option("--order", f.order, "order of the lines")
      ->check(CLI::IsMember({"shuffle", "file"}))
      ->capture_default_str();
  app->add_option("--seed", f.seed, "seed of everything random")
      ->check(NonNegative())
      ->capture_default_str();
  app->add_option("--z-loss", f.z_loss,
                  "weight of squared log-partition (1e-4 for T5 prompts with adafactor)")
      ->check(NonNegative());
  app->add_option("--eval-every", f.eval_every, "steps between evaluations (default: at the end)")
      ->check(Positive());
  app->add_option("--eval-batch-size", f.eval_batch_size, "lines")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--score", f.score, "score of a label word")
      ->check(CLI::IsMember({"sum", "mean", "first"}))
      ->capture_default_str();
  app->add_option("--patience", f.patience, "stop after so many evaluations without improvement")
      ->check(Positive());
  app->add_option("--checkpoint-every", f.checkpoint_every, "steps between checkpoints")
      ->check(Positive());
  app->add_option("--log-every", f.log_every, "steps between lines of metrics.jsonl")
      ->check(Positive())
      ->capture_default_str();
  app->add_flag("--resume", f.resume, "go on from the checkpoint in --out");
  AddRecomputeFlag(app, f.recompute);
  app->add_flag("--quiet", f.quiet, "no messages");
}

}  // namespace permafrost
