// Rows: which rows of an activation matrix belong together. An activation is [R, width], one row
// per real token; there is no padding. A forest of segments says what attention may read: a query
// row sees its own segment (up to its own position if causal) and every row of the segment's
// ancestors. Attention alone reads this; everything else sees a matrix.
//
// Examples (causal, soft prompt of 3, texts of 4 and 2 tokens): segment 0 = rows 0-2 (root,
// positions 0..2), segment 1 = rows 3-6 (parent 0, positions 3..6), segment 2 = rows 7-8 (parent 0,
// positions 3..4). Bidirectional (T5's encoder): the prompt's states depend on the text, so each
// text's segment holds its own 3 virtual rows in front. A decoder segment names the encoder segment
// it attends to as its source.
#ifndef PERMAFROST_ENGINE_ROWS_H_
#define PERMAFROST_ENGINE_ROWS_H_

#include <vector>

#include "absl/types/span.h"
#include "kernels/attention.h"

namespace permafrost {

inline constexpr int kNoTask = -1;  // the bare base
inline constexpr int kNoParent = -1;
inline constexpr int kVirtual = -1;  // token id of a row that a method fills

struct Segment {
  int parent = kNoParent;
  int64_t begin = 0;
  int64_t length = 0;
  int64_t position = 0;    // of the first row: the parent's end, else what Add was given
  int task = kNoTask;      // which adapter its rows use
  int prompt = 0;          // which of that adapter's prompts its virtual rows are
  int source = -1;         // encoder segment that a decoder segment attends to
  int64_t bias_shift = 0;  // of its rows as queries (kernels::QuerySegment)
};

// A row whose next token is known: row `row` is to predict `label`; `example` groups losses.
struct Target {
  int32_t row = 0;
  int32_t label = 0;
  int example = 0;
};

// Rows [begin, end) that use adapter `task`.
struct TaskSpan {
  int64_t begin = 0;
  int64_t end = 0;
  int task = kNoTask;
};

// What attention reads: query segments and the key spans that each sees.
struct AttentionPlan {
  std::vector<kernels::QuerySegment> segments;
  std::vector<kernels::KeySpan> spans;
};

// For means over the rows of a text that a row may see. By row:
struct Pooling {
  std::vector<int32_t> previous;  // the row before it in its text, ancestors included, or -1
  std::vector<int32_t> last;      // the last row of its segment
  std::vector<uint8_t> counted;   // whether it is part of means: virtual rows are not
};

struct Rows {
  std::vector<Segment> segments;
  std::vector<int32_t> ids;        // token id of each row, or kVirtual
  std::vector<int32_t> positions;  // of each row
  std::vector<Target> targets;

  // Appends a segment of ids.size() rows and returns its index. Positions go on from the parent; a
  // root starts at `position`.
  int Add(absl::Span<const int32_t> ids, int parent = kNoParent, int task = kNoTask,
          int source = -1, int64_t position = 0);
  int64_t count() const { return static_cast<int64_t>(ids.size()); }

  AttentionPlan SelfPlan() const;
  // Each segment reads the rows of its source in `encoder`.
  AttentionPlan CrossPlan(const Rows& encoder) const;
  Pooling MeanPooling() const;
  // Runs of rows of equal task, in row order.
  std::vector<TaskSpan> TaskSpans() const;
};

// The task spans of rows[i] = ids[i] of a matrix whose spans are `spans`.
std::vector<TaskSpan> GatherTaskSpans(absl::Span<const TaskSpan> spans,
                                      absl::Span<const int32_t> ids);

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_ROWS_H_
