#include "peft/evaluate.h"

#include <algorithm>
#include <cmath>

#include "engine/check.h"
#include "peft/metrics.h"

namespace permafrost {
namespace {

// Calls f(batch begin, lines of the batch).
template <class T, class F>
void ForEachBatch(absl::Span<const T> lines, int64_t batch_size, F f) {
  for (size_t begin = 0; begin < lines.size(); begin += static_cast<size_t>(batch_size)) {
    f(begin, lines.subspan(begin, static_cast<size_t>(batch_size)));
  }
}

// Per-target losses of a batch; no gradients.
Tensor TargetLosses(Context& c, const Model& model, Hooks& hooks, const Batch& batch) {
  const TapeMode mode = c.tape.mode;
  const bool training = c.training;
  c.tape.mode = TapeMode::kOff;
  c.training = false;
  const std::vector<float> weights(batch.target_labels.size(), 1.0f);
  const Tensor losses = model.Loss(c, batch, hooks, weights).per_target;
  c.tape.mode = mode;
  c.training = training;
  return losses;
}

// Each candidate behind its text as a line of its own.
std::vector<TokenLine> SeparateLines(absl::Span<const ChoiceLine> lines) {
  std::vector<TokenLine> separate;
  for (const ChoiceLine& line : lines) {
    for (const std::vector<int32_t>& candidate : line.candidates) {
      TokenLine& own = separate.emplace_back();
      own.task = line.task;
      own.input_ids = line.input_ids;
      own.input_ids.insert(own.input_ids.end(), candidate.begin(), candidate.end());
      own.labels.assign(line.input_ids.size(), -100);
      own.labels.insert(own.labels.end(), candidate.begin(), candidate.end());
    }
  }
  return separate;
}

// Candidates share their text's rows, unless those depend on the candidate.
Batch ChoiceBatch(const Model& model, const Hooks& hooks, absl::Span<const ChoiceLine> lines) {
  const bool separate = !model.info().encoder_decoder &&
                        std::any_of(lines.begin(), lines.end(), [&](const ChoiceLine& line) {
                          return hooks.ReadsFuture(line.task);
                        });
  if (!separate) return MakeChoiceBatch(model.layout(hooks), lines);
  return MakeBatch(model.layout(hooks), SeparateLines(lines), Outputs::kLabelled);
}

}  // namespace

std::vector<std::vector<double>> ScoreChoices(Context& c, const Model& model, Hooks& hooks,
                                              absl::Span<const ChoiceLine> lines, Score score,
                                              int64_t batch_size) {
  std::vector<std::vector<double>> scores;
  ForEachBatch(lines, batch_size, [&](size_t, absl::Span<const ChoiceLine> part) {
    const Batch batch = ChoiceBatch(model, hooks, part);
    const Tensor losses = TargetLosses(c, model, hooks, batch);
    size_t target = 0;
    for (const ChoiceLine& line : part) {
      std::vector<double>& row = scores.emplace_back();
      for (const std::vector<int32_t>& candidate : line.candidates) {
        double sum = 0;
        for (size_t i = 0; i < candidate.size(); ++i, ++target) {
          if (score != Score::kFirst || i == 0) sum -= losses.f32()[target];
        }
        row.push_back(score == Score::kMean ? sum / static_cast<double>(candidate.size()) : sum);
      }
    }
  });
  return scores;
}

std::vector<double> Probabilities(absl::Span<const double> scores) {
  const double best = *std::max_element(scores.begin(), scores.end());
  std::vector<double> p;
  double sum = 0;
  for (double s : scores) sum += p.emplace_back(std::exp(s - best));
  for (double& v : p) v /= sum;
  return p;
}

EnsembleAnswer CombineMembers(absl::Span<const std::vector<double>> members, Ensemble how) {
  PERMAFROST_CHECK(!members.empty()) << "CombineMembers: no members";
  const size_t candidates = members[0].size();
  EnsembleAnswer answer{std::vector<double>(candidates), std::vector<int>(candidates), 0};
  for (const std::vector<double>& member : members) {
    PERMAFROST_CHECK(member.size() == candidates)
        << "CombineMembers: " << candidates << " and " << member.size() << " candidates";
    for (size_t i = 0; i < candidates; ++i) {
      answer.mean[i] += member[i] / static_cast<double>(members.size());
    }
    ++answer.votes[static_cast<size_t>(BestChoice(member))];
  }
  answer.choice = BestChoice(answer.mean);
  if (how == Ensemble::kMean) return answer;
  const int most = *std::max_element(answer.votes.begin(), answer.votes.end());
  int chosen = -1;
  for (size_t i = 0; i < candidates; ++i) {
    if (answer.votes[i] != most) continue;
    if (chosen < 0 || answer.mean[i] > answer.mean[static_cast<size_t>(chosen)]) {
      chosen = static_cast<int>(i);
    }
  }
  answer.choice = chosen;
  return answer;
}

LineLosses ComputeLosses(Context& c, const Model& model, Hooks& hooks,
                         absl::Span<const TokenLine> lines, int64_t batch_size) {
  LineLosses result;
  result.per_line.assign(lines.size(), 0);
  double total = 0;
  ForEachBatch(lines, batch_size, [&](size_t begin, absl::Span<const TokenLine> part) {
    const Batch batch = MakeBatch(model.layout(hooks), part, Outputs::kLabelled);
    if (batch.target_labels.empty()) return;
    const Tensor losses = TargetLosses(c, model, hooks, batch);
    std::vector<int64_t> counts(part.size(), 0);
    for (size_t t = 0; t < batch.target_labels.size(); ++t) {
      const size_t example = static_cast<size_t>(batch.decoder.rows.targets[t].example);
      result.per_line[begin + example] += losses.f32()[t];
      total += losses.f32()[t];
      ++counts[example];
    }
    for (size_t i = 0; i < part.size(); ++i) {
      if (counts[i] > 0) result.per_line[begin + i] /= static_cast<double>(counts[i]);
      result.labelled += counts[i];
    }
  });
  if (result.labelled > 0) result.mean = total / static_cast<double>(result.labelled);
  return result;
}

int BestChoice(absl::Span<const double> scores) {
  return static_cast<int>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

Evaluation Evaluate(Context& c, const Model& model, Hooks& hooks, const EvaluationSet& set) {
  Evaluation result;
  result.loss = ComputeLosses(c, model, hooks, set.lines, set.batch_size).mean;
  if (set.choices.empty()) return result;
  std::vector<int> predictions;
  for (const std::vector<double>& scores :
       ScoreChoices(c, model, hooks, set.choices, set.score, set.batch_size)) {
    predictions.push_back(BestChoice(scores));
  }
  const int classes = static_cast<int>(set.choices[0].candidates.size());
  result.metrics = ComputeMetrics(set.metrics, predictions, set.labels, classes);
  return result;
}

}  // namespace permafrost
