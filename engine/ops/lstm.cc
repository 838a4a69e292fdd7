// One direction of an LSTM over the rows of a matrix.
#include <algorithm>
#include <cmath>

#include "engine/check.h"
#include "engine/ops.h"
#include "engine/ops/internal.h"

namespace permafrost {
namespace {

float Sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

// The k-th row in the order of the direction.
int64_t RowAt(int64_t k, int64_t rows, bool reverse) { return reverse ? rows - 1 - k : k; }

}  // namespace

Var Lstm(Context& c, const Var& gates, const Var& w, bool reverse) {
  const int64_t rows = gates.rows(), h = w.columns();
  PERMAFROST_CHECK(rows > 0 && w.rows() == 4 * h && gates.columns() == 4 * h)
      << "Lstm: gates " << ToString(gates.shape()) << ", w " << ToString(w.shape());
  const Tensor a = gates.value().Clone();  // i, f, g, o after their activations
  const Tensor cell({rows, h}), y({rows, h});
  for (int64_t k = 0; k < rows; ++k) {
    const int64_t t = RowAt(k, rows, reverse);
    const int64_t before = k > 0 ? RowAt(k - 1, rows, reverse) : -1;
    if (before >= 0) {
      MatMulInto(c, {y.RowRange(before, 1)}, {w.value(), true}, a.RowRange(t, 1), 1,
                 kernels::Write::kAccumulate);
    }
    float *i = a.row(t), *f = i + h, *g = f + h, *o = g + h;
    for (int64_t j = 0; j < h; ++j) {
      i[j] = Sigmoid(i[j]);
      f[j] = Sigmoid(f[j]);
      g[j] = std::tanh(g[j]);
      o[j] = Sigmoid(o[j]);
      cell.row(t)[j] = (before >= 0 ? f[j] * cell.row(before)[j] : 0) + i[j] * g[j];
      y.row(t)[j] = o[j] * std::tanh(cell.row(t)[j]);
    }
  }
  Saved saved;
  saved.Keep(a);
  saved.Keep(cell);
  saved.Keep(y, w.needs_grad());
  saved.Keep(w.value());
  return Record(
      c, "Lstm", {&gates, &w}, y, std::move(saved),
      [reverse](Context& ctx, const Saved& s, const Tensor& dy, GradSink& sink) {
        const Tensor act = s.Get(ctx, 0), cells = s.Get(ctx, 1), weight = s.Get(ctx, 3);
        const int64_t count = dy.rows(), width = dy.columns();
        Tensor dgates({count, 4 * width});
        // Of the row that comes next: what it sends back to this one's output and cell.
        Tensor dh = Tensor::Zeros({1, width}), dc = Tensor::Zeros({1, width});
        for (int64_t k = count - 1; k >= 0; --k) {
          const int64_t t = RowAt(k, count, reverse);
          const float* before = k > 0 ? cells.row(RowAt(k - 1, count, reverse)) : nullptr;
          const float *i = act.row(t), *f = i + width, *g = f + width, *o = g + width;
          float *di = dgates.row(t), *df = di + width, *dg = df + width, *dout = dg + width;
          for (int64_t j = 0; j < width; ++j) {
            const float tanh_cell = std::tanh(cells.row(t)[j]);
            const float dhj = dy.row(t)[j] + dh.f32()[j];
            const float dcell = dc.f32()[j] + dhj * o[j] * (1 - tanh_cell * tanh_cell);
            di[j] = dcell * g[j] * i[j] * (1 - i[j]);
            df[j] = before != nullptr ? dcell * before[j] * f[j] * (1 - f[j]) : 0;
            dg[j] = dcell * i[j] * (1 - g[j] * g[j]);
            dout[j] = dhj * tanh_cell * o[j] * (1 - o[j]);
            dc.f32()[j] = dcell * f[j];
          }
          if (k > 0) {
            MatMulInto(ctx, {dgates.RowRange(t, 1)}, {weight}, dh, 1, kernels::Write::kOverwrite);
          }
        }
        if (sink.Needs(1)) {
          const Tensor dw = sink.Accumulator(1);
          if (count > 1) {
            const int64_t later = reverse ? 0 : 1, earlier = 1 - later;
            MatMulInto(ctx, {dgates.RowRange(later, count - 1), true},
                       {s.Get(ctx, 2).RowRange(earlier, count - 1)}, dw, 1,
                       kernels::Write::kAccumulate);
          }
        }
        if (sink.Needs(0)) sink.Add(0, dgates);
      });
}

}  // namespace permafrost
