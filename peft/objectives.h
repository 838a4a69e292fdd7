// Training objectives that need no labels, as pure functions on token ids: causal language
// modelling, prefix language modelling ("LM adaptation", Lester et al. 2021, section 2.2) and span
// corruption (Raffel et al. 2020, section 3.1.4).
//
// A text becomes windows, once (CutTextIntoWindows, LongestSpanText); a window becomes a line of
// training, anew each time it is drawn (MakeObjectiveLine). What is random comes from the caller's
// Random: LineRandom makes it a function of (seed, pass, line), so that a resumed run draws the
// same lines.
//
// Non-goals: tokenization, packing several texts into a window, the denoising mixtures of UL2.
#ifndef PERMAFROST_PEFT_OBJECTIVES_H_
#define PERMAFROST_PEFT_OBJECTIVES_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/random.h"
#include "models/batch.h"

namespace permafrost {

enum class Objective { kSupervised, kLanguageModel, kPrefixLanguageModel, kSpanCorruption };

struct SpanCorruption {
  double density = 0.15;  // share of the tokens that are noise, in (0, 1)
  double mean_span = 3;   // tokens of a noise span, at least 1
};

// How many tokens of a text are noise, in how many spans. As random_spans_noise_mask of the paper's
// published code: round(length * density), at least 1 and at most length - 1; round(that /
// mean_span) spans, at least 1. Products are f32 and halves go to the even neighbour, as in
// TensorFlow. No more spans than tokens that stay, since one of those stands before each span (the
// published code fails there). A text of one token counts as two and has no noise in the end.
struct NoiseCounts {
  int64_t tokens = 0, spans = 0;
  bool operator==(const NoiseCounts& other) const = default;
};
NoiseCounts CountNoise(int64_t length, const SpanCorruption& config);

// `items` cut into `segments` parts, none empty, every way equally likely. 1 <= segments <= items.
std::vector<int64_t> RandomSegments(int64_t items, int64_t segments, Random& random);

// Which of `length` tokens are noise: kept and noise segments in turn, kept first, their lengths
// two draws of RandomSegments over CountNoise. All masks of these counts are equally likely.
std::vector<bool> SpanNoiseMask(int64_t length, const SpanCorruption& config, Random& random);

// The input holds one sentinel for each noise span; the target holds each sentinel with its span's
// tokens and a final sentinel. The final sentinel is the paper's ("to mark the end of the target
// sequence"); T5's published code writes none, because its texts end in a noise span.
// sentinels[i] stands for span i; one more than there are spans must be given.
struct CorruptedText {
  std::vector<int32_t> input, target;
};
CorruptedText CorruptSpans(absl::Span<const int32_t> ids, const std::vector<bool>& noise,
                           absl::Span<const int32_t> sentinels);

// The longest text whose corrupted input, with its end token, has at most `input` tokens, and whose
// spans leave one of `sentinels` for the end (random_spans_helper: 568 tokens for an input of 512).
// 0: no text fits.
int64_t LongestSpanText(int64_t input, int64_t sentinels, const SpanCorruption& config);

// Length of the first of two parts of a text: uniform on [1, length - 1] (random_prefix_noise_mask
// of T5's published code); 0 for a text of one token.
int64_t RandomPrefixLength(int64_t length, Random& random);

// A piece of a text. The first `context` ids were already targets of the window before.
struct TextWindow {
  std::vector<int32_t> ids;
  int64_t context = 0;
};

// Consecutive windows of at most `longest` tokens (0: no limit), each starting with the last
// `overlap` tokens of the one before. Every token is in some window, and past the context in
// exactly one. overlap < longest, if there is a limit.
std::vector<TextWindow> CutTextIntoWindows(absl::Span<const int32_t> ids, int64_t longest,
                                           int64_t overlap);

struct ObjectiveConfig {
  Objective objective = Objective::kLanguageModel;
  bool encoder_decoder = false;
  SpanCorruption spans;
  std::vector<int32_t> sentinels;    // of span corruption: <extra_id_0>, <extra_id_1>, ...
  std::optional<int32_t> end_token;  // T5: what input and target end with
};

// What the model is, and that there are sentinels and an end token where the objective needs them.
// InvalidArgument: language modelling with an encoder-decoder, span corruption with a decoder, no
// sentinels, a density outside (0, 1), a mean span below 1. `model_type` is for the message.
absl::Status CheckObjective(const ObjectiveConfig& config, const std::string& model_type);

// The line of a window. Decoders: the window's ids with labels on all of them past the context
// (language modelling) or on the second part (prefix). T5: input and target, the end token behind
// both.
TokenLine MakeObjectiveLine(const ObjectiveConfig& config, const TextWindow& window, int task,
                            Random& random);

// A stream of its own for each (seed, pass, line).
Random LineRandom(uint64_t seed, int64_t pass, size_t line);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_OBJECTIVES_H_
