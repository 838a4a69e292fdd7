// Mixtures of data sets for training one method on several tasks (multi-task model tuning; Raffel
// et al. 2020, section 3.5.2): how many lines of each data set an epoch holds, and in which order.
//
// An epoch holds a fixed number of lines of each part, its quota, so that rates hold exactly in
// every epoch and not only on average. A part's lines come in an order of its own: none comes again
// before all others of the part have come, across epochs too. Everything is a function of (seed,
// epoch), so a resumed run draws the same lines.
//
// Non-goals: reading data, rates that change during training.
#ifndef PERMAFROST_PEFT_MIXTURE_H_
#define PERMAFROST_PEFT_MIXTURE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace permafrost {

// Of one part: its lines, which stand behind those of the parts before it, and how many of them an
// epoch holds. Both at least 1.
struct MixturePart {
  int64_t lines = 0, quota = 0;
};

// Examples-proportional mixing: shares in proportion to min(lines, cap)^(1 / temperature), of as
// many lines as sum of min(lines, cap). At temperature 1 that is min(lines, cap) of each. cap 0: no
// cap (the paper's K, its artificial data set size limit). Each quota is at least 1.
std::vector<int64_t> ProportionalQuotas(absl::Span<const int64_t> lines, int64_t cap,
                                        double temperature);

// `total` split in proportion to `shares` (not negative, of a finite sum above 0) by largest
// remainders, the first part on ties; then at least 1 each.
std::vector<int64_t> SplitByShares(int64_t total, absl::Span<const double> shares);

// A line of all parts' lines, and for the how-manyth time its part comes around (from 0).
struct LineDraw {
  size_t line = 0;
  int64_t pass = 0;
  bool operator==(const LineDraw& other) const = default;
};

// The lines of 0-based epoch `epoch`. Shuffled: each part goes through its lines in a new random
// order each time, and the parts' quotas are mixed at random. Otherwise the parts stand one behind
// the other, each going on where the epoch before ended.
std::vector<LineDraw> MixtureEpoch(absl::Span<const MixturePart> parts, bool shuffle, uint64_t seed,
                                   int64_t epoch);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_MIXTURE_H_
