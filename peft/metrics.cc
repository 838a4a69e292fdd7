#include "peft/metrics.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"

namespace permafrost {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

void CheckSizes(const char* metric, absl::Span<const int> predictions,
                absl::Span<const int> labels) {
  PERMAFROST_CHECK(predictions.size() == labels.size())
      << metric << ": one prediction a label, found " << predictions.size() << " and "
      << labels.size();
}

// F1 of one class against the rest.
double ClassF1(absl::Span<const int> predictions, absl::Span<const int> labels, int positive) {
  int64_t hits = 0, predicted = 0, actual = 0;
  for (size_t i = 0; i < labels.size(); ++i) {
    predicted += predictions[i] == positive;
    actual += labels[i] == positive;
    hits += predictions[i] == positive && labels[i] == positive;
  }
  return predicted + actual == 0 ? 0.0 : 2.0 * hits / (predicted + actual);
}

}  // namespace

double Accuracy(absl::Span<const int> predictions, absl::Span<const int> labels) {
  CheckSizes("Accuracy", predictions, labels);
  if (labels.empty()) return kUndefined;
  int64_t equal = 0;
  for (size_t i = 0; i < labels.size(); ++i) {
    equal += predictions[i] == labels[i] && labels[i] >= 0;
  }
  return static_cast<double>(equal) / labels.size();
}

double BinaryF1(absl::Span<const int> predictions, absl::Span<const int> labels) {
  CheckSizes("BinaryF1", predictions, labels);
  if (labels.empty()) return kUndefined;
  std::vector<int> valid(predictions.begin(), predictions.end());
  for (size_t i = 0; i < valid.size(); ++i) {
    if (valid[i] != 0 && valid[i] != 1) valid[i] = 1 - labels[i];
  }
  return ClassF1(valid, labels, 1);
}

double MacroF1(absl::Span<const int> predictions, absl::Span<const int> labels, int classes) {
  CheckSizes("MacroF1", predictions, labels);
  PERMAFROST_CHECK(classes > 0) << "MacroF1: at least one class, found " << classes;
  if (labels.empty()) return kUndefined;
  double sum = 0.0;
  for (int k = 0; k < classes; ++k) sum += ClassF1(predictions, labels, k);
  return sum / classes;
}

double Matthews(absl::Span<const int> predictions, absl::Span<const int> labels) {
  CheckSizes("Matthews", predictions, labels);
  if (labels.empty()) return kUndefined;
  struct Counts {
    double predicted = 0, actual = 0;
  };
  std::map<int, Counts> counts;
  double correct = 0;
  for (size_t i = 0; i < labels.size(); ++i) {
    ++counts[predictions[i]].predicted;
    ++counts[labels[i]].actual;
    correct += predictions[i] == labels[i];
  }
  const double total = static_cast<double>(labels.size());
  double both = 0, predicted_squares = 0, actual_squares = 0;
  for (const auto& [label, count] : counts) {
    both += count.predicted * count.actual;
    predicted_squares += count.predicted * count.predicted;
    actual_squares += count.actual * count.actual;
  }
  const double denominator = (total * total - predicted_squares) * (total * total - actual_squares);
  return denominator == 0.0 ? 0.0 : (correct * total - both) / std::sqrt(denominator);
}

const std::vector<std::string>& MetricNames() {
  static const auto& names =
      *new std::vector<std::string>{"accuracy", "f1", "macro_f1", "matthews"};
  return names;
}

absl::StatusOr<double> ComputeMetric(const std::string& name, absl::Span<const int> predictions,
                                     absl::Span<const int> labels, int classes) {
  if (name == "accuracy") return Accuracy(predictions, labels);
  if (name == "macro_f1") return MacroF1(predictions, labels, classes);
  if (name == "matthews") return Matthews(predictions, labels);
  if (name == "f1") {
    if (classes == 2) return BinaryF1(predictions, labels);
    return absl::InvalidArgumentError(
        absl::StrCat("metric f1: expected 2 label words, found ", classes, "; use macro_f1"));
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown metric '", name, "'; expected one of ",
                                                 absl::StrJoin(MetricNames(), ", ")));
}

std::vector<std::pair<std::string, double>> ComputeMetrics(absl::Span<const std::string> names,
                                                           absl::Span<const int> predictions,
                                                           absl::Span<const int> labels,
                                                           int classes) {
  std::vector<std::pair<std::string, double>> metrics;
  for (const std::string& name : names) {
    const absl::StatusOr<double> value = ComputeMetric(name, predictions, labels, classes);
    if (value.ok()) metrics.emplace_back(name, *value);
  }
  return metrics;
}

}  // namespace permafrost
