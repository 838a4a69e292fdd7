#include "models/beam_search.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "models/sampling.h"

namespace permafrost {
namespace {

// transformers' mask, added to scores in f32. A score this low also absorbs what is added to it:
// such entries tie, and the lower index wins.
constexpr float kMasked = -1e9f;

struct Beam {
  std::vector<int32_t> tokens;  // new ones only
  float score = kMasked;
  int32_t parent = 0;
  bool stops = false;
};

// The `count` best by score, earlier ones first on ties.
std::vector<Beam> Best(const std::vector<Beam>& beams, int count) {
  std::vector<float> scores;
  scores.reserve(beams.size());
  for (const Beam& b : beams) scores.push_back(b.score);
  std::vector<Beam> best;
  for (const int32_t i : TopIndices(scores, count)) best.push_back(beams[static_cast<size_t>(i)]);
  return best;
}

class Search {
 public:
  explicit Search(const BeamSearchOptions& options) : o_(options) {
    running_.resize(static_cast<size_t>(o_.beams));
    running_[0].score = 0;
    finished_.resize(static_cast<size_t>(o_.beams));
  }

  // Takes the logits of the running beams' next tokens; false if the search has ended.
  absl::StatusOr<bool> Advance(const Tensor& logits);

  std::vector<int32_t> tokens() const;
  std::vector<int32_t> parents() const;
  const std::vector<int32_t>& result() const { return finished_[0].tokens; }

 private:
  absl::StatusOr<std::vector<Beam>> Candidates(const Tensor& logits) const;
  bool CanImprove() const;

  const BeamSearchOptions& o_;
  std::vector<Beam> running_;   // best first
  std::vector<Beam> finished_;  // best first; unused ones do not stop
  int64_t length_ = 0;          // new tokens of the running beams
};

// The best continuations of the running beams by log-probability, best first: enough that `beams`
// remain when all end tokens are among them.
absl::StatusOr<std::vector<Beam>> Search::Candidates(const Tensor& logits) const {
  const int64_t vocabulary = logits.columns();
  std::vector<float> scores;
  scores.reserve(static_cast<size_t>(vocabulary) * running_.size());
  for (size_t b = 0; b < running_.size(); ++b) {
    // The first logits hold for all beams, which are equal then.
    const int64_t row = logits.rows() == 1 ? 0 : static_cast<int64_t>(b);
    std::vector<float> own(logits.row(row), logits.row(row) + vocabulary);
    if (ArgMax(own) < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "beam search: new token ", length_ + 1,
          ": the logits are not numbers, the base or the adapter holds values that overflow"));
    }
    LogSoftmax(absl::MakeSpan(own));
    std::vector<int32_t> ids(o_.prompt_ids.begin(), o_.prompt_ids.end());
    ids.insert(ids.end(), running_[b].tokens.begin(), running_[b].tokens.end());
    PenalizeRepetition(absl::MakeSpan(own), ids, o_.repetition_penalty);
    for (const float s : own) scores.push_back(s + running_[b].score);
  }
  const int64_t keep =
      std::max<int64_t>(2, 1 + static_cast<int64_t>(o_.end_tokens.size())) * o_.beams;
  if (keep > static_cast<int64_t>(scores.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("beam search: expected a vocabulary larger than the ", o_.end_tokens.size(),
                     " end tokens, found ", vocabulary, " tokens"));
  }
  std::vector<Beam> candidates;
  for (const int32_t flat : TopIndices(scores, keep)) {
    Beam beam;
    beam.parent = static_cast<int32_t>(flat / vocabulary);
    beam.score = scores[static_cast<size_t>(flat)];
    beam.tokens = running_[static_cast<size_t>(beam.parent)].tokens;
    const int32_t token = static_cast<int32_t>(flat % vocabulary);
    beam.tokens.push_back(token);
    beam.stops =
        length_ + 1 == o_.max_new_tokens ||
        std::find(o_.end_tokens.begin(), o_.end_tokens.end(), token) != o_.end_tokens.end();
    candidates.push_back(std::move(beam));
  }
  return candidates;
}

absl::StatusOr<bool> Search::Advance(const Tensor& logits) {
  auto made = Candidates(logits);
  if (!made.ok()) return made.status();
  const std::vector<Beam>& candidates = *made;
  ++length_;

  std::vector<Beam> going_on = candidates;
  for (Beam& b : going_on) b.score += b.stops ? kMasked : 0;
  running_ = Best(going_on, o_.beams);

  const float divisor = static_cast<float>(std::pow(length_, o_.length_penalty));
  std::vector<Beam> merged = finished_;
  bool all_stop = true;
  for (size_t i = 0; i < candidates.size(); ++i) {
    all_stop = all_stop && candidates[i].stops;
    // One that is not among the best `beams` is dropped even if it stops.
    if (!candidates[i].stops || i >= static_cast<size_t>(o_.beams)) continue;
    merged.push_back(candidates[i]);
    merged.back().score /= divisor;
  }
  finished_ = Best(merged, o_.beams);
  return !all_stop && CanImprove();
}

// Whether the best running beam, were it to end now, would be better than the worst finished one.
bool Search::CanImprove() const {
  const bool full =
      std::all_of(finished_.begin(), finished_.end(), [](const Beam& b) { return b.stops; });
  const float worst = full ? finished_.back().score : kMasked;
  return running_[0].score / static_cast<float>(std::pow(length_, o_.length_penalty)) > worst;
}

std::vector<int32_t> Search::tokens() const {
  std::vector<int32_t> last;
  for (const Beam& b : running_) last.push_back(b.tokens.back());
  return last;
}

std::vector<int32_t> Search::parents() const {
  std::vector<int32_t> parents;
  for (const Beam& b : running_) parents.push_back(b.parent);
  return parents;
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> BeamSearch(const Tensor& first,
                                                const BeamSearchOptions& options,
                                                const BeamStep& step) {
  Search search(options);
  absl::StatusOr<bool> more = search.Advance(first);
  while (more.ok() && *more) more = search.Advance(step(search.tokens(), search.parents()));
  if (!more.ok()) return more.status();
  return search.result();
}

}  // namespace permafrost
