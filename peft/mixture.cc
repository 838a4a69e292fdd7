#include "peft/mixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "peft/objectives.h"

namespace permafrost {

std::vector<int64_t> SplitByShares(int64_t total, absl::Span<const double> shares) {
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<int64_t> result;
  std::vector<double> remainders;
  int64_t left = total;
  for (const double share : shares) {
    const double exact = static_cast<double>(total) * (share / sum);
    result.push_back(static_cast<int64_t>(exact));
    remainders.push_back(exact - std::floor(exact));
    left -= result.back();
  }
  std::vector<size_t> order(shares.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return remainders[a] > remainders[b]; });
  for (size_t i = 0; i < order.size() && left > 0; ++i, --left) ++result[order[i]];
  for (int64_t& count : result) count = std::max<int64_t>(count, 1);
  return result;
}

std::vector<int64_t> ProportionalQuotas(absl::Span<const int64_t> lines, int64_t cap,
                                        double temperature) {
  std::vector<int64_t> capped;
  for (const int64_t count : lines) capped.push_back(cap > 0 ? std::min(count, cap) : count);
  if (temperature == 1) return capped;
  // Relative to the largest, which keeps a small temperature's powers finite.
  const double largest = static_cast<double>(*std::max_element(capped.begin(), capped.end()));
  std::vector<double> shares(capped.size());
  std::transform(capped.begin(), capped.end(), shares.begin(), [&](int64_t count) {
    return std::pow(static_cast<double>(count) / largest, 1 / temperature);
  });
  return SplitByShares(std::accumulate(capped.begin(), capped.end(), int64_t{0}), shares);
}

std::vector<LineDraw> MixtureEpoch(absl::Span<const MixturePart> parts, bool shuffle, uint64_t seed,
                                   int64_t epoch) {
  std::vector<LineDraw> draws;
  size_t begin = 0;  // of the part's lines
  for (size_t p = 0; p < parts.size(); ++p) {
    const int64_t lines = parts[p].lines, first = epoch * parts[p].quota;
    std::vector<size_t> order(static_cast<size_t>(lines));
    for (int64_t k = first; k < first + parts[p].quota; ++k) {
      const int64_t pass = k / lines;
      if (k == first || k % lines == 0) {
        std::iota(order.begin(), order.end(), begin);
        if (shuffle) {
          Random random = LineRandom(~seed, pass, p);  // apart from what lines draw
          random.Shuffle(order);
        }
      }
      draws.push_back({order[static_cast<size_t>(k % lines)], pass});
    }
    begin += static_cast<size_t>(lines);
  }
  if (shuffle) {
    Random random(seed, static_cast<uint32_t>(1 + epoch));
    random.Shuffle(draws);
  }
  return draws;
}

}  // namespace permafrost
