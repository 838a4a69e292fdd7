#include "peft/trainer.h"

#include <chrono>
#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/metrics_log.h"
#include "io/tensorboard.h"
#include "kernels/elementwise.h"
#include "peft/checkpoint.h"

namespace permafrost {
namespace {

using Clock = std::chrono::steady_clock;

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t MicroBatchesPerEpoch(size_t lines, const TrainOptions& o) {
  int64_t count = o.mixture.empty() ? static_cast<int64_t>(lines) : 0;
  for (const MixturePart& part : o.mixture) count += part.quota;
  return (count + o.batch_size - 1) / o.batch_size;
}

// The micro-batches of 0-based optimizer step `step`; the last step of a run by epochs may be
// short.
std::vector<std::vector<TokenLine>> StepLines(absl::Span<const TokenLine> lines,
                                              const TrainOptions& o, int64_t step,
                                              int64_t micro_total) {
  std::vector<std::vector<TokenLine>> batches;
  const int64_t end = std::min((step + 1) * o.accumulate, micro_total);
  for (int64_t m = step * o.accumulate; m < end; ++m) {
    std::vector<TokenLine>& batch = batches.emplace_back();
    for (const LineDraw& draw : MicroBatch(lines.size(), o, m)) {
      batch.push_back(o.make_line ? o.make_line(draw) : lines[draw.line]);
    }
  }
  return batches;
}

MetricFields StepFields(const StepReport& r) {
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
  return fields;
}

absl::Status LogEvaluation(int64_t step, const Evaluation& e, MetricsLog& log,
                           EventFileWriter& board) {
  MetricFields fields = {{"step", step}, {"eval_loss", e.loss}};
  Scalars scalars = {{"eval/loss", static_cast<float>(e.loss)}};
  for (const auto& [name, value] : e.metrics) {
    fields.emplace_back("eval_" + name, value);
    scalars.emplace_back("eval/" + name, static_cast<float>(value));
  }
  PERMAFROST_RETURN_IF_ERROR(log.Append(fields));
  return board.Add(step, scalars);
}

bool AllParametersFinite(const ParameterList& parameters) {
  for (const Parameter& p : parameters) {
    if (!kernels::cpu::AllFinite(p.value().f32(), p.count())) return false;
  }
  return true;
}

}  // namespace

std::vector<LineDraw> MicroBatch(size_t lines, const TrainOptions& o, int64_t index) {
  const int64_t per_epoch = MicroBatchesPerEpoch(lines, o), epoch = index / per_epoch;
  std::vector<LineDraw> order;
  if (!o.mixture.empty()) {
    order = MixtureEpoch(o.mixture, o.shuffle, o.seed, epoch);
  } else {
    for (size_t i = 0; i < lines; ++i) order.push_back({i, epoch});
    if (o.shuffle) {
      Random random(o.seed, static_cast<uint32_t>(1 + epoch));
      random.Shuffle(order);
    }
  }
  const size_t begin = static_cast<size_t>(index % per_epoch * o.batch_size);
  const size_t end = std::min(order.size(), begin + static_cast<size_t>(o.batch_size));
  return {order.begin() + static_cast<long>(begin), order.begin() + static_cast<long>(end)};
}

StepLoss AccumulateGradients(Context& c, const Model& model, Hooks& hooks,
                             absl::Span<const std::vector<TokenLine>> micro_batches, float z_loss) {
  StepLoss result;
  std::vector<Batch> batches;
  for (const std::vector<TokenLine>& lines : micro_batches) {
    batches.push_back(MakeBatch(model.layout(hooks), lines, Outputs::kLabelled));
    result.labelled += static_cast<int64_t>(batches.back().target_labels.size());
    result.tokens += batches.back().encoder.rows.count() + batches.back().decoder.rows.count();
  }
  c.tape.mode = TapeMode::kRecord;
  for (const Batch& batch : batches) {
    if (batch.target_labels.empty()) continue;
    const std::vector<float> weights(batch.target_labels.size(),
                                     1.0f / static_cast<float>(result.labelled));
    const HeadLoss loss = model.Loss(c, batch, hooks, weights, z_loss);
    double sum = 0;
    for (float v : loss.per_target.values()) sum += v;
    result.loss += sum / static_cast<double>(result.labelled);
    if (loss.loss.needs_grad()) {
      Backward(c, loss.loss, Tensor::From({1, 1}, {1.0f}));
    }
    c.tape.Clear();
  }
  c.tape.mode = TapeMode::kOff;
  return result;
}

absl::StatusOr<TrainResult> Train(Context& c, const Model& model, Adapter& adapter, Hooks& hooks,
                                  absl::Span<const TokenLine> lines,
                                  const EvaluationSet* evaluation, TrainOptions options,
                                  const TrainEvents& events) {
  int64_t micro_total = options.steps * options.accumulate;
  if (options.steps == 0) {
    micro_total = options.epochs * MicroBatchesPerEpoch(lines.size(), options);
    options.steps = (micro_total + options.accumulate - 1) / options.accumulate;
  }
  options.schedule.total = options.steps;
  c.seed = options.seed;

  Optimizer optimizer(options.optimizer, adapter.method->parameters());
  CheckpointState state;
  if (options.resume) {
    PERMAFROST_ASSIGN_OR_RETURN(
        state, ReadCheckpoint(options.out, options.settings, *adapter.method, optimizer));
  }
  std::error_code error;
  std::filesystem::create_directories(options.out + "/checkpoint", error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat(options.out, ": cannot create the folder: ", error.message()));
  }
  PERMAFROST_ASSIGN_OR_RETURN(MetricsLog log,
                              options.resume
                                  ? MetricsLog::Resume(options.out + "/metrics.jsonl", state.step)
                                  : MetricsLog::Create(options.out + "/metrics.jsonl"));
  PERMAFROST_ASSIGN_OR_RETURN(
      EventFileWriter board,
      EventFileWriter::Create(options.out,
                              options.resume ? std::optional(state.step + 1) : std::nullopt));
  bool saved = options.resume;
  const auto checkpoint = [&]() -> absl::Status {
    PERMAFROST_RETURN_IF_ERROR(
        WriteCheckpoint(options.out, options.settings, *adapter.method, optimizer, state));
    saved = true;
    return absl::OkStatus();
  };
  // A run that cannot go on keeps what it saved.
  const auto diverged = [&](const std::string& what) {
    return absl::FailedPreconditionError(absl::StrCat(
        "step ", state.step + 1, ": ", what,
        saved ? absl::StrCat(". The last checkpoint in ", options.out, "/checkpoint is intact")
              : std::string(),
        "; try a smaller --lr or --clip 1"));
  };

  TrainResult result;
  result.last_loss = state.last_loss;
  Clock::time_point last_checkpoint = Clock::now();
  while (state.step < options.steps && !state.stopped) {
    const Clock::time_point start = Clock::now();
    c.step = static_cast<uint32_t>(state.step);
    c.training = true;
    const StepLoss loss = AccumulateGradients(
        c, model, hooks, StepLines(lines, options, state.step, micro_total), options.z_loss);
    c.training = false;
    const double multiplier = options.schedule.Multiplier(state.step);
    const double norm = GradientNorm(adapter.method->parameters());
    if (!std::isfinite(loss.loss) || !std::isfinite(norm)) {
      return diverged(absl::StrCat("the loss is ", loss.loss, " and the gradient norm ", norm,
                                   ", expected finite values"));
    }
    optimizer.Step(c, multiplier);
    if (!AllParametersFinite(adapter.method->parameters())) {
      return diverged("a parameter is not finite after the update");
    }
    ++state.step;
    result.last_loss = state.last_loss = loss.loss;
    const StepReport report{.step = state.step,
                            .steps = options.steps,
                            .loss = loss.loss,
                            .learning_rate = options.optimizer.learning_rate * multiplier,
                            .gradient_norm = norm,
                            .seconds = Since(start),
                            .tokens = loss.tokens};
    if (state.step % options.log_every == 0 || state.step == options.steps) {
      PERMAFROST_RETURN_IF_ERROR(log.Append(StepFields(report)));
      PERMAFROST_RETURN_IF_ERROR(
          board.Add(state.step, {{"train/loss", static_cast<float>(report.loss)},
                                 {"train/lr", static_cast<float>(report.learning_rate)},
                                 {"train/grad_norm", static_cast<float>(report.gradient_norm)}}));
    }
    if (events.on_step) events.on_step(report);

    const bool last = state.step == options.steps;
    bool save = last || Since(last_checkpoint) > 60 ||
                (options.checkpoint_every > 0 && state.step % options.checkpoint_every == 0);
    if (evaluation != nullptr &&
        (last || (options.evaluate_every > 0 && state.step % options.evaluate_every == 0))) {
      const Evaluation e = Evaluate(c, model, hooks, *evaluation);
      PERMAFROST_RETURN_IF_ERROR(LogEvaluation(state.step, e, log, board));
      if (events.on_evaluation) events.on_evaluation(state.step, e);
      if (!state.best_quality.has_value() || e.Quality() > *state.best_quality) {
        state.best_quality = e.Quality();
        state.evaluations_since_best = 0;
        result.best = e;
        PERMAFROST_RETURN_IF_ERROR(SaveAdapter(options.out + "/best", adapter, model));
      } else if (++state.evaluations_since_best >= options.patience && options.patience > 0) {
        state.stopped = true;
      }
      save = true;
    }
    result.interrupted = events.interrupt != nullptr && events.interrupt->load() && !last;
    if (save || result.interrupted || state.stopped) {
      PERMAFROST_RETURN_IF_ERROR(checkpoint());
      last_checkpoint = Clock::now();
    }
    if (result.interrupted) break;
  }
  result.steps = state.step;
  result.stopped_early = state.stopped;
  if (!result.interrupted) PERMAFROST_RETURN_IF_ERROR(SaveAdapter(options.out, adapter, model));
  return result;
}

}  // namespace permafrost
