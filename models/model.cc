#include "models/model.h"

#include <algorithm>

#include "models/blocks.h"

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

const Var* Model::HeadReplacement(const Hooks& hooks, int task) const {
  return head_ == embedding_ ? hooks.TiedHeadReplacement(head_, task)
                             : hooks.Replacement(head_, task);
}

bool Model::HasOwnHead(const Hooks& hooks, absl::Span<const TaskSpan> spans) const {
  return std::any_of(spans.begin(), spans.end(), [&](const TaskSpan& span) {
    return HeadReplacement(hooks, span.task) != nullptr;
  });
}

HeadLoss Model::Loss(Context& c, const Batch& batch, Hooks& hooks, absl::Span<const float> weights,
                     absl::Span<const float> z_losses) const {
  const Var encoded = Encode(c, batch, hooks);
  const Var hidden = Decode(c, batch, encoded, hooks, nullptr);
  const std::vector<TaskSpan>& spans = batch.output_spans;
  const float z_loss = z_losses.empty() ? 0 : z_losses[0];
  const bool one_z_loss =
      std::all_of(z_losses.begin(), z_losses.end(), [&](float z) { return z == z_loss; });
  if (spans.size() <= 1 || (one_z_loss && !HasOwnHead(hooks, spans))) {
    const Var* trained = spans.empty() ? nullptr : HeadReplacement(hooks, spans[0].task);
    return HeadCrossEntropy(c, hidden, &head(), trained != nullptr ? *trained : Var(),
                            batch.target_outputs, batch.target_labels, weights,
                            {.scale = head_scale_, .z_loss = z_loss});
  }
  // Tasks with heads or z-losses of their own.
  HeadLoss total;
  total.per_target = Tensor({1, static_cast<int64_t>(weights.size())});
  for (const TaskSpan& span : spans) {
    std::vector<int32_t> rows, labels;
    std::vector<float> own_weights;
    std::vector<size_t> targets;
    for (size_t i = 0; i < batch.target_outputs.size(); ++i) {
      if (batch.target_outputs[i] < span.begin || batch.target_outputs[i] >= span.end) continue;
      targets.push_back(i);
      rows.push_back(batch.target_outputs[i]);
      labels.push_back(batch.target_labels[i]);
      own_weights.push_back(weights[i]);
    }
    if (targets.empty()) continue;
    const Var* trained = HeadReplacement(hooks, span.task);
    const float z = z_losses.empty() ? 0 : z_losses[targets[0]];
    const HeadLoss part =
        HeadCrossEntropy(c, hidden, &head(), trained != nullptr ? *trained : Var(), rows, labels,
                         own_weights, {.scale = head_scale_, .z_loss = z});
    total.loss = total.loss ? Add(c, std::move(total.loss), part.loss) : part.loss;
    for (size_t i = 0; i < targets.size(); ++i) {
      total.per_target.f32()[targets[i]] = part.per_target.f32()[i];
    }
  }
  return total;
}

Var Model::Logits(Context& c, const Var& hidden, absl::Span<const TaskSpan> spans,
                  Hooks& hooks) const {
  const Var scaled = head_scale_ == 1 ? hidden : Scale(c, hidden, head_scale_);
  const auto logits = [&](const Var& part, int task) {
    const Var* trained = HeadReplacement(hooks, task);
    return trained != nullptr ? MatMulTransposed(c, part, *trained) : Linear(c, part, head());
  };
  if (!HasOwnHead(hooks, spans)) return logits(scaled, kNoTask);
  Var all{Tensor({hidden.rows(), head().outputs()})};
  for (const TaskSpan& span : spans) {
    all = PutRows(c, std::move(all), logits(TakeRows(c, scaled, {span}), span.task), {span});
  }
  return all;
}

Var Model::Embed(Context& c, Stack stack, const Batch& batch, Hooks& hooks) const {
  const StackRows& rows = stack == Stack::kEncoder ? batch.encoder : batch.decoder;
  Var x(embedding().Rows(c, rows.lookup));
  x = ReplaceLookup(c, hooks, embedding_, std::move(x), rows.lookup, rows.spans);
  return hooks.OnEmbedding(c, stack, batch, std::move(x));
}

BatchLayout Model::layout(const Hooks& hooks) const {
  return {.encoder_decoder = info_.encoder_decoder,
          .decoder_start = info_.decoder_start,
          .pad = info_.pad,
          .virtual_tokens = [&hooks](int task) { return hooks.VirtualTokens(task); },
          .first_position = [&hooks](int task) { return hooks.FirstPosition(task); },
          .bias_shift = [&hooks](int task, Stack stack) { return hooks.BiasShift(task, stack); }};
}

}  // namespace permafrost
