// Training of one adapter on lines of token ids: accumulation, evaluation, checkpoints, exact
// resume.
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
};

// Trains adapter.method in place and writes OUT/{adapter files, metrics.jsonl, checkpoint/, event
// file}, with evaluation lines also OUT/best. Errors: no labelled token, a loss that is not finite
// (the last checkpoint stays), a label outside the vocabulary, unwritable files, a checkpoint that
// is missing, damaged or of other settings.
absl::StatusOr<TrainResult> Train(Context& c, const Model& model, Adapter& adapter, Hooks& hooks,
                                  absl::Span<const TokenLine> lines,
                                  const EvaluationSet* evaluation, TrainOptions options,
                                  const TrainEvents& events);

// The lines of micro-batch `index` of a run: epoch by epoch, the last batch of an epoch short.
std::vector<LineDraw> MicroBatch(size_t lines, const TrainOptions& options, int64_t index);

// One optimizer step's forward and backward over its micro-batches; returns the mean loss and the
// labelled tokens. Dropout acts if c.training.
struct StepLoss {
  double loss = 0;
  int64_t labelled = 0, tokens = 0;
};
StepLoss AccumulateGradients(Context& c, const Model& model, Hooks& hooks,
                             absl::Span<const std::vector<TokenLine>> micro_batches, float z_loss);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_TRAINER_H_
