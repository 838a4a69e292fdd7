#include "peft/training_run.h"

#include <cmath>
#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "kernels/elementwise.h"

namespace permafrost {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kCheckpointSeconds = 60;

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool AllParametersFinite(const ParameterList& parameters) {
  for (const Parameter& p : parameters) {
    if (!kernels::cpu::AllFinite(p.value().f32(), p.count())) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TrainingRun>> TrainingRun::Open(const RunSpec& given) {
  RunSpec spec = given;
  TrainOptions& o = spec.options;
  if (o.steps == 0) {
    const int64_t batches = o.epochs * MicroBatchesPerEpoch(spec.lines.size(), o);
    o.steps = (batches + o.accumulate - 1) / o.accumulate;
  } else {
    o.epochs = 0;
  }
  o.schedule.total = o.steps;

  Method& method = *spec.adapter->method;
  auto optimizer = std::make_unique<Optimizer>(o.optimizer, method.parameters());
  CheckpointState state;
  if (o.resume) {
    PERMAFROST_ASSIGN_OR_RETURN(state, ReadCheckpoint(o.out, o.settings, method, *optimizer));
  }
  std::error_code error;
  std::filesystem::create_directories(o.out + "/checkpoint", error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat(o.out, ": cannot create the folder: ", error.message()));
  }
  const std::string metrics = o.out + "/metrics.jsonl";
  PERMAFROST_ASSIGN_OR_RETURN(MetricsLog log, o.resume ? MetricsLog::Resume(metrics, state.step)
                                                       : MetricsLog::Create(metrics));
  const std::optional<int64_t> first = o.resume ? std::optional(state.step + 1) : std::nullopt;
  PERMAFROST_ASSIGN_OR_RETURN(EventFileWriter board, EventFileWriter::Create(o.out, first));
  return std::unique_ptr<TrainingRun>(new TrainingRun(std::move(spec), state, std::move(optimizer),
                                                      std::move(log), std::move(board)));
}

TrainingRun::TrainingRun(RunSpec spec, CheckpointState state, std::unique_ptr<Optimizer> optimizer,
                         MetricsLog log, EventFileWriter board)
    : spec_(std::move(spec)),
      state_(state),
      optimizer_(std::move(optimizer)),
      log_(std::move(log)),
      board_(std::move(board)),
      saved_(spec_.options.resume),
      last_checkpoint_(Clock::now()) {
  result_.last_loss = state_.last_loss;
}

StepPart TrainingRun::NextStep() {
  const TrainOptions& o = spec_.options;
  step_start_ = Clock::now();
  method().SetRandom(o.seed, static_cast<uint32_t>(state_.step));
  StepPart part{method().task(), {}, o.z_loss};
  int64_t end = (state_.step + 1) * o.accumulate;
  if (o.epochs > 0) end = std::min(end, o.epochs * MicroBatchesPerEpoch(spec_.lines.size(), o));
  for (int64_t m = state_.step * o.accumulate; m < end; ++m) {
    std::vector<TokenLine>& batch = part.micro_batches.emplace_back();
    for (const LineDraw& draw : MicroBatch(spec_.lines.size(), o, m)) {
      batch.push_back(o.make_line ? o.make_line(draw) : spec_.lines[draw.line]);
    }
  }
  return part;
}

absl::Status TrainingRun::Finish(Context& c, const Model& model, const StepLoss& loss) {
  const TrainOptions& o = spec_.options;
  const double multiplier = o.schedule.Multiplier(state_.step);
  const double norm = GradientNorm(method().parameters());
  if (!std::isfinite(loss.loss) || !std::isfinite(norm)) {
    return Diverged(absl::StrCat("the loss is ", loss.loss, " and the gradient norm ", norm,
                                 ", expected finite values"));
  }
  optimizer_->Step(c, multiplier);
  if (!AllParametersFinite(method().parameters())) {
    return Diverged("a parameter is not finite after the update");
  }
  ++state_.step;
  result_.last_loss = state_.last_loss = loss.loss;
  const bool last = state_.step == o.steps;
  const StepReport report{.step = state_.step,
                          .steps = o.steps,
                          .loss = loss.loss,
                          .learning_rate = o.optimizer.learning_rate * multiplier,
                          .gradient_norm = norm,
                          .seconds = Since(step_start_),
                          .tokens = loss.tokens};
  if (last || state_.step % o.log_every == 0) PERMAFROST_RETURN_IF_ERROR(LogStep(report));
  if (spec_.events.on_step) spec_.events.on_step(report);

  bool save = last || Since(last_checkpoint_) > kCheckpointSeconds ||
              (o.checkpoint_every > 0 && state_.step % o.checkpoint_every == 0);
  if (spec_.evaluation != nullptr &&
      (last || (o.evaluate_every > 0 && state_.step % o.evaluate_every == 0))) {
    PERMAFROST_RETURN_IF_ERROR(EvaluateNow(c, model));
    save = true;
  }
  const std::atomic<bool>* interrupt = spec_.events.interrupt;
  result_.interrupted = interrupt != nullptr && interrupt->load() && !last;
  if (save || result_.interrupted || state_.stopped) return Checkpoint();
  return absl::OkStatus();
}

absl::StatusOr<TrainResult> TrainingRun::Close(const Model& model) {
  result_.steps = state_.step;
  result_.stopped_early = state_.stopped;
  if (!result_.interrupted) {
    PERMAFROST_RETURN_IF_ERROR(SaveAdapter(spec_.options.out, *spec_.adapter, model));
  }
  return result_;
}

absl::Status TrainingRun::LogStep(const StepReport& r) {
  MetricFields fields = {
      {"step", r.step},
      {"loss", r.loss},
      {"lr", r.learning_rate},
      {"grad_norm", r.gradient_norm},
      {"tokens", r.tokens},
      {"tokens_per_second", r.seconds > 0 ? static_cast<double>(r.tokens) / r.seconds : 0.0}};
  for (int t = 0; t < kMemoryTags; ++t) {
    const MemoryTag tag = static_cast<MemoryTag>(t);
    fields.emplace_back(absl::StrCat(MemoryTagName(tag), "_bytes"), MemoryOf(tag).peak);
  }
  PERMAFROST_RETURN_IF_ERROR(log_.Append(fields));
  return board_.Add(r.step, {{"train/loss", static_cast<float>(r.loss)},
                             {"train/lr", static_cast<float>(r.learning_rate)},
                             {"train/grad_norm", static_cast<float>(r.gradient_norm)}});
}

// Beside the figures, what the method's gates did in the evaluation.
absl::Status TrainingRun::LogEvaluation(const Evaluation& e) {
  MetricFields fields = {{"step", state_.step}, {"eval_loss", e.loss}};
  Scalars scalars = {{"eval/loss", static_cast<float>(e.loss)}};
  for (const auto& [name, value] : e.metrics) {
    fields.emplace_back("eval_" + name, value);
    scalars.emplace_back("eval/" + name, static_cast<float>(value));
  }
  for (const GateMean& gate : result_.gates) {
    fields.emplace_back("gate_" + gate.name, gate.mean);
    scalars.emplace_back("gate/" + gate.name, static_cast<float>(gate.mean));
  }
  PERMAFROST_RETURN_IF_ERROR(log_.Append(fields));
  return board_.Add(state_.step, scalars);
}

absl::Status TrainingRun::EvaluateNow(Context& c, const Model& model) {
  const Evaluation e = Evaluate(c, model, method(), *spec_.evaluation);
  result_.gates = method().TakeGateMeans();
  PERMAFROST_RETURN_IF_ERROR(LogEvaluation(e));
  if (spec_.events.on_evaluation) spec_.events.on_evaluation(state_.step, e);
  if (!state_.best_quality.has_value() || e.Quality() > *state_.best_quality) {
    state_.best_quality = e.Quality();
    state_.evaluations_since_best = 0;
    result_.best = e;
    return SaveAdapter(spec_.options.out + "/best", *spec_.adapter, model);
  }
  const int64_t patience = spec_.options.patience;
  if (++state_.evaluations_since_best >= patience && patience > 0) state_.stopped = true;
  return absl::OkStatus();
}

absl::Status TrainingRun::Checkpoint() {
  PERMAFROST_RETURN_IF_ERROR(
      WriteCheckpoint(spec_.options.out, spec_.options.settings, method(), *optimizer_, state_));
  saved_ = true;
  last_checkpoint_ = Clock::now();
  return absl::OkStatus();
}

// A run that cannot go on keeps what it saved.
absl::Status TrainingRun::Diverged(const std::string& what) const {
  return absl::FailedPreconditionError(absl::StrCat(
      spec_.options.out, ": step ", state_.step + 1, ": ", what,
      saved_ ? absl::StrCat(". The last checkpoint in ", spec_.options.out, "/checkpoint is intact")
             : std::string(),
      "; try a smaller --lr or --clip 1"));
}

}  // namespace permafrost
