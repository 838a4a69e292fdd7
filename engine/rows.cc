#include "engine/rows.h"

#include <algorithm>

#include "engine/check.h"

namespace permafrost {
namespace {

void Append(std::vector<TaskSpan>& spans, int64_t begin, int64_t end, int task) {
  if (begin == end) return;
  if (!spans.empty() && spans.back().task == task && spans.back().end == begin) {
    spans.back().end = end;
  } else {
    spans.push_back({begin, end, task});
  }
}

}  // namespace

int Rows::Add(absl::Span<const int32_t> new_ids, int parent, int task, int source,
              int64_t position) {
  PERMAFROST_CHECK(parent < static_cast<int>(segments.size()))
      << "Rows::Add: parent " << parent << " of " << segments.size() << " segments";
  Segment s{.parent = parent,
            .begin = count(),
            .length = static_cast<int64_t>(new_ids.size()),
            .position = position,
            .task = task,
            .source = source};
  if (parent != kNoParent) {
    const Segment& p = segments[static_cast<size_t>(parent)];
    s.position = p.position + p.length;
  }
  segments.push_back(s);
  ids.insert(ids.end(), new_ids.begin(), new_ids.end());
  for (int64_t i = 0; i < s.length; ++i) positions.push_back(static_cast<int32_t>(s.position + i));
  return static_cast<int>(segments.size()) - 1;
}

AttentionPlan Rows::SelfPlan() const {
  AttentionPlan plan;
  for (const Segment& s : segments) {
    const int64_t span_begin = static_cast<int64_t>(plan.spans.size());
    // Ancestors first, root to leaf, so that keys stand in order of position.
    std::vector<const Segment*> chain = {&s};
    while (chain.back()->parent != kNoParent) {
      chain.push_back(&segments[static_cast<size_t>(chain.back()->parent)]);
    }
    for (auto it = chain.rbegin(); it != chain.rend(); ++it) {
      if ((*it)->length > 0) plan.spans.push_back({(*it)->begin, (*it)->length, (*it)->position});
    }
    plan.segments.push_back({s.begin, s.length, s.position, span_begin,
                             static_cast<int64_t>(plan.spans.size()) - span_begin, s.bias_shift});
  }
  return plan;
}

AttentionPlan Rows::CrossPlan(const Rows& encoder) const {
  AttentionPlan plan;
  for (const Segment& s : segments) {
    PERMAFROST_CHECK(s.source >= 0 && s.source < static_cast<int>(encoder.segments.size()))
        << "Rows::CrossPlan: a decoder segment has no source";
    const Segment& e = encoder.segments[static_cast<size_t>(s.source)];
    plan.segments.push_back(
        {s.begin, s.length, s.position, static_cast<int64_t>(plan.spans.size()), 1});
    plan.spans.push_back({e.begin, e.length, e.position});
  }
  return plan;
}

Pooling Rows::MeanPooling() const {
  Pooling pooling;
  const size_t rows = ids.size();
  pooling.previous.resize(rows), pooling.last.resize(rows), pooling.counted.resize(rows);
  std::vector<int32_t> last;  // by segment: its last row, or that of the nearest ancestor with rows
  for (const Segment& s : segments) {
    int32_t row = s.parent == kNoParent ? -1 : last[static_cast<size_t>(s.parent)];
    for (int64_t i = s.begin; i < s.begin + s.length; ++i) {
      const size_t at = static_cast<size_t>(i);
      pooling.previous[at] = row;
      row = static_cast<int32_t>(i);
      pooling.last[at] = static_cast<int32_t>(s.begin + s.length - 1);
      pooling.counted[at] = ids[at] != kVirtual;
    }
    last.push_back(row);
  }
  return pooling;
}

std::vector<TaskSpan> Rows::TaskSpans() const {
  std::vector<TaskSpan> spans;
  for (const Segment& s : segments) Append(spans, s.begin, s.begin + s.length, s.task);
  return spans;
}

std::vector<TaskSpan> GatherTaskSpans(absl::Span<const TaskSpan> spans,
                                      absl::Span<const int32_t> ids) {
  std::vector<TaskSpan> gathered;
  for (size_t i = 0; i < ids.size(); ++i) {
    auto it = std::upper_bound(spans.begin(), spans.end(), int64_t{ids[i]},
                               [](int64_t row, const TaskSpan& s) { return row < s.end; });
    PERMAFROST_CHECK(it != spans.end()) << "GatherTaskSpans: row " << ids[i] << " is in no span";
    Append(gathered, static_cast<int64_t>(i), static_cast<int64_t>(i) + 1, it->task);
  }
  return gathered;
}

}  // namespace permafrost
