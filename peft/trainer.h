// Training of adapters on lines of token ids: accumulation, evaluation, checkpoints, exact resume;
// several adapters at once on one frozen base.
//
// An optimizer step is the mean loss over all labelled tokens of its micro-batches. A run that was
// killed at any step and resumed ends in the same bytes as one that was not: parameters, optimizer
// state and step count are in the checkpoint, and everything random is a function of seed and step
// (lines that are drawn anew: of seed, pass and line).
#ifndef PERMAFROST_PEFT_TRAINER_H_
#define PERMAFROST_PEFT_TRAINER_H_

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/optim/optimizer.h"
#include "models/batch.h"
#include "peft/adapter_file.h"
#include "peft/evaluate.h"
#include "peft/mixture.h"

namespace permafrost {

// Makes line `draw.line` anew for its pass `draw.pass`: objectives that are drawn at random
// (objectives.h).
using LineMaker = std::function<TokenLine(const LineDraw& draw)>;

struct TrainOptions {
  std::string out;    // folder
  int64_t steps = 0;  // optimizer steps; 0: from epochs
  int64_t epochs = 1;
  int64_t batch_size = 8;  // lines of a micro-batch
  int64_t accumulate = 1;  // micro-batches of an optimizer step
  OptimizerConfig optimizer;
  Schedule schedule;  // total is filled in
  bool shuffle = true;
  uint64_t seed = 0;
  float z_loss = 0;
  int64_t log_every = 1;
  int64_t evaluate_every = 0;    // steps; 0: only at the end
  int64_t checkpoint_every = 0;  // steps; 0: at evaluations, once a minute and at the end
  int64_t patience = 0;          // evaluations without improvement before stopping; 0: never
  // Parts that the lines consist of, one behind the other; empty: one part, each line once an
  // epoch.
  std::vector<MixturePart> mixture;
  LineMaker make_line;  // null: the lines as they are
  bool resume = false;
  std::string settings;  // what a resumed run must share, as text
};

struct StepReport {
  int64_t step = 0, steps = 0;
  double loss = 0, learning_rate = 0, gradient_norm = 0, seconds = 0;
  int64_t tokens = 0;
};

struct TrainEvents {
  std::function<void(const StepReport&)> on_step;
  std::function<void(int64_t step, const Evaluation&)> on_evaluation;
  const std::atomic<bool>* interrupt = nullptr;  // set by a signal
};

struct TrainResult {
  int64_t steps = 0;
  double last_loss = 0;
  bool interrupted = false;
  bool stopped_early = false;
  std::optional<Evaluation> best;
  std::vector<GateMean> gates;  // of the last evaluation
};

// What one run trains, and on what. The lines are of the method's task.
struct RunSpec {
  Adapter* adapter = nullptr;
  absl::Span<const TokenLine> lines;
  const EvaluationSet* evaluation = nullptr;
  TrainOptions options;
  TrainEvents events;
};

// Trains every adapter in place and writes for each OUT/{adapter files, metrics.jsonl, checkpoint/,
// event file}, with evaluation lines also OUT/best. The runs' methods have tasks of their own; a
// step of theirs is one batch, in which the base sees all rows at once, and each run ends in the
// bits that it would have alone. Methods whose gates read all rows, and those that need a batch
// alone, have batches of their own. Errors: no labelled token, a loss that is not finite (the last
// checkpoint stays), a label outside the vocabulary, unwritable files, a checkpoint that is
// missing, damaged or of other settings.
absl::StatusOr<std::vector<TrainResult>> TrainTogether(Context& c, const Model& model,
                                                       absl::Span<const RunSpec> runs);
// One run.
absl::StatusOr<TrainResult> Train(Context& c, const Model& model, Adapter& adapter,
                                  absl::Span<const TokenLine> lines,
                                  const EvaluationSet* evaluation, const TrainOptions& options,
                                  const TrainEvents& events);

// Micro-batches of a pass over the lines, and the lines of micro-batch `index` of a run: epoch by
// epoch, the last batch of an epoch short.
int64_t MicroBatchesPerEpoch(size_t lines, const TrainOptions& options);
std::vector<LineDraw> MicroBatch(size_t lines, const TrainOptions& options, int64_t index);

// One optimizer step's forward and backward over the micro-batches of several tasks; the mean loss
// of each over its labelled tokens. Dropout acts if c.training.
struct StepPart {
  int task = kNoTask;
  std::vector<std::vector<TokenLine>> micro_batches;
  float z_loss = 0;
};
struct StepLoss {
  double loss = 0;
  int64_t labelled = 0, tokens = 0;
};
std::vector<StepLoss> AccumulateTogether(Context& c, const Model& model, Hooks& hooks,
                                         absl::Span<const StepPart> parts);
StepLoss AccumulateGradients(Context& c, const Model& model, Hooks& hooks,
                             absl::Span<const std::vector<TokenLine>> micro_batches, float z_loss);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_TRAINER_H_
