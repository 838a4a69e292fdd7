#include "models/cached_decoder.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "engine/check.h"

namespace permafrost {
namespace {

constexpr int64_t kFirstStride = 32;

void CopyRows(const Tensor& from, int64_t from_row, Tensor& to, int64_t to_row, int64_t count) {
  if (count == 0) return;
  std::memcpy(to.row(to_row), from.row(from_row),
              static_cast<size_t>(count * from.columns()) * sizeof(float));
}

}  // namespace

CachedDecoder::CachedDecoder(Context& c, const Model& model, Hooks& hooks, int task, int beams,
                             int prompt)
    : c_(c), model_(model), hooks_(hooks), task_(task), which_prompt_(prompt), beams_(beams) {
  PERMAFROST_CHECK(beams >= 1) << "CachedDecoder: " << beams << " beams";
}

Tensor CachedDecoder::Prefill(absl::Span<const int32_t> prompt_ids) {
  PERMAFROST_CHECK(prompt_rows_ == 0) << "CachedDecoder::Prefill: called twice";
  TokenLine line{.input_ids = {prompt_ids.begin(), prompt_ids.end()},
                 .labels = {},
                 .task = task_,
                 .prompt = which_prompt_};
  // A label makes room for one decoder row, which holds the start token whatever the label is.
  if (model_.info().encoder_decoder) line.labels = {0};
  prompt_ = MakeBatch(model_.layout(hooks_), {line}, Outputs::kLabelled);
  prompt_rows_ = prompt_.decoder.rows.count();
  PERMAFROST_CHECK(prompt_rows_ > 0) << "CachedDecoder::Prefill: an empty prompt";
  prompt_.outputs = {static_cast<int32_t>(prompt_rows_ - 1)};
  prompt_.output_spans = GatherTaskSpans(prompt_.decoder.spans, prompt_.outputs);

  Reserve(kFirstStride);
  cache_.slots.resize(static_cast<size_t>(prompt_rows_));
  std::iota(cache_.slots.begin(), cache_.slots.end(), 0);
  encoded_ = model_.Encode(c_, prompt_, hooks_);
  const Var hidden = model_.Decode(c_, prompt_, encoded_, hooks_, &cache_);
  return model_.Logits(c_, hidden, hooks_).value();
}

Tensor CachedDecoder::Step(absl::Span<const int32_t> tokens, absl::Span<const int32_t> parents) {
  PERMAFROST_CHECK(prompt_rows_ > 0 && static_cast<int64_t>(tokens.size()) == beams_ &&
                   (parents.empty() || parents.size() == tokens.size()))
      << "CachedDecoder::Step: " << tokens.size() << " tokens and " << parents.size()
      << " parents for " << beams_ << " beams";
  if (!parents.empty()) Reorder(parents);
  if (steps_ == stride_) Reserve(2 * stride_);
  const Batch batch = StepBatch(tokens);
  cache_.slots.resize(tokens.size());
  for (int64_t b = 0; b < beams_; ++b) {
    cache_.slots[static_cast<size_t>(b)] = static_cast<int32_t>(RegionBegin(b) + steps_);
  }
  ++steps_;
  const Var hidden = model_.Decode(c_, batch, encoded_, hooks_, &cache_);
  return model_.Logits(c_, hidden, hooks_).value();
}

// Room for `stride` rows a region; the rows that are there move along.
void CachedDecoder::Reserve(int64_t stride) {
  const ModelInfo& info = model_.info();
  const Shape shape{prompt_rows_ + beams_ * stride, info.key_heads * info.head_size};
  const auto grow = [&](std::vector<Tensor>& layers) {
    layers.resize(static_cast<size_t>(info.decoder_layers));
    for (Tensor& layer : layers) {
      Tensor larger(shape);
      if (layer) {
        CopyRows(layer, 0, larger, 0, prompt_rows_);
        for (int64_t b = 0; b < beams_; ++b) {
          CopyRows(layer, RegionBegin(b), larger, prompt_rows_ + b * stride, steps_);
        }
      }
      layer = std::move(larger);
    }
  };
  grow(cache_.keys);
  grow(cache_.values);
  stride_ = stride;
}

void CachedDecoder::Reorder(absl::Span<const int32_t> parents) {
  std::vector<int64_t> moved;
  for (int64_t b = 0; b < beams_; ++b) {
    if (parents[static_cast<size_t>(b)] != b) moved.push_back(b);
  }
  if (moved.empty() || steps_ == 0) return;
  const auto reorder = [&](std::vector<Tensor>& layers) {
    Tensor parked({static_cast<int64_t>(moved.size()) * steps_, layers[0].columns()});
    for (Tensor& layer : layers) {
      int64_t row = 0;
      for (const int64_t b : moved) {
        CopyRows(layer, RegionBegin(parents[static_cast<size_t>(b)]), parked, row, steps_);
        row += steps_;
      }
      row = 0;
      for (const int64_t b : moved) {
        CopyRows(parked, row, layer, RegionBegin(b), steps_);
        row += steps_;
      }
    }
  };
  reorder(cache_.keys);
  reorder(cache_.values);
}

// One row a beam. Self-attention refers to cache rows, cross-attention to the prompt's encoder
// rows.
Batch CachedDecoder::StepBatch(absl::Span<const int32_t> tokens) const {
  Batch batch;
  Rows& rows = batch.decoder.rows;
  const int64_t position = prompt_rows_ + steps_;
  for (const int32_t token : tokens) rows.Add({token}, kNoParent, task_, 0);
  for (Segment& s : rows.segments) s.position = position;
  std::fill(rows.positions.begin(), rows.positions.end(), static_cast<int32_t>(position));
  batch.outputs.resize(tokens.size());
  std::iota(batch.outputs.begin(), batch.outputs.end(), 0);
  FinishBatch(batch, false);

  AttentionPlan plan;
  for (int64_t b = 0; b < beams_; ++b) {
    const int64_t span_begin = static_cast<int64_t>(plan.spans.size());
    plan.segments.push_back({b, 1, position, span_begin, 2});
    plan.spans.push_back({0, prompt_rows_, 0});
    plan.spans.push_back({RegionBegin(b), steps_ + 1, prompt_rows_});
  }
  batch.decoder.self = std::move(plan);
  if (model_.info().encoder_decoder) batch.cross = rows.CrossPlan(prompt_.encoder.rows);
  return batch;
}

}  // namespace permafrost
