// Gates that are means over the rows a row may see (UniPELT, Mao et al. 2022, made causal).
#include <algorithm>
#include <cmath>

#include "engine/check.h"
#include "engine/ops.h"

namespace permafrost {
namespace {

// sums [R, 1 + n] of each row: the count of rows so far, and the sums of their sigmoids.
Tensor RunningTotals(const Tensor& sigmoids, const Pooling& pooling, const RunningSums* earlier) {
  const int64_t n = sigmoids.columns();
  Tensor sums = Tensor::Zeros({sigmoids.rows(), 1 + n}, MemoryTag::kWorkspace);
  for (int64_t i = 0; i < sums.rows(); ++i) {
    const size_t at = static_cast<size_t>(i);
    float* own = sums.row(i);
    if (pooling.previous[at] >= 0) {
      std::copy_n(sums.row(pooling.previous[at]), 1 + n, own);
    } else if (earlier != nullptr && earlier->previous[at] >= 0) {
      std::copy_n(earlier->table.row(earlier->previous[at]), 1 + n, own);
    }
    if (pooling.counted[at] != 0) {
      own[0] += 1;
      for (int64_t j = 0; j < n; ++j) own[1 + j] += sigmoids.row(i)[j];
    }
    if (earlier != nullptr) std::copy_n(own, 1 + n, earlier->table.row(earlier->slots[at]));
  }
  return sums;
}

// The row whose running sums row i reads.
int64_t ReadRow(const Pooling& pooling, MeanOver over, int64_t i) {
  return over == MeanOver::kWhole ? pooling.last[static_cast<size_t>(i)] : i;
}

}  // namespace

Var PooledGate(Context& c, const Var& logits, const Pooling& pooling, MeanOver over,
               const RunningSums* earlier) {
  PERMAFROST_CHECK(logits.rows() == static_cast<int64_t>(pooling.previous.size()))
      << "PooledGate: logits " << ToString(logits.shape()) << " of " << pooling.previous.size()
      << " rows";
  const int64_t rows = logits.rows(), n = logits.columns();
  const Tensor sigmoids(logits.shape()), gates(logits.shape()), counts({rows, 1});
  for (int64_t i = 0; i < logits.value().count(); ++i) {
    sigmoids.f32()[i] = 1 / (1 + std::exp(-logits.value().f32()[i]));
  }
  const Tensor sums = RunningTotals(sigmoids, pooling, earlier);
  for (int64_t i = 0; i < rows; ++i) {
    const float* read = sums.row(ReadRow(pooling, over, i));
    counts.f32()[i] = read[0];
    for (int64_t j = 0; j < n; ++j) gates.row(i)[j] = read[0] > 0 ? read[1 + j] / read[0] : 0;
  }
  Saved saved;
  const bool record = WillRecord(c, {&logits});
  saved.Keep(sigmoids, record);
  saved.Keep(counts, record);
  const Pooling* p = &pooling;
  return Record(c, "PooledGate", {&logits}, gates, std::move(saved),
                [p, over](Context&, const Saved& s, const Tensor& dy, GradSink& g) {
                  const Tensor sigmoid = s.tensors()[0], count = s.tensors()[1];
                  const int64_t width = dy.columns();
                  // Of the running sums, by row.
                  const Tensor dsum = Tensor::Zeros(dy.shape(), MemoryTag::kWorkspace);
                  for (int64_t i = 0; i < dy.rows(); ++i) {
                    if (count.f32()[i] == 0) continue;
                    float* to = dsum.row(ReadRow(*p, over, i));
                    for (int64_t j = 0; j < width; ++j) to[j] += dy.row(i)[j] / count.f32()[i];
                  }
                  const Tensor dlogits = g.Accumulator(0);
                  for (int64_t i = dy.rows(); i-- > 0;) {
                    const size_t at = static_cast<size_t>(i);
                    const float* own = dsum.row(i);
                    for (int64_t j = 0; j < width && p->counted[at] != 0; ++j) {
                      const float value = sigmoid.row(i)[j];
                      dlogits.row(i)[j] += own[j] * value * (1 - value);
                    }
                    if (p->previous[at] < 0) continue;
                    float* before = dsum.row(p->previous[at]);
                    for (int64_t j = 0; j < width; ++j) before[j] += own[j];
                  }
                });
}

}  // namespace permafrost
