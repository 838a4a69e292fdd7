#include "train_flags.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/check.h"
#include "objectives.h"
#include "peft/objectives.h"

namespace permafrost {
namespace {

// The learning rate that a method is known to train well with.
double DefaultRate(const AdapterConfig& config, bool adafactor) {
  if (std::holds_alternative<PromptTuningConfig>(config)) return adafactor ? 0.3 : 0.03;
  if (std::holds_alternative<PTuningConfig>(config)) return 1e-3;
  if (std::holds_alternative<MultitaskPromptConfig>(config)) return adafactor ? 0.3 : 0.03;
  if (std::holds_alternative<LoraConfig>(config)) return 1e-3;
  if (std::holds_alternative<AdaLoraConfig>(config)) return 1e-3;
  if (std::holds_alternative<Ia3Config>(config)) return 3e-3;
  if (std::holds_alternative<PrefixTuningConfig>(config)) return 1e-2;
  if (const auto* adapter = std::get_if<BottleneckConfig>(&config)) {
    return adapter->parallel ? 1e-4 : 3e-4;  // a parallel adapter's output counts four times
  }
  if (std::holds_alternative<BitFitConfig>(config)) return 1e-3;
  if (std::holds_alternative<UniPeltConfig>(config)) return 1e-3;
  const FullConfig& full = std::get<FullConfig>(config);
  if (full.part == FullConfig::Part::kNorms) return 1e-3;
  return adafactor ? 1e-3 : 5e-5;
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

ScheduleKind ScheduleOf(const std::string& name) {
  if (name == "linear") return ScheduleKind::kLinear;
  if (name == "cosine") return ScheduleKind::kCosine;
  return name == "inverse-sqrt" ? ScheduleKind::kInverseSqrt : ScheduleKind::kConstant;
}

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

}  // namespace

absl::Status CheckTrainFlags(const TrainFlags& f) {
  if (f.out.empty()) return UsageError("--out is required: the folder for the adapter");
  PERMAFROST_RETURN_IF_ERROR(CheckMethodFlags(f.method));
  return CheckDataFlags(f);
}

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

nlohmann::json TrainSettings(const TrainFlags& f, const Model& model,
                             const std::string& data_hash) {
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

TrainOptions OptionsOf(const TrainFlags& f, const AdapterConfig& config) {
  TrainOptions options;
  options.out = f.out;
  options.steps = f.steps;
  options.epochs = f.epochs;
  options.batch_size = f.batch_size;
  options.accumulate = f.accumulate;
  options.optimizer = OptimizerOf(f, config);
  options.schedule = {ScheduleOf(f.schedule), f.warmup, 0};
  options.shuffle = f.order == "shuffle";
  options.seed = static_cast<uint64_t>(f.seed);
  options.z_loss = static_cast<float>(f.z_loss);
  options.log_every = f.log_every;
  options.evaluate_every = f.eval_every;
  options.checkpoint_every = f.checkpoint_every;
  options.patience = f.patience;
  options.resume = f.resume;
  return options;
}

void AddTrainFlags(CLI::App* app, TrainFlags& f) {
  AddBaseFlags(app, f.base);
  AddDataFlags(app, f.data);
  AddMethodFlags(app, f.method);
  AddObjectiveFlags(app, f.data.objective);
  app->add_option("--data", f.data_path, "training data (.tsv, .csv, .jsonl)");
  AddMixtureFlags(app, f.mixture);
  app->add_option("--eval-data", f.eval_path, "data to evaluate on");
  app->add_option("--out", f.out, "folder for the adapter, logs and checkpoint");
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
