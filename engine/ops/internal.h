// What ops share and nobody else needs.
#ifndef PERMAFROST_ENGINE_OPS_INTERNAL_H_
#define PERMAFROST_ENGINE_OPS_INTERNAL_H_

#include "engine/context.h"
#include "engine/rows.h"

namespace permafrost {

struct MatMulOperand {
  Tensor tensor;
  bool transpose = false;
};

// out (+)= alpha op(a) op(b) on plain f32 matrices.
void MatMulInto(Context& c, const MatMulOperand& a, const MatMulOperand& b, const Tensor& out,
                float alpha, kernels::Write write);

// Task spans as (begin, rows) pairs. They are few (one unless a batch mixes adapters); in a tensor
// they can be kept by a node whose backward function stays trivially copyable.
inline Tensor SpanTensor(absl::Span<const TaskSpan> spans) {
  Tensor t({static_cast<int64_t>(spans.size()), 2}, MemoryTag::kWorkspace, DType::kI32);
  for (size_t i = 0; i < spans.size(); ++i) {
    t.i32()[2 * i] = static_cast<int32_t>(spans[i].begin);
    t.i32()[2 * i + 1] = static_cast<int32_t>(spans[i].end - spans[i].begin);
  }
  return t;
}

// f(first row, rows, rows of the spans before) for each span.
template <class F>
void ForEachSpan(const Tensor& spans, F f) {
  int64_t packed_row = 0;
  for (int64_t i = 0; i < spans.rows(); ++i) {
    const int64_t begin = spans.i32()[2 * i], rows = spans.i32()[2 * i + 1];
    f(begin, rows, packed_row);
    packed_row += rows;
  }
}

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_OPS_INTERNAL_H_
