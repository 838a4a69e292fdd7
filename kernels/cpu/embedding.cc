// Row gather and scatter-add. Definition: kernels/reference/embedding.h.
#include "kernels/embedding.h"

#include <cstring>

#include "kernels/cpu/chunks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/embedding.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

// Columns [begin, end) of every row: no two tasks write the same element, and rows that repeat are
// added in the order of i.
void ScatterAddColumns(const ScatterAddRowsArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < a.count; ++i) {
    const float* from = a.dout + i * a.width + begin;
    float* to = a.dtable + a.ids[i] * a.width + begin;
    ForEachVector(end - begin, [=](int64_t c, auto part) HWY_ATTR {
      Store(hn::Add(Load(to + c, part), Load(from + c, part)), to + c, part);
    });
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace permafrost::kernels::cpu {
namespace {
HWY_EXPORT(ScatterAddColumns);

// Columns of one scatter task: whole cache lines, few enough that small models still split.
constexpr int64_t kScatterColumns = 128;
}  // namespace

void GatherRows(const GatherRowsArgs& args, const Parallel& parallel) {
  const size_t bytes = static_cast<size_t>(args.width) * sizeof(float);
  ParallelChunks(parallel, args.count, ChunkRows(args.width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(args.out + i * args.width, args.table + args.ids[i] * args.width, bytes);
    }
  });
}

void ScatterAddRows(const ScatterAddRowsArgs& args, const Parallel& parallel) {
  const auto columns = HWY_DYNAMIC_DISPATCH(ScatterAddColumns);
  ParallelChunks(parallel, args.width, kScatterColumns,
                 [&](int64_t begin, int64_t end) { columns(args, begin, end); });
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
