// Classification metrics over label indices.
//
// Shapes: `predictions` and `labels` have one entry an example. A label is in [0, classes); a
// prediction that is none of the labels (generated text that is no label word) is -1. Values are
// fractions, not percent; formulas are those of scikit-learn. Without examples every metric is NaN.
//
// Non-goals: metrics of free text (BLEU, ROUGE, SQuAD).

#ifndef PERMAFROST_PEFT_METRICS_H_
#define PERMAFROST_PEFT_METRICS_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace permafrost {

// Fraction of equal entries. -1 is never equal.
double Accuracy(absl::Span<const int> predictions, absl::Span<const int> labels);

// 2TP / (2TP + FP + FN) for the class 1; 0 where undefined. A prediction outside {0, 1} counts as
// the wrong one of the two (T5's f1_score_with_invalid).
double BinaryF1(absl::Span<const int> predictions, absl::Span<const int> labels);

// Unweighted mean over all `classes` of the F1 of each class against the rest; 0 for a class where
// it is undefined, such as one that occurs neither in predictions nor in labels.
double MacroF1(absl::Span<const int> predictions, absl::Span<const int> labels, int classes);

// Matthews correlation coefficient, the multiclass form R_K of Gorodkin 2004, which for two classes
// is the usual one: (c s - sum p_k t_k) / sqrt((s^2 - sum p_k^2)(s^2 - sum t_k^2)), 0 where the
// denominator is 0. The prediction -1 is a class of its own.
double Matthews(absl::Span<const int> predictions, absl::Span<const int> labels);

// `accuracy`, `f1`, `macro_f1`, `matthews`.
const std::vector<std::string>& MetricNames();

// The metric of that name. Error (InvalidArgument): an unknown name; `f1` with another number of
// classes than 2.
absl::StatusOr<double> ComputeMetric(const std::string& name, absl::Span<const int> predictions,
                                     absl::Span<const int> labels, int classes);

// Those of `names` that are defined for this number of classes, with their values.
std::vector<std::pair<std::string, double>> ComputeMetrics(absl::Span<const std::string> names,
                                                           absl::Span<const int> predictions,
                                                           absl::Span<const int> labels,
                                                           int classes);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_METRICS_H_
