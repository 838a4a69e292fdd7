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

  first_position_ = prompt_.decoder.rows.segments.front().position;
  stride_ = kFirstStride;
  const ModelInfo& info = model_.info();
  for (int64_t layer = 0; layer < info.decoder_layers; ++layer) {
    const Shape shape{prompt_rows_ + beams_ * stride_, info.key_heads * info.head_size};
    cache_.keys.emplace_back(shape);
    cache_.values.emplace_back(shape);
  }
  cache_.previous.assign(static_cast<size_t>(prompt_rows_), -1);
  cache_.slots.resize(static_cast<size_t>(prompt_rows_));
  std::iota(cache_.slots.begin(), cache_.slots.end(), 0);
  encoded_ = model_.Encode(c_, prompt_, hooks_);
  const Var hidden = model_.Decode(c_, prompt_, encoded_, hooks_, &cache_);
  return model_.Logits(c_, hidden, prompt_.output_spans, hooks_).value();
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
  cache_.previous.resize(tokens.size());
  for (int64_t b = 0; b < beams_; ++b) {
    const int64_t slot = RegionBegin(b) + steps_;
    cache_.slots[static_cast<size_t>(b)] = static_cast<int32_t>(slot);
    cache_.previous[static_cast<size_t>(b)] =
        static_cast<int32_t>(steps_ > 0 ? slot - 1 : prompt_rows_ - 1);
  }
  ++steps_;
  const Var hidden = model_.Decode(c_, batch, encoded_, hooks_, &cache_);
  return model_.Logits(c_, hidden, batch.output_spans, hooks_).value();
}

// Every table with a row a slot.
std::vector<Tensor*> CachedDecoder::Tables() {
  std::vector<Tensor*> tables;
  for (Tensor& t : cache_.keys) tables.push_back(&t);
  for (Tensor& t : cache_.values) tables.push_back(&t);
  for (auto& [gate, t] : cache_.sums) tables.push_back(&t);
  return tables;
}

// Room for `stride` rows a region; the rows that are there move along.
void CachedDecoder::Reserve(int64_t stride) {
  const int64_t slots = prompt_rows_ + beams_ * stride;
  for (Tensor* table : Tables()) {
    Tensor larger({slots, table->columns()});
    CopyRows(*table, 0, larger, 0, prompt_rows_);
    for (int64_t b = 0; b < beams_; ++b) {
      CopyRows(*table, RegionBegin(b), larger, prompt_rows_ + b * stride, steps_);
    }
    *table = std::move(larger);
  }
  stride_ = stride;
}

void CachedDecoder::Reorder(absl::Span<const int32_t> parents) {
  std::vector<int64_t> moved;
  for (int64_t b = 0; b < beams_; ++b) {
    if (parents[static_cast<size_t>(b)] != b) moved.push_back(b);
  }
  if (moved.empty() || steps_ == 0) return;
  for (Tensor* table : Tables()) {
    Tensor parked({static_cast<int64_t>(moved.size()) * steps_, table->columns()});
    int64_t row = 0;
    for (const int64_t b : moved) {
      CopyRows(*table, RegionBegin(parents[static_cast<size_t>(b)]), parked, row, steps_);
      row += steps_;
    }
    row = 0;
    for (const int64_t b : moved) {
      CopyRows(parked, row, *table, RegionBegin(b), steps_);
      row += steps_;
    }
  }
}

// One row a beam. Self-attention refers to cache rows, cross-attention to the prompt's encoder
// rows.
Batch CachedDecoder::StepBatch(absl::Span<const int32_t> tokens) const {
  Batch batch;
  Rows& rows = batch.decoder.rows;
  const int64_t regions = first_position_ + prompt_rows_;  // position of their first rows
  const int64_t position = regions + steps_;
  for (const int32_t token : tokens) rows.Add({token}, kNoParent, task_, 0, position);
  batch.outputs.resize(tokens.size());
  std::iota(batch.outputs.begin(), batch.outputs.end(), 0);
  FinishBatch(batch, false);

  AttentionPlan plan;
  for (int64_t b = 0; b < beams_; ++b) {
    const int64_t span_begin = static_cast<int64_t>(plan.spans.size());
    plan.segments.push_back(
        {b, 1, position, span_begin, 2, hooks_.BiasShift(task_, Stack::kDecoder)});
    plan.spans.push_back({0, prompt_rows_, first_position_});
    plan.spans.push_back({RegionBegin(b), steps_ + 1, regions});
  }
  batch.decoder.self = std::move(plan);
  if (model_.info().encoder_decoder) batch.cross = rows.CrossPlan(prompt_.encoder.rows);
  return batch;
}

}  // namespace permafrost
