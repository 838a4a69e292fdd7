#include "models/batch.h"

#include <algorithm>
#include <map>

#include "engine/check.h"

namespace permafrost {
namespace {

constexpr int32_t kIgnored = -100;

void FinishStack(StackRows& stack) {
  stack.self = stack.rows.SelfPlan();
  stack.spans = stack.rows.TaskSpans();
  stack.pooling = stack.rows.MeanPooling();
  stack.lookup = stack.rows.ids;
  std::map<std::pair<int, int>, VirtualRows> by_prompt;
  for (const Segment& s : stack.rows.segments) {
    int32_t token = 0;
    for (int64_t row = s.begin; row < s.begin + s.length; ++row) {
      int32_t& id = stack.lookup[static_cast<size_t>(row)];
      if (id != kVirtual) continue;
      id = 0;
      VirtualRows& v = by_prompt[{s.task, s.prompt}];
      v.task = s.task;
      v.prompt = s.prompt;
      v.rows.push_back(static_cast<int32_t>(row));
      v.tokens.push_back(token++);
    }
  }
  for (auto& [prompt, rows] : by_prompt) stack.virtual_rows.push_back(std::move(rows));
}

std::vector<int32_t> WithVirtual(int64_t count, absl::Span<const int32_t> ids) {
  std::vector<int32_t> all(static_cast<size_t>(count), kVirtual);
  all.insert(all.end(), ids.begin(), ids.end());
  return all;
}

// The root segments of causal prompts, one a prompt, made on first use.
class PromptRoots {
 public:
  PromptRoots(const BatchLayout& layout, Rows& rows) : layout_(layout), rows_(rows) {}
  int Of(int task, int prompt) {
    const int64_t count = layout_.virtual_tokens(task);
    if (count == 0) return kNoParent;
    auto [it, fresh] = roots_.try_emplace({task, prompt}, 0);
    if (fresh) {
      it->second = rows_.Add(WithVirtual(count, {}), kNoParent, task);
      rows_.segments.back().prompt = prompt;
    }
    return it->second;
  }

 private:
  const BatchLayout& layout_;
  Rows& rows_;
  std::map<std::pair<int, int>, int> roots_;
};

std::vector<int32_t> ShiftRight(const BatchLayout& layout, absl::Span<const int32_t> labels) {
  std::vector<int32_t> shifted = {layout.decoder_start};
  for (size_t i = 0; i + 1 < labels.size(); ++i) {
    shifted.push_back(labels[i] == kIgnored ? layout.pad : labels[i]);
  }
  return shifted;
}

template <class Line>
int AddDecoderText(const BatchLayout& layout, PromptRoots& roots, Rows& rows, const Line& line) {
  return rows.Add(line.input_ids, roots.Of(line.task, line.prompt), line.task, -1,
                  layout.first_position(line.task));
}

template <class Line>
int AddEncoderText(const BatchLayout& layout, Batch& batch, const Line& line) {
  Rows& rows = batch.encoder.rows;
  const int segment =
      rows.Add(WithVirtual(layout.virtual_tokens(line.task), line.input_ids), kNoParent, line.task);
  rows.segments.back().prompt = line.prompt;
  rows.segments.back().bias_shift = layout.bias_shift(line.task, Stack::kEncoder);
  return segment;
}

// T5: the decoder's rows for labels, which read the encoder's segment `source`.
int AddTarget(const BatchLayout& layout, Rows& rows, absl::Span<const int32_t> labels, int task,
              int source) {
  const int segment = rows.Add(ShiftRight(layout, labels), kNoParent, task, source);
  rows.segments.back().bias_shift = layout.bias_shift(task, Stack::kDecoder);
  return segment;
}

}  // namespace

void FinishBatch(Batch& batch, bool encoder_decoder) {
  FinishStack(batch.decoder);
  if (encoder_decoder) {
    FinishStack(batch.encoder);
    batch.cross = batch.decoder.rows.CrossPlan(batch.encoder.rows);
  }
  const std::vector<Target>& targets = batch.decoder.rows.targets;
  if (batch.outputs.empty()) {
    for (const Target& t : targets) batch.outputs.push_back(t.row);
    std::sort(batch.outputs.begin(), batch.outputs.end());
    batch.outputs.erase(std::unique(batch.outputs.begin(), batch.outputs.end()),
                        batch.outputs.end());
  }
  batch.output_spans = GatherTaskSpans(batch.decoder.spans, batch.outputs);
  for (const Target& t : targets) {
    const auto it = std::lower_bound(batch.outputs.begin(), batch.outputs.end(), t.row);
    PERMAFROST_CHECK(it != batch.outputs.end() && *it == t.row)
        << "FinishBatch: target row " << t.row << " is not an output";
    batch.target_outputs.push_back(static_cast<int32_t>(it - batch.outputs.begin()));
    batch.target_labels.push_back(t.label);
  }
}

Batch MakeBatch(const BatchLayout& layout, absl::Span<const TokenLine> lines, Outputs outputs) {
  Batch batch;
  Rows& rows = batch.decoder.rows;
  PromptRoots roots(layout, rows);
  for (size_t i = 0; i < lines.size(); ++i) {
    const TokenLine& line = lines[i];
    const int example = static_cast<int>(i);
    int segment;
    if (layout.encoder_decoder) {
      const int source = AddEncoderText(layout, batch, line);
      segment = AddTarget(layout, rows, line.labels, line.task, source);
    } else {
      segment = AddDecoderText(layout, roots, rows, line);
    }
    const Segment s = rows.segments[static_cast<size_t>(segment)];
    for (size_t j = 0; j < line.labels.size(); ++j) {
      if (line.labels[j] == kIgnored) continue;
      int64_t row = s.begin + static_cast<int64_t>(j);
      if (!layout.encoder_decoder) {
        --row;  // the row before predicts this one
        if (j == 0) {
          if (s.parent == kNoParent) continue;
          const Segment& p = rows.segments[static_cast<size_t>(s.parent)];
          row = p.begin + p.length - 1;
        }
      }
      rows.targets.push_back({static_cast<int32_t>(row), line.labels[j], example});
    }
    if (outputs == Outputs::kAll) {
      for (int64_t r = s.begin; r < s.begin + s.length; ++r) {
        batch.outputs.push_back(static_cast<int32_t>(r));
      }
    }
  }
  if (outputs == Outputs::kAll) {
    for (const Target& t : rows.targets) batch.outputs.push_back(t.row);
    std::sort(batch.outputs.begin(), batch.outputs.end());
    batch.outputs.erase(std::unique(batch.outputs.begin(), batch.outputs.end()),
                        batch.outputs.end());
  }
  FinishBatch(batch, layout.encoder_decoder);
  return batch;
}

Batch MakeChoiceBatch(const BatchLayout& layout, absl::Span<const ChoiceLine> lines) {
  Batch batch;
  Rows& rows = batch.decoder.rows;
  PromptRoots roots(layout, rows);
  int example = 0;
  for (const ChoiceLine& line : lines) {
    if (layout.encoder_decoder) {
      const int source = AddEncoderText(layout, batch, line);
      for (const std::vector<int32_t>& candidate : line.candidates) {
        const int segment = AddTarget(layout, rows, candidate, line.task, source);
        const int64_t begin = rows.segments[static_cast<size_t>(segment)].begin;
        for (size_t j = 0; j < candidate.size(); ++j) {
          rows.targets.push_back(
              {static_cast<int32_t>(begin + static_cast<int64_t>(j)), candidate[j], example});
        }
        ++example;
      }
      continue;
    }
    const int stem = AddDecoderText(layout, roots, rows, line);
    const Segment s = rows.segments[static_cast<size_t>(stem)];
    int64_t last = s.begin + s.length - 1;  // predicts the first token of every candidate
    if (s.length == 0 && s.parent != kNoParent) {
      const Segment& p = rows.segments[static_cast<size_t>(s.parent)];
      last = p.begin + p.length - 1;
    }
    PERMAFROST_CHECK(last >= 0) << "MakeChoiceBatch: an empty text without a prompt";
    for (const std::vector<int32_t>& candidate : line.candidates) {
      rows.targets.push_back({static_cast<int32_t>(last), candidate[0], example});
      if (candidate.size() > 1) {
        const int leaf =
            rows.Add(absl::MakeConstSpan(candidate).first(candidate.size() - 1), stem, line.task);
        const int64_t begin = rows.segments[static_cast<size_t>(leaf)].begin;
        for (size_t j = 1; j < candidate.size(); ++j) {
          rows.targets.push_back(
              {static_cast<int32_t>(begin + static_cast<int64_t>(j) - 1), candidate[j], example});
        }
      }
      ++example;
    }
  }
  FinishBatch(batch, layout.encoder_decoder);
  return batch;
}

}  // namespace permafrost
