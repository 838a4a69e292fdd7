#include "peft/objectives.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/examples.h"

namespace permafrost {
namespace {

// Sebastiano Vigna's splitmix64: a bijection whose outputs of neighbouring inputs have nothing in
// common.
uint64_t Mixed(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

int64_t Rounded(float x) { return static_cast<int64_t>(std::nearbyint(x)); }

// Tokens of a corrupted text's input, its end token included.
int64_t InputTokens(int64_t length, const SpanCorruption& config) {
  const NoiseCounts noise = CountNoise(length, config);
  return length - noise.tokens + noise.spans + 1;
}

}  // namespace

NoiseCounts CountNoise(int64_t length, const SpanCorruption& config) {
  length = std::max<int64_t>(length, 2);
  const float tokens = static_cast<float>(length) * static_cast<float>(config.density);
  NoiseCounts noise;
  noise.tokens = std::clamp<int64_t>(Rounded(tokens), 1, length - 1);
  const float spans = static_cast<float>(noise.tokens) / static_cast<float>(config.mean_span);
  noise.spans = std::max<int64_t>(Rounded(spans), 1);
  noise.spans = std::min({noise.spans, noise.tokens, length - noise.tokens});
  return noise;
}

std::vector<int64_t> RandomSegments(int64_t items, int64_t segments, Random& random) {
  PERMAFROST_CHECK(1 <= segments && segments <= items)
      << "RandomSegments: " << segments << " segments of " << items << " items";
  // Of the items after the first, `segments` - 1 begin a segment.
  std::vector<char> begins(static_cast<size_t>(items - 1), 0);
  std::fill_n(begins.begin(), segments - 1, 1);
  random.Shuffle(begins);
  std::vector<int64_t> lengths = {1};
  for (const char begin : begins) {
    if (begin != 0) {
      lengths.push_back(1);
    } else {
      ++lengths.back();
    }
  }
  return lengths;
}

std::vector<bool> SpanNoiseMask(int64_t length, const SpanCorruption& config, Random& random) {
  const NoiseCounts noise = CountNoise(length, config);
  const std::vector<int64_t> spans = RandomSegments(noise.tokens, noise.spans, random);
  const std::vector<int64_t> kept =
      RandomSegments(std::max<int64_t>(length, 2) - noise.tokens, noise.spans, random);
  std::vector<bool> mask;
  for (size_t i = 0; i < spans.size(); ++i) {
    mask.insert(mask.end(), static_cast<size_t>(kept[i]), false);
    mask.insert(mask.end(), static_cast<size_t>(spans[i]), true);
  }
  mask.resize(static_cast<size_t>(length));  // one token counted as two
  return mask;
}

CorruptedText CorruptSpans(absl::Span<const int32_t> ids, const std::vector<bool>& noise,
                           absl::Span<const int32_t> sentinels) {
  PERMAFROST_CHECK(ids.size() == noise.size())
      << "CorruptSpans: " << ids.size() << " ids, a mask of " << noise.size();
  CorruptedText text;
  size_t spans = 0;
  const auto sentinel = [&](size_t i) {
    PERMAFROST_CHECK(i < sentinels.size())
        << "CorruptSpans: " << sentinels.size() << " sentinels, span " << i;
    return sentinels[i];
  };
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!noise[i]) {
      text.input.push_back(ids[i]);
      continue;
    }
    if (i == 0 || !noise[i - 1]) {
      text.input.push_back(sentinel(spans));
      text.target.push_back(sentinel(spans));
      ++spans;
    }
    text.target.push_back(ids[i]);
  }
  text.target.push_back(sentinel(spans));
  return text;
}

int64_t LongestSpanText(int64_t input, int64_t sentinels, const SpanCorruption& config) {
  // Both counts grow with the length, the input's at most by as much as the length does.
  const auto fits = [&](int64_t length) {
    return InputTokens(length, config) <= input && CountNoise(length, config).spans < sentinels;
  };
  int64_t low = 0, high = 1;
  while (high < (int64_t{1} << 40) && fits(high)) {
    low = high;
    high *= 2;
  }
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low;
}

int64_t RandomPrefixLength(int64_t length, Random& random) {
  return length < 2 ? 0 : 1 + random.Below(length - 1);
}

std::vector<TextWindow> CutTextIntoWindows(absl::Span<const int32_t> ids, int64_t longest,
                                           int64_t overlap) {
  PERMAFROST_CHECK(longest == 0 || (0 <= overlap && overlap < longest))
      << "CutTextIntoWindows: windows of " << longest << " that overlap by " << overlap;
  std::vector<TextWindow> windows;
  const size_t limit = longest == 0 ? ids.size() : static_cast<size_t>(longest);
  for (size_t next = 0; next < ids.size();) {  // the first token not yet in a window
    const size_t context = next == 0 ? 0 : static_cast<size_t>(overlap);
    const size_t end = std::min(ids.size(), next - context + limit);
    windows.push_back(
        {{ids.begin() + (next - context), ids.begin() + end}, static_cast<int64_t>(context)});
    next = end;
  }
  return windows;
}

absl::Status CheckObjective(const ObjectiveConfig& config, const std::string& model_type) {
  if (config.objective == Objective::kLanguageModel && config.encoder_decoder) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a decoder base, found ", model_type,
                     ", whose encoder needs an input; use prefix language modelling"));
  }
  if (config.objective == Objective::kSpanCorruption) {
    if (!config.encoder_decoder) {
      return absl::InvalidArgumentError(
          absl::StrCat("expected an encoder-decoder base (t5), found ", model_type,
                       "; use causal or prefix language modelling"));
    }
    if (config.sentinels.size() < 2) {
      return absl::InvalidArgumentError(
          "expected <extra_id_0>, <extra_id_1>, ... in the base's tokenizer, found none");
    }
    if (!(config.spans.density > 0 && config.spans.density < 1)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "expected a noise density above 0 and below 1, found ", config.spans.density));
    }
    if (!(config.spans.mean_span >= 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("expected a mean span of at least 1, found ", config.spans.mean_span));
    }
  }
  if (config.encoder_decoder && !config.end_token.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("expected an end token of the ", model_type,
                                                   " base for inputs and targets, found none"));
  }
  return absl::OkStatus();
}

TokenLine MakeObjectiveLine(const ObjectiveConfig& config, const TextWindow& window, int task,
                            Random& random) {
  TokenLine line{{}, {}, task};
  const std::vector<int32_t>& ids = window.ids;
  const int64_t length = static_cast<int64_t>(ids.size());
  if (config.objective == Objective::kSpanCorruption) {
    CorruptedText text =
        CorruptSpans(ids, SpanNoiseMask(length, config.spans, random), config.sentinels);
    line.input_ids = std::move(text.input);
    line.labels = std::move(text.target);
  } else {
    const auto split = ids.begin() + (config.objective == Objective::kPrefixLanguageModel
                                          ? RandomPrefixLength(length, random)
                                          : window.context);
    if (!config.encoder_decoder) {
      line.input_ids = ids;
      line.labels.assign(static_cast<size_t>(split - ids.begin()), kIgnoredLabel);
      line.labels.insert(line.labels.end(), split, ids.end());
      return line;
    }
    line.input_ids.assign(ids.begin(), split);
    line.labels.assign(split, ids.end());
  }
  line.input_ids.push_back(*config.end_token);
  line.labels.push_back(*config.end_token);
  return line;
}

Random LineRandom(uint64_t seed, int64_t pass, size_t line) {
  return Random(Mixed(Mixed(seed) ^ line), static_cast<uint32_t>(pass));
}

}  // namespace permafrost
