// The language-model head with its cross-entropy. Logits exist for one chunk of rows at a time;
// with a frozen head the gradient of the hidden rows is made while the chunk is hot, so nothing
// else is kept.
#include <algorithm>
#include <vector>

#include "engine/check.h"
#include "engine/ops.h"
#include "engine/ops/internal.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"

namespace permafrost {
namespace {

using kernels::Write;

// Targets whose logits are held at once: large enough for the matrix product, small beside the
// activations ([128, 49152] f32 = 25 MB).
constexpr int64_t kChunk = 128;

struct Gradients {
  Tensor dh;     // [targets, D], rows in target order
  Tensor dhead;  // [V, D] if the head is trainable
};

}  // namespace

HeadLoss HeadCrossEntropy(Context& c, const Var& h, const Weight* head, const Var& trainable_head,
                          absl::Span<const int32_t> rows, absl::Span<const int32_t> labels,
                          absl::Span<const float> weights, const HeadOptions& options) {
  const int64_t targets = static_cast<int64_t>(rows.size());
  const int64_t vocabulary = trainable_head ? trainable_head.rows() : head->outputs();
  PERMAFROST_CHECK(labels.size() == rows.size() && weights.size() == rows.size())
      << "HeadCrossEntropy: " << rows.size() << " rows, " << labels.size() << " labels, "
      << weights.size() << " weights";
  const Var scaled = options.scale == 1 ? h : Scale(c, h, options.scale);
  const bool need_h = WillRecord(c, {&scaled}), need_head = WillRecord(c, {&trainable_head});

  HeadLoss result;
  result.per_target = Tensor({1, targets});
  Gradients grads;
  if (need_h) grads.dh = Tensor({targets, h.columns()});
  if (need_head) grads.dhead = Tensor::Zeros(trainable_head.shape());
  Tensor row_ids({1, targets}, MemoryTag::kActivation, DType::kI32);
  std::copy(rows.begin(), rows.end(), row_ids.i32());

  const int64_t chunk = std::min(kChunk, targets);
  Tensor x({chunk, h.columns()}, MemoryTag::kWorkspace);
  Tensor logits({chunk, vocabulary}, MemoryTag::kWorkspace);
  for (int64_t begin = 0; begin < targets; begin += chunk) {
    const int64_t n = std::min(chunk, targets - begin);
    const Tensor xs = x.RowRange(0, n), zs = logits.RowRange(0, n);
    kernels::cpu::GatherRows({.table = scaled.value().f32(),
                              .ids = rows.data() + begin,
                              .out = xs.f32(),
                              .count = n,
                              .width = h.columns()},
                             c.parallel());
    if (trainable_head) {
      MatMulInto(c, {xs}, {trainable_head.value(), true}, zs, 1, Write::kOverwrite);
    } else {
      const int64_t bytes =
          kernels::cpu::PackedForwardWorkspace(head->packed(), n, c.parallel().workers);
      Tensor workspace({1, bytes / 4 + 1}, MemoryTag::kWorkspace);
      kernels::cpu::PackedForward({.x = xs.f32(),
                                   .x_stride = xs.columns(),
                                   .weight = head->packed(),
                                   .bias = nullptr,
                                   .y = zs.f32(),
                                   .y_stride = vocabulary,
                                   .rows = n,
                                   .write = Write::kOverwrite,
                                   .workspace = workspace.raw()},
                                  c.parallel());
    }
    kernels::cpu::CrossEntropy({.logits = zs.f32(),
                                .stride = vocabulary,
                                .labels = labels.data() + begin,
                                .loss = result.per_target.f32() + begin,
                                .row_scale = weights.data() + begin,
                                .dlogits = need_h || need_head ? zs.f32() : nullptr,
                                .rows = n,
                                .vocabulary = vocabulary,
                                .z_loss = options.z_loss},
                               c.parallel());
    if (need_head) MatMulInto(c, {zs, true}, {xs}, grads.dhead, 1, Write::kAccumulate);
    if (!need_h) continue;
    const Tensor dh = grads.dh.RowRange(begin, n);
    if (trainable_head) {
      MatMulInto(c, {zs}, {trainable_head.value()}, dh, 1, Write::kOverwrite);
    } else {
      const int64_t bytes =
          kernels::cpu::PackedBackwardWorkspace(head->packed(), n, c.parallel().workers);
      Tensor workspace({1, bytes / 4 + 1}, MemoryTag::kWorkspace);
      kernels::cpu::PackedBackward({.dy = zs.f32(),
                                    .dy_stride = vocabulary,
                                    .weight = head->packed(),
                                    .dx = dh.f32(),
                                    .dx_stride = dh.columns(),
                                    .rows = n,
                                    .write = Write::kOverwrite,
                                    .workspace = workspace.raw()},
                                   c.parallel());
    }
  }

  Tensor loss({1, 1});
  double sum = 0;
  for (int64_t i = 0; i < targets; ++i) {
    sum += static_cast<double>(weights[static_cast<size_t>(i)]) * result.per_target.f32()[i];
  }
  loss.f32()[0] = static_cast<float>(sum);

  Saved saved;
  saved.Keep(grads.dh, need_h);
  saved.Keep(row_ids, need_h);
  saved.Keep(grads.dhead, need_head);
  result.loss =
      Record(c, "HeadCrossEntropy", {&scaled, &trainable_head}, std::move(loss), std::move(saved),
             [](Context& ctx, const Saved& s, const Tensor& dloss, GradSink& g) {
               const float factor = dloss.f32()[0];
               if (g.Needs(0)) {
                 const Tensor dh = s.Get(ctx, 0);
                 kernels::cpu::Axpby(
                     {.alpha = 0, .x = nullptr, .beta = factor, .y = dh.f32(), .count = dh.count()},
                     ctx.parallel());
                 kernels::cpu::ScatterAddRows({.dout = dh.f32(),
                                               .ids = s.tensors()[1].i32(),
                                               .dtable = g.Accumulator(0).f32(),
                                               .count = dh.rows(),
                                               .width = dh.columns()},
                                              ctx.parallel());
               }
               if (g.Needs(1)) {
                 const GradSink::Target dhead = g.Buffer(1);
                 const float beta = dhead.write == Write::kAccumulate ? 1 : 0;
                 kernels::cpu::Axpby({.alpha = factor,
                                      .x = s.Get(ctx, 2).f32(),
                                      .beta = beta,
                                      .y = dhead.grad.f32(),
                                      .count = dhead.grad.count()},
                                     ctx.parallel());
               }
             });
  return result;
}

}  // namespace permafrost
