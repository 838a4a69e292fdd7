#include "models/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

namespace permafrost {

int32_t ArgMax(absl::Span<const float> scores) {
  size_t best = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (std::isnan(scores[i])) return -1;
    if (scores[i] > scores[best]) best = i;
  }
  return static_cast<int32_t>(best);
}

std::vector<int32_t> TopIndices(absl::Span<const float> scores, int64_t count) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto better = [&](int32_t a, int32_t b) {
    const float x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  };
  count = std::min(count, static_cast<int64_t>(order.size()));
  std::partial_sort(order.begin(), order.begin() + count, order.end(), better);
  order.resize(static_cast<size_t>(count));
  return order;
}

void PenalizeRepetition(absl::Span<float> scores, absl::Span<const int32_t> ids, double penalty) {
  if (penalty == 1) return;
  std::vector<int32_t> distinct(ids.begin(), ids.end());
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const float factor = static_cast<float>(penalty);
  for (const int32_t id : distinct) {
    float& score = scores[static_cast<size_t>(id)];
    score = score < 0 ? score * factor : score / factor;
  }
}

void LogSoftmax(absl::Span<float> scores) {
  const float largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const float s : scores) sum += std::exp(static_cast<double>(s - largest));
  const double offset = largest + std::log(sum);
  for (float& s : scores) s = static_cast<float>(s - offset);
}

std::vector<double> SamplingProbabilities(absl::Span<const float> scores, double temperature,
                                          int64_t top_k, double top_p) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  float threshold = -std::numeric_limits<float>::infinity();
  if (top_k > 0 && top_k < static_cast<int64_t>(scores.size())) {
    std::vector<float> sorted(scores.begin(), scores.end());
    std::nth_element(sorted.begin(), sorted.begin() + (top_k - 1), sorted.end(), std::greater<>());
    threshold = sorted[static_cast<size_t>(top_k - 1)];
  }
  std::vector<double> p(scores.size());
  double sum = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] < threshold) continue;
    p[i] = std::exp((scores[i] - largest) / temperature);
    sum += p[i];
  }
  for (double& x : p) x /= sum;
  if (top_p >= 1) return p;

  std::vector<size_t> order;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] > 0) order.push_back(i);
  }
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return p[a] < p[b] || (p[a] == p[b] && a > b); });
  double dropped = 0, cumulative = 0;
  for (size_t i = 0; i + 1 < order.size(); ++i) {
    cumulative += p[order[i]];
    if (cumulative > 1 - top_p) break;
    p[order[i]] = 0;
    dropped = cumulative;
  }
  for (double& x : p) x /= 1 - dropped;
  return p;
}

int32_t PickToken(absl::Span<const double> probabilities, double uniform) {
  double cumulative = 0;
  int32_t last = 0;
  for (size_t i = 0; i < probabilities.size(); ++i) {
    if (probabilities[i] == 0) continue;
    last = static_cast<int32_t>(i);
    cumulative += probabilities[i];
    if (uniform < cumulative) break;
  }
  return last;  // also where rounding leaves the sum under `uniform`
}

}  // namespace permafrost
