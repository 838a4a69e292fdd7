// The choice of worked examples for a hard prompt.
#ifndef PERMAFROST_PEFT_SHOTS_H_
#define PERMAFROST_PEFT_SHOTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/random.h"

namespace permafrost {

// Indices of `count` examples (all, if there are fewer) in random order. labels[i] is the class of
// example i. The classes are as equally represented as count and their sizes allow; which of them
// get one more is random. Examples without a class (-1) are one class.
std::vector<size_t> ChooseShots(absl::Span<const int> labels, int64_t count, Random& random);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_SHOTS_H_
