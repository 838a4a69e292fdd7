// Evaluation of a base with adapters: loss over labelled tokens, and classification by scoring
// label words. The candidates of a line share its input's rows.
#ifndef PERMAFROST_PEFT_EVALUATE_H_
#define PERMAFROST_PEFT_EVALUATE_H_

#include <string>
#include <utility>
#include <vector>

#include "models/batch.h"
#include "models/model.h"

namespace permafrost {

// How the log-probabilities of a candidate's tokens become its score.
enum class Score { kSum, kMean, kFirst };

// Scores [lines][candidates] of each line's candidates.
std::vector<std::vector<double>> ScoreChoices(Context& c, const Model& model, Hooks& hooks,
                                              absl::Span<const ChoiceLine> lines, Score score,
                                              int64_t batch_size);

// Softmax of one line's scores.
std::vector<double> Probabilities(absl::Span<const double> scores);

// What m adapters of one task say of a line together (Lester et al. 2021, section 6).
enum class Ensemble {
  kMean,  // the candidate of the highest mean probability
  kVote,  // the candidate that most members put first; of several, the one of higher mean
};
struct EnsembleAnswer {
  std::vector<double> mean;  // of the members' probabilities, by candidate
  std::vector<int> votes;    // members that put the candidate first
  int choice = 0;
};
// members [m][candidates], not empty, all of one length: a line's probabilities by each member.
EnsembleAnswer CombineMembers(absl::Span<const std::vector<double>> members, Ensemble how);

// Mean loss over the labelled tokens of each line (0 for none), and of all lines.
struct LineLosses {
  std::vector<double> per_line;
  double mean = 0;
  int64_t labelled = 0;
};
LineLosses ComputeLosses(Context& c, const Model& model, Hooks& hooks,
                         absl::Span<const TokenLine> lines, int64_t batch_size);

// Lines to evaluate on; `choices` and `labels` only for classification.
struct EvaluationSet {
  std::vector<TokenLine> lines;
  std::vector<ChoiceLine> choices;
  std::vector<int> labels;
  std::vector<std::string> metrics;  // names of metrics.h; the first chooses the best
  Score score = Score::kSum;
  int64_t batch_size = 16;
};

struct Evaluation {
  double loss = 0;
  std::vector<std::pair<std::string, double>> metrics;
  // Larger is better: the first metric, or minus the loss.
  double Quality() const { return metrics.empty() ? -loss : metrics[0].second; }
};
Evaluation Evaluate(Context& c, const Model& model, Hooks& hooks, const EvaluationSet& set);

// The index of the largest score; the first on ties.
int BestChoice(absl::Span<const double> scores);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_EVALUATE_H_
