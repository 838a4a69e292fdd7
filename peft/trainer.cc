#include "peft/trainer.h"

#include <algorithm>

#include "engine/check.h"
#include "peft/training_run.h"

namespace permafrost {
namespace {

// Runs whose methods can share a batch without changing each other's bits.
struct Group {
  AdapterSet hooks;
  std::vector<TrainingRun*> runs;
  bool closed = false;  // to further runs
  bool reads_all_rows = false;

  // Gates over all rows lengthen the last layer for every row, and a sum over more rows rounds
  // otherwise.
  bool Takes(const Method& method) const {
    return !closed && !method.needs_batch_alone() && method.ReadsAllRows() == reads_all_rows;
  }
};

std::vector<Group> GroupsOf(absl::Span<const std::unique_ptr<TrainingRun>> runs) {
  std::vector<Group> groups;
  for (const std::unique_ptr<TrainingRun>& run : runs) {
    const Method& method = run->method();
    auto group =
        std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.Takes(method); });
    if (group == groups.end()) {
      group = groups.insert(groups.end(), Group());
      group->closed = method.needs_batch_alone();
      group->reads_all_rows = method.ReadsAllRows();
    }
    group->runs.push_back(run.get());
    group->hooks.Add("", run->shared_method());
  }
  return groups;
}

int64_t RowsOf(absl::Span<const TaskSpan> spans, int task) {
  int64_t rows = 0;
  for (const TaskSpan& s : spans) rows += s.task == task ? s.end - s.begin : 0;
  return rows;
}

// Micro-batch m of all parts as one batch, and the part of each of its lines.
struct SharedBatch {
  Batch batch;
  std::vector<size_t> part_of_line;
};

SharedBatch MakeShared(const BatchLayout& layout, absl::Span<const StepPart> parts, size_t m) {
  SharedBatch shared;
  std::vector<TokenLine> lines;
  for (size_t p = 0; p < parts.size(); ++p) {
    if (m >= parts[p].micro_batches.size()) continue;
    const std::vector<TokenLine>& own = parts[p].micro_batches[m];
    lines.insert(lines.end(), own.begin(), own.end());
    shared.part_of_line.resize(lines.size(), p);
  }
  shared.batch = MakeBatch(layout, lines, Outputs::kLabelled);
  return shared;
}

}  // namespace

int64_t MicroBatchesPerEpoch(size_t lines, const TrainOptions& o) {
  int64_t count = o.mixture.empty() ? static_cast<int64_t>(lines) : 0;
  for (const MixturePart& part : o.mixture) count += part.quota;
  return (count + o.batch_size - 1) / o.batch_size;
}

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

std::vector<StepLoss> AccumulateTogether(Context& c, const Model& model, Hooks& hooks,
                                         absl::Span<const StepPart> parts) {
  size_t micro_batches = 0;
  for (const StepPart& p : parts) micro_batches = std::max(micro_batches, p.micro_batches.size());
  std::vector<SharedBatch> batches;
  std::vector<StepLoss> results(parts.size());
  for (size_t m = 0; m < micro_batches; ++m) {
    const SharedBatch& shared = batches.emplace_back(MakeShared(model.layout(hooks), parts, m));
    for (const Target& t : shared.batch.decoder.rows.targets) {
      ++results[shared.part_of_line[static_cast<size_t>(t.example)]].labelled;
    }
    for (size_t p = 0; p < parts.size(); ++p) {
      results[p].tokens += RowsOf(shared.batch.encoder.spans, parts[p].task) +
                           RowsOf(shared.batch.decoder.spans, parts[p].task);
    }
  }
  c.tape.mode = TapeMode::kRecord;
  for (const SharedBatch& shared : batches) {
    const std::vector<Target>& targets = shared.batch.decoder.rows.targets;
    if (targets.empty()) continue;
    std::vector<float> weights, z_losses;
    for (const Target& t : targets) {
      const size_t p = shared.part_of_line[static_cast<size_t>(t.example)];
      weights.push_back(1.0f / static_cast<float>(results[p].labelled));
      z_losses.push_back(parts[p].z_loss);
    }
    const HeadLoss loss = model.Loss(c, shared.batch, hooks, weights, z_losses);
    std::vector<double> sums(parts.size());
    for (size_t t = 0; t < targets.size(); ++t) {
      sums[shared.part_of_line[static_cast<size_t>(targets[t].example)]] +=
          static_cast<double>(loss.per_target.f32()[t]);
    }
    for (size_t p = 0; p < parts.size(); ++p) {
      if (results[p].labelled > 0) {
        results[p].loss += sums[p] / static_cast<double>(results[p].labelled);
      }
    }
    if (loss.loss.needs_grad()) Backward(c, loss.loss, Tensor::From({1, 1}, {1.0f}));
    c.tape.Clear();
  }
  c.tape.mode = TapeMode::kOff;
  return results;
}

StepLoss AccumulateGradients(Context& c, const Model& model, Hooks& hooks,
                             absl::Span<const std::vector<TokenLine>> micro_batches, float z_loss) {
  StepPart part{kNoTask, {micro_batches.begin(), micro_batches.end()}, z_loss};
  for (const std::vector<TokenLine>& lines : micro_batches) {
    if (!lines.empty()) part.task = lines[0].task;
  }
  return AccumulateTogether(c, model, hooks, {part})[0];
}

absl::StatusOr<std::vector<TrainResult>> TrainTogether(Context& c, const Model& model,
                                                       absl::Span<const RunSpec> specs) {
  std::vector<std::unique_ptr<TrainingRun>> runs;
  for (const RunSpec& spec : specs) {
    PERMAFROST_ASSIGN_OR_RETURN(std::unique_ptr<TrainingRun> run, TrainingRun::Open(spec));
    runs.push_back(std::move(run));
  }
  std::vector<Group> groups = GroupsOf(runs);
  for (bool active = true; active;) {
    active = false;
    for (Group& group : groups) {
      std::vector<TrainingRun*> stepping;
      std::vector<StepPart> parts;
      for (TrainingRun* run : group.runs) {
        if (!run->active()) continue;
        stepping.push_back(run);
        parts.push_back(run->NextStep());
      }
      if (stepping.empty()) continue;
      active = true;
      c.training = true;
      const std::vector<StepLoss> losses = AccumulateTogether(c, model, group.hooks, parts);
      c.training = false;
      for (size_t i = 0; i < stepping.size(); ++i) {
        PERMAFROST_RETURN_IF_ERROR(stepping[i]->Finish(c, model, losses[i]));
      }
    }
  }
  std::vector<TrainResult> results;
  for (const std::unique_ptr<TrainingRun>& run : runs) {
    PERMAFROST_ASSIGN_OR_RETURN(TrainResult result, run->Close(model));
    results.push_back(std::move(result));
  }
  return results;
}

absl::StatusOr<TrainResult> Train(Context& c, const Model& model, Adapter& adapter,
                                  absl::Span<const TokenLine> lines,
                                  const EvaluationSet* evaluation, const TrainOptions& options,
                                  const TrainEvents& events) {
  PERMAFROST_ASSIGN_OR_RETURN(
      std::vector<TrainResult> results,
      TrainTogether(c, model, {RunSpec{&adapter, lines, evaluation, options, events}}));
  return std::move(results[0]);
}

}  // namespace permafrost
