#include "models/generate.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "engine/random.h"
#include "models/beam_search.h"
#include "models/cached_decoder.h"
#include "models/sampling.h"
#include "models/uncached_decoder.h"

namespace permafrost {
namespace {

constexpr uint32_t kSamplingStream = 0x67656e;

// No tape and no dropout while it lives.
class Inference {
 public:
  explicit Inference(Context& c) : c_(c), mode_(c.tape.mode), training_(c.training) {
    c.tape.mode = TapeMode::kOff;
    c.training = false;
  }
  ~Inference() {
    c_.tape.mode = mode_;
    c_.training = training_;
  }
  Inference(const Inference&) = delete;
  Inference& operator=(const Inference&) = delete;

 private:
  Context& c_;
  TapeMode mode_;
  bool training_;
};

template <class T>
absl::Status OptionError(const char* option, const char* expected, T found) {
  return absl::InvalidArgumentError(
      absl::StrCat("generate: ", option, ": expected ", expected, ", found ", found));
}

absl::Status CheckOptions(const GenerateOptions& o) {
  constexpr int kMostBeams = 1024;
  if (o.max_new_tokens < 1 || o.max_new_tokens > (int64_t{1} << 30)) {
    return OptionError("max_new_tokens", "1 to 2^30", o.max_new_tokens);
  }
  if (!(o.temperature >= 0) || std::isinf(o.temperature)) {
    return OptionError("temperature", "0 or more", o.temperature);
  }
  if (o.top_k < 0) return OptionError("top_k", "0 or more", o.top_k);
  if (!(o.top_p > 0 && o.top_p <= 1)) return OptionError("top_p", "above 0, at most 1", o.top_p);
  if (!(o.repetition_penalty > 0) || std::isinf(o.repetition_penalty)) {
    return OptionError("repetition_penalty", "above 0", o.repetition_penalty);
  }
  if (o.beams < 1 || o.beams > kMostBeams) return OptionError("beams", "1 to 1024", o.beams);
  if (!std::isfinite(o.length_penalty)) {
    return OptionError("length_penalty", "a number", o.length_penalty);
  }
  if (o.beams > 1 && o.temperature > 0) {
    return OptionError("temperature", "0 with more than one beam", o.temperature);
  }
  return absl::OkStatus();
}

absl::Status CheckPrompt(const ModelInfo& info, int64_t virtual_tokens, int64_t anchored,
                         absl::Span<const int32_t> ids, int64_t max_new_tokens) {
  const int64_t length = static_cast<int64_t>(ids.size());
  if (virtual_tokens + length == 0) {
    return absl::InvalidArgumentError(
        "generate: the prompt: expected at least one token, found none");
  }
  for (int64_t i = 0; i < length; ++i) {
    const int32_t id = ids[static_cast<size_t>(i)];
    if ((id == kVirtual && anchored > 0) || (id >= 0 && id < info.vocabulary)) continue;
    return absl::InvalidArgumentError(absl::StrCat("generate: the prompt's token ", i,
                                                   ": expected an id under the vocabulary of ",
                                                   info.vocabulary, ", found ", id));
  }
  const int64_t found = std::count(ids.begin(), ids.end(), kVirtual);
  if (found != anchored) {
    return absl::InvalidArgumentError(
        absl::StrCat("generate: the prompt: expected ", anchored,
                     " virtual tokens in it, as the adapter has, found ", found));
  }
  const int64_t total = virtual_tokens + length + max_new_tokens;
  if (!info.encoder_decoder && info.max_positions > 0 && total > info.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "generate: ", virtual_tokens, " virtual, ", length, " prompt and ", max_new_tokens,
        " new tokens: expected at most ", info.max_positions, " (the base's ", info.position_limit,
        "), found ", total, "; shorten the prompt or ask for fewer new tokens"));
  }
  return absl::OkStatus();
}

// The token that follows, given the logits and the decoder's ids so far.
absl::StatusOr<int32_t> NextToken(const Tensor& logits, absl::Span<const int32_t> ids,
                                  const GenerateOptions& o, Random& random) {
  std::vector<float> scores(logits.row(0), logits.row(0) + logits.columns());
  PenalizeRepetition(absl::MakeSpan(scores), ids, o.repetition_penalty);
  const int32_t best = ArgMax(scores);
  if (best < 0 || !std::isfinite(scores[static_cast<size_t>(best)])) {
    return absl::InvalidArgumentError(absl::StrCat(
        "generate: position ", ids.size(),
        ": the logits are not numbers, the base or the adapter holds values that overflow"));
  }
  if (o.temperature == 0) return best;
  return PickToken(SamplingProbabilities(scores, o.temperature, o.top_k, o.top_p),
                   random.Uniform());
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> Generate(Context& c, const Model& model, Hooks& hooks,
                                              int task, absl::Span<const int32_t> prompt_ids,
                                              const GenerateOptions& options,
                                              const std::function<bool(int32_t)>& on_token) {
  const ModelInfo& info = model.info();
  PERMAFROST_RETURN_IF_ERROR(CheckOptions(options));
  PERMAFROST_RETURN_IF_ERROR(
      CheckPrompt(info, hooks.VirtualTokens(task) + hooks.FirstPosition(task),
                  hooks.AnchoredTokens(task), prompt_ids, options.max_new_tokens));
  const Inference inference(c);
  const bool anew = hooks.ReadsFuture(task);
  CachedDecoder cached(c, model, hooks, task, options.beams, options.prompt);
  UncachedDecoder uncached(c, model, hooks, task, options.beams, options.prompt);
  const auto step = [&](absl::Span<const int32_t> tokens, absl::Span<const int32_t> parents) {
    return anew ? uncached.Step(tokens, parents) : cached.Step(tokens, parents);
  };
  Tensor logits = anew ? uncached.Prefill(prompt_ids) : cached.Prefill(prompt_ids);

  // What the decoder has read: the prompt, or T5's start token.
  std::vector<int32_t> ids = {info.decoder_start};
  if (!info.encoder_decoder) {
    ids.assign(prompt_ids.begin(), prompt_ids.end());
    ids.erase(std::remove(ids.begin(), ids.end(), kVirtual), ids.end());
  }
  if (options.beams > 1) {
    return BeamSearch(logits,
                      {.beams = options.beams,
                       .max_new_tokens = options.max_new_tokens,
                       .length_penalty = options.length_penalty,
                       .repetition_penalty = options.repetition_penalty,
                       .end_tokens = info.end_tokens,
                       .prompt_ids = ids},
                      step);
  }

  Random random(options.seed, kSamplingStream);
  std::vector<int32_t> generated;
  while (true) {
    PERMAFROST_ASSIGN_OR_RETURN(const int32_t token, NextToken(logits, ids, options, random));
    ids.push_back(token);
    generated.push_back(token);
    if (on_token && !on_token(token)) break;
    if (static_cast<int64_t>(generated.size()) == options.max_new_tokens) break;
    if (std::count(info.end_tokens.begin(), info.end_tokens.end(), token) > 0) break;
    logits = step({token}, {});
  }
  return generated;
}

}  // namespace permafrost
