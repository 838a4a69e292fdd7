// permafrost train: trains a method on data and writes an adapter folder.
#include <atomic>
#include <csignal>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "command.h"
#include "data.h"
#include "engine/check.h"
#include "io/file.h"
#include "nlohmann/json.hpp"
#include "peft/prompt_init.h"
#include "peft/trainer.h"
#include "predictions.h"

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
  std::string method, init_adapter, data_path, eval_path, out;
  // Prompt, P-tuning
  int64_t virtual_tokens = 0, encoder_width = 0;
  std::string init, init_text, init_file;
  double init_range = 0.5;
  // LoRA
  int64_t rank = 8;
  double alpha = 16, dropout = 0;
  bool rslora = false;
  std::string targets;
  // Run
  int64_t steps = 0, epochs = 1, batch_size = 8, accumulate = 1, warmup = 0, seed = 0;
  int64_t checkpoint_every = 0, eval_every = 0, eval_batch_size = 16, log_every = 1, patience = 0;
  std::string optimizer, schedule, order = "shuffle", score = "sum";
  double lr = -1, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = -1, clip = 0;
  double z_loss = -1;
  std::string recompute;
  bool resume = false, quiet = false;
};

// The learning rate that a method is known to train well with.
double DefaultRate(const AdapterConfig& config, bool adafactor) {
  if (std::holds_alternative<PromptTuningConfig>(config)) return adafactor ? 0.3 : 0.03;
  if (std::holds_alternative<PTuningConfig>(config)) return 1e-3;
  if (std::holds_alternative<LoraConfig>(config)) return 1e-3;
  if (std::holds_alternative<Ia3Config>(config)) return 3e-3;
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
  o.factored = o.scale_parameter = std::holds_alternative<FullConfig>(config);
  return o;
}

absl::StatusOr<Tensor> InitialPrompt(const TrainFlags& f, Session& s, Random& random) {
  // Ids are ordered by frequency, so the first 5000 are the common pieces (Lester et al. 2021).
  constexpr int64_t kMostCommon = 5000;
  const int64_t width = s.model->info().width;
  Context& c = *s.context;
  if (f.init == "random") return UniformTensor({f.virtual_tokens, width}, f.init_range, random);
  if (f.init == "normal") return NormalTensor({f.virtual_tokens, width}, f.init_range, random);
  if (f.init == "vocab") {
    return SampledVocabularyPrompt(c, *s.model, f.virtual_tokens, kMostCommon, random);
  }
  if (f.init == "labels") {
    PERMAFROST_ASSIGN_OR_RETURN(const auto labels, LabelIds(f.data, s));
    if (labels.empty()) {
      return absl::InvalidArgumentError(
          "--init labels: expected label words (--task or --label-words), found none");
    }
    return LabelPrompt(c, *s.model, f.virtual_tokens, labels, kMostCommon, random);
  }
  if (f.init == "text") {
    PERMAFROST_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(s));
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> ids,
                                tokenizer->Encode(f.init_text, Special::kAdd));
    if (ids.empty()) {
      return absl::InvalidArgumentError(
          "--init text: expected --init-text TEXT, found an empty text");
    }
    return TextPrompt(c, *s.model, f.virtual_tokens, ids);
  }
  PERMAFROST_ASSIGN_OR_RETURN(Tensor prompt, ReadPromptFile(f.init_file, c, *s.model));
  if (prompt.rows() != f.virtual_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(f.init_file, ": expected ", f.virtual_tokens,
                                                   " rows (--virtual-tokens), found ",
                                                   prompt.rows()));
  }
  return prompt;
}

absl::StatusOr<Adapter> MakeAdapter(TrainFlags& f, Session& s) {
  Context& c = *s.context;
  const Model& model = *s.model;
  const std::string& type = model.info().model_type;
  if (!f.init_adapter.empty()) return LoadAdapter(f.init_adapter, 0, c, model);
  Random random(static_cast<uint64_t>(f.seed));
  if (f.virtual_tokens == 0) f.virtual_tokens = model.info().encoder_decoder ? 100 : 20;
  if (f.method == "prompt") {
    if (f.init.empty()) {
      f.init = !f.init_text.empty() ? "text" : !f.init_file.empty() ? "file" : "vocab";
    }
    PERMAFROST_ASSIGN_OR_RETURN(Tensor prompt, InitialPrompt(f, s, random));
    return PromptAdapter(0, std::move(prompt));
  }
  const std::vector<std::string> targets =
      f.targets.empty() ? std::vector<std::string>() : absl::StrSplit(f.targets, ',');
  AdapterConfig config = FullConfig();
  if (f.method == "lora") {
    LoraConfig lora;
    lora.rank = f.rank;
    lora.alpha = f.alpha;
    lora.dropout = f.dropout;
    lora.rslora = f.rslora;
    lora.targets.modules = targets.empty() ? DefaultLoraTargets(type) : targets;
    config = lora;
  } else if (f.method == "ptuning") {
    config = PTuningConfig{.virtual_tokens = f.virtual_tokens, .encoder_width = f.encoder_width};
  } else if (f.method == "ia3") {
    config = DefaultIa3Config(type, targets);
  }
  return CreateAdapter(config, 0, c, model, random);
}

absl::StatusOr<std::string> FileHash(const std::string& path) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3u;
  return absl::StrFormat("%016x", hash);
}

// Everything that decides the run's result: what a resumed run must share.
nlohmann::json Settings(const TrainFlags& f, const Model& model, const std::string& data_hash) {
  return {{"method", f.init_adapter.empty() ? f.method : "init-adapter"},
          {"init_adapter", f.init_adapter},
          {"base_hash", absl::StrFormat("%016x", model.info().hash)},
          {"data_hash", data_hash},
          {"virtual_tokens", f.virtual_tokens},
          {"encoder_width", f.encoder_width},
          {"init", f.init},
          {"init_text", f.init_text},
          {"init_file", f.init_file},
          {"init_range", f.init_range},
          {"rank", f.rank},
          {"alpha", f.alpha},
          {"dropout", f.dropout},
          {"rslora", f.rslora},
          {"targets", f.targets},
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

absl::Status CheckFlags(const TrainFlags& f) {
  if (f.method.empty() == f.init_adapter.empty()) {
    return UsageError(absl::StrCat("expected one of --method METHOD and --init-adapter DIR, found ",
                                   f.method.empty() ? "neither" : "both"));
  }
  if (f.init == "text" && f.init_text.empty()) {
    return UsageError("--init text: expected the text, --init-text TEXT");
  }
  if (f.init == "file" && f.init_file.empty()) {
    return UsageError("--init file: expected the file, --init-file FILE");
  }
  return absl::OkStatus();
}

absl::Status RunTrain(TrainFlags f) {
  PERMAFROST_RETURN_IF_ERROR(CheckFlags(f));
  PERMAFROST_ASSIGN_OR_RETURN(Session session, OpenSession(f.base));
  if (f.recompute.empty()) f.recompute = DefaultRecompute(session.model->info());
  session.context->recompute = ParseRecompute(f.recompute);
  PERMAFROST_ASSIGN_OR_RETURN(Adapter adapter, MakeAdapter(f, session));
  FillDefaults(f, adapter.config, session.model->info());
  AdapterSet hooks;
  hooks.Add("", adapter.method);

  PERMAFROST_ASSIGN_OR_RETURN(const LoadedData data,
                              LoadData(f.data_path, f.data, Labels::kRequired, session, hooks));
  int64_t labelled = 0;
  for (const TokenLine& line : data.lines) {
    // Without a prompt nothing predicts a decoder's first token.
    const bool first = session.model->info().encoder_decoder || hooks.VirtualTokens(line.task) > 0;
    for (size_t i = first ? 0 : 1; i < line.labels.size(); ++i) {
      labelled += line.labels[i] != kIgnoredLabel;
    }
  }
  if (labelled == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        f.data_path,
        ": no labelled token: expected at least one label other than -100 that a token predicts"));
  }
  EvaluationSet evaluation;
  if (!f.eval_path.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(const LoadedData eval,
                                LoadData(f.eval_path, f.data, Labels::kRequired, session, hooks));
    evaluation = MakeEvaluationSet(eval, ScoreOf(f.score), f.eval_batch_size);
  }
  PERMAFROST_ASSIGN_OR_RETURN(const std::string data_hash, FileHash(f.data_path));
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
  options.resume = f.resume;
  options.settings = settings.dump();

  TrainEvents events;
  events.interrupt = &g_interrupt;
  std::signal(SIGINT, OnInterrupt);
  std::signal(SIGTERM, OnInterrupt);
  if (!f.quiet) {
    Say(absl::StrFormat("training %d parameters of %s on %d lines; base %d parameters, frozen",
                        hooks.method(0)->parameters().count(),
                        f.method.empty() ? f.init_adapter : f.method, data.lines.size(),
                        session.model->parameter_count()));
    Say(absl::StrCat("settings: ", settings.dump()));
    if (StderrIsTerminal()) events.on_step = ShowProgress;
    events.on_evaluation = [](int64_t step, const Evaluation& e) {
      Say(absl::StrCat("step ", step, ": ", DescribeEvaluation(e)));
    };
  }
  PERMAFROST_ASSIGN_OR_RETURN(const TrainResult result,
                              Train(*session.context, *session.model, adapter, hooks, data.lines,
                                    f.eval_path.empty() ? nullptr : &evaluation, options, events));
  nlohmann::json record = settings;
  record["base"] = f.base.base;
  record["data"] = f.data_path;
  record["threads"] = session.context->pool.threads();
  record["version"] = "0.1.0";
  record["peft_format"] = "0.21.2";
  record["steps_done"] = result.steps;
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
  app->add_option("--method", f.method, "what to train")
      ->check(CLI::IsMember({"prompt", "ptuning", "lora", "ia3", "full"}));
  app->add_option("--init-adapter", f.init_adapter, "go on from an adapter in PEFT format");
  app->add_option("--data", f.data_path, "training data (.tsv, .csv, .jsonl)")->required();
  app->add_option("--eval-data", f.eval_path, "data to evaluate on");
  app->add_option("--out", f.out, "folder for the adapter, logs and checkpoint")->required();
  app->add_option("--virtual-tokens", f.virtual_tokens,
                  "prompt, ptuning: rows (default 100 for T5, else 20)")
      ->check(Between(1, 100000));
  app->add_option("--encoder-width", f.encoder_width,
                  "ptuning: width of the prompt encoder (default: the base's)")
      ->check(Between(1, 65536));
  app->add_option("--init", f.init, "prompt: initialisation (default vocab)")
      ->check(CLI::IsMember({"random", "normal", "vocab", "labels", "text", "file"}));
  app->add_option("--init-text", f.init_text, "prompt: text for --init text");
  app->add_option("--init-file", f.init_file,
                  "prompt: .npy file or adapter folder for --init file");
  app->add_option("--init-range", f.init_range,
                  "prompt: half width of --init random, deviation of --init normal")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--rank", f.rank, "LoRA rank")->check(Between(1, 65536))->capture_default_str();
  app->add_option("--alpha", f.alpha, "LoRA alpha")->check(Positive())->capture_default_str();
  app->add_option("--dropout", f.dropout, "LoRA dropout")
      ->check(Between(0.0, 0.999))
      ->capture_default_str();
  app->add_flag("--rslora", f.rslora, "LoRA: scale alpha / sqrt(rank)");
  app->add_option("--targets", f.targets,
                  "LoRA, IA3: module names, e.g. q_proj,v_proj or all-linear");
  app->add_option("--steps", f.steps, "optimizer steps (instead of --epochs)")->check(Positive());
  app->add_option("--epochs", f.epochs, "passes over the data")
      ->check(Positive())
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
