// One adapter's training run: its data, optimizer, schedule, logs, evaluations and checkpoints.
// Forward and backward passes are the trainer's (trainer.h), which may run several of these on one
// batch.
#ifndef PERMAFROST_PEFT_TRAINING_RUN_H_
#define PERMAFROST_PEFT_TRAINING_RUN_H_

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "io/metrics_log.h"
#include "io/tensorboard.h"
#include "peft/checkpoint.h"
#include "peft/trainer.h"

namespace permafrost {

class TrainingRun {
 public:
  // Opens the folder, logs and checkpoint. Errors: unwritable files, a checkpoint that is missing,
  // damaged or of other settings.
  static absl::StatusOr<std::unique_ptr<TrainingRun>> Open(const RunSpec& spec);

  Method& method() const { return *spec_.adapter->method; }
  const std::shared_ptr<Method>& shared_method() const { return spec_.adapter->method; }
  bool active() const {
    return state_.step < spec_.options.steps && !state_.stopped && !result_.interrupted;
  }

  // The lines of the step to come; sets what its dropout is drawn from.
  StepPart NextStep();
  // The update from the gradients that are there, the step's log, evaluation and checkpoint.
  // Errors: a loss, gradient or parameter that is not finite (the last checkpoint stays),
  // unwritable files.
  absl::Status Finish(Context& c, const Model& model, const StepLoss& loss);
  // Writes the adapter unless the run was interrupted.
  absl::StatusOr<TrainResult> Close(const Model& model);

 private:
  TrainingRun(RunSpec spec, CheckpointState state, std::unique_ptr<Optimizer> optimizer,
              MetricsLog log, EventFileWriter board);

  absl::Status LogStep(const StepReport& report);
  absl::Status LogEvaluation(const Evaluation& evaluation);
  absl::Status EvaluateNow(Context& c, const Model& model);
  absl::Status Checkpoint();
  absl::Status Diverged(const std::string& what) const;

  RunSpec spec_;
  CheckpointState state_;
  std::unique_ptr<Optimizer> optimizer_;
  MetricsLog log_;
  EventFileWriter board_;
  TrainResult result_;
  bool saved_;  // whether there is a checkpoint
  std::chrono::steady_clock::time_point step_start_, last_checkpoint_;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_TRAINING_RUN_H_
