#include "models/model.h"

namespace permafrost {

int64_t Model::weight_bytes() const {
  int64_t bytes = 0;
  for (const BaseTensor& t : tensors_) {
    bytes += t.weight != nullptr ? t.weight->bytes() : static_cast<int64_t>(t.vector.bytes());
  }
  return bytes;
}

int64_t Model::parameter_count() const {
  int64_t count = 0;
  for (const BaseTensor& t : tensors_) {
    int64_t n = 1;
    for (int64_t d : t.shape) n *= d;
    count += n;
  }
  return count;
}

const Var* Model::HeadReplacement(const Hooks& hooks) const {
  return head_ == embedding_ ? hooks.TiedHeadReplacement(head_) : hooks.Replacement(head_);
}

HeadLoss Model::Loss(Context& c, const Batch& batch, Hooks& hooks, absl::Span<const float> weights,
                     float z_loss) const {
  const Var encoded = Encode(c, batch, hooks);
  const Var hidden = Decode(c, batch, encoded, hooks, nullptr);
  const Var* trained = HeadReplacement(hooks);
  return HeadCrossEntropy(c, hidden, &head(), trained != nullptr ? *trained : Var(),
                          batch.target_outputs, batch.target_labels, weights,
                          {.scale = head_scale_, .z_loss = z_loss});
}

Var Model::Logits(Context& c, const Var& hidden, Hooks& hooks) const {
  const Var scaled = head_scale_ == 1 ? hidden : Scale(c, hidden, head_scale_);
  const Var* trained = HeadReplacement(hooks);
  return trained != nullptr ? MatMulTransposed(c, scaled, *trained) : Linear(c, scaled, head());
}

Var Model::Embed(Context& c, Stack stack, const Batch& batch, Hooks& hooks) const {
  const StackRows& rows = stack == Stack::kEncoder ? batch.encoder : batch.decoder;
  const Var* trained = hooks.Replacement(embedding_);
  Var x = trained != nullptr ? GatherRows(c, *trained, rows.lookup)
                             : Var(embedding().Rows(c, rows.lookup));
  return hooks.OnEmbedding(c, stack, batch, std::move(x));
}

BatchLayout Model::layout(const Hooks& hooks) const {
  return {.encoder_decoder = info_.encoder_decoder,
          .decoder_start = info_.decoder_start,
          .pad = info_.pad,
          .virtual_tokens = [&hooks](int task) { return hooks.VirtualTokens(task); }};
}

}  // namespace permafrost
