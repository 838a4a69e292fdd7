// Gates that are means over the rows a row may see (UniPELT, Mao et al. 2022, made causal).
#include <cmath>

#include "engine/check.h"
#include "engine/ops.h"

namespace permafrost {
namespace {

struct Sum {
  float sum = 0;
  float count = 0;
};

// The sum and count up to the row before row i.
Sum Before(const Pooling& pooling, const RunningSums* earlier, const std::vector<Sum>& sums,
           size_t i) {
  if (pooling.previous[i] >= 0) return sums[static_cast<size_t>(pooling.previous[i])];
  if (earlier == nullptr || earlier->previous[i] < 0) return {};
  const float* row = earlier->table.row(earlier->previous[i]);
  return {row[0], row[1]};
}

}  // namespace

Var PooledGate(Context& c, const Var& logits, const Pooling& pooling, const RunningSums* earlier) {
  const size_t rows = pooling.previous.size();
  PERMAFROST_CHECK(logits.shape() == (Shape{static_cast<int64_t>(rows), 1}))
      << "PooledGate: logits " << ToString(logits.shape()) << " of " << rows << " rows";
  const Tensor sigmoids(logits.shape()), gates(logits.shape());
  std::vector<Sum> sums(rows);
  for (size_t i = 0; i < rows; ++i) {
    const float sigmoid = 1 / (1 + std::exp(-logits.value().f32()[i]));
    sigmoids.f32()[i] = sigmoid;
    sums[i] = Before(pooling, earlier, sums, i);
    if (pooling.counted[i] != 0) {
      sums[i].sum += sigmoid;
      sums[i].count += 1;
    }
    if (earlier == nullptr) continue;
    float* slot = earlier->table.row(earlier->slots[i]);
    slot[0] = sums[i].sum, slot[1] = sums[i].count;
  }
  const Tensor counts(logits.shape());
  for (size_t i = 0; i < rows; ++i) {
    const Sum& read = sums[static_cast<size_t>(pooling.read[i])];
    counts.f32()[i] = read.count;
    gates.f32()[i] = read.count > 0 ? read.sum / read.count : 0;
  }
  Saved saved;
  const bool record = WillRecord(c, {&logits});
  saved.Keep(sigmoids, record);
  saved.Keep(counts, record);
  const Pooling* p = &pooling;
  return Record(c, "PooledGate", {&logits}, gates, std::move(saved),
                [p](Context&, const Saved& s, const Tensor& dy, GradSink& g) {
                  const float* sigmoid = s.tensors()[0].f32();
                  const float* count = s.tensors()[1].f32();
                  const size_t n = p->previous.size();
                  std::vector<float> dsum(n);
                  for (size_t i = 0; i < n; ++i) {
                    if (count[i] > 0) {
                      dsum[static_cast<size_t>(p->read[i])] += dy.f32()[i] / count[i];
                    }
                  }
                  const Tensor dlogits = g.Accumulator(0);
                  for (size_t i = n; i-- > 0;) {
                    if (p->counted[i] != 0) {
                      dlogits.f32()[i] += dsum[i] * sigmoid[i] * (1 - sigmoid[i]);
                    }
                    if (p->previous[i] >= 0) dsum[static_cast<size_t>(p->previous[i])] += dsum[i];
                  }
                });
}

}  // namespace permafrost
