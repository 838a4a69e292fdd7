#include "models/uncached_decoder.h"

#include "engine/check.h"

namespace permafrost {

UncachedDecoder::UncachedDecoder(Context& c, const Model& model, Hooks& hooks, int task, int beams,
                                 int prompt)
    : c_(c), model_(model), hooks_(hooks), generated_(static_cast<size_t>(beams)) {
  prompt_.task = task;
  prompt_.prompt = prompt;
}

Tensor UncachedDecoder::Prefill(absl::Span<const int32_t> prompt_ids) {
  prompt_.input_ids.assign(prompt_ids.begin(), prompt_ids.end());
  return Run(1);
}

Tensor UncachedDecoder::Step(absl::Span<const int32_t> tokens, absl::Span<const int32_t> parents) {
  PERMAFROST_CHECK(tokens.size() == generated_.size() &&
                   (parents.empty() || parents.size() == tokens.size()))
      << "UncachedDecoder::Step: " << tokens.size() << " tokens and " << parents.size()
      << " parents for " << generated_.size() << " beams";
  if (!parents.empty()) {
    std::vector<std::vector<int32_t>> moved;
    moved.reserve(parents.size());
    for (const int32_t parent : parents) moved.push_back(generated_[static_cast<size_t>(parent)]);
    generated_ = std::move(moved);
  }
  for (size_t b = 0; b < tokens.size(); ++b) generated_[b].push_back(tokens[b]);
  return Run(generated_.size());
}

Tensor UncachedDecoder::Run(size_t beams) {
  std::vector<TokenLine> lines(beams, prompt_);
  for (size_t b = 0; b < beams; ++b) {
    const std::vector<int32_t>& ids = generated_[b];
    if (model_.info().encoder_decoder) {
      // Shifted right: the start token and all that was generated, whatever the last label is.
      lines[b].labels = ids;
      lines[b].labels.push_back(0);
    } else {
      lines[b].input_ids.insert(lines[b].input_ids.end(), ids.begin(), ids.end());
    }
  }
  Batch batch = MakeBatch(model_.layout(hooks_), lines, Outputs::kAll);
  // A beam's text is as long as any other's, and lines keep their order.
  const int64_t text = batch.decoder.rows.segments.back().length;
  std::vector<int32_t> last(beams);
  for (size_t b = 0; b < beams; ++b) {
    last[b] = static_cast<int32_t>(batch.decoder.rows.count() -
                                   static_cast<int64_t>(beams - b - 1) * text - 1);
  }
  batch.outputs = last;
  batch.output_spans = GatherTaskSpans(batch.decoder.spans, batch.outputs);
  const Var encoded = model_.Encode(c_, batch, hooks_);
  const Var hidden = model_.Decode(c_, batch, encoded, hooks_, nullptr);
  return model_.Logits(c_, hidden, batch.output_spans, hooks_).value();
}

}  // namespace permafrost
