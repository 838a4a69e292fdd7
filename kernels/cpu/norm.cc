// RMSNorm and LayerNorm. Definition: kernels/reference/norm.h.
//
// A row is read from memory once: the statistics leave it in the first-level cache for the output.
// The gradients of scale and bias are summed in the same sweep over a chunk of kReductionRows rows.
#include "kernels/norm.h"

#include <cmath>

#include "kernels/cpu/chunks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

float InverseRoot(double mean_square, float epsilon) {
  return static_cast<float>(1.0 / std::sqrt(mean_square + static_cast<double>(epsilon)));
}

void RmsForwardRows(const RmsNormForwardArgs& a, int64_t begin, int64_t end) {
  const FloatTag d;
  const int64_t width = a.width;
  const float* scale = a.scale;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = a.x + row * width;
    float* y = a.y + row * width;
    const double squares = SumOverVectors(width, [=](int64_t i, auto part) HWY_ATTR {
      const FloatVec v = Load(x + i, part);
      return hn::Mul(v, v);
    });
    const float inv_rms = InverseRoot(squares / static_cast<double>(width), a.epsilon);
    const FloatVec inverse = hn::Set(d, inv_rms);
    ForEachVector(width, [=](int64_t i, auto part) HWY_ATTR {
      const FloatVec xhat = hn::Mul(Load(x + i, part), inverse);
      Store(hn::Mul(xhat, Load(scale + i, part)), y + i, part);
    });
    a.inv_rms[row] = inv_rms;
  }
}

void LayerForwardRows(const LayerNormForwardArgs& a, int64_t begin, int64_t end) {
  const FloatTag d;
  const int64_t width = a.width;
  const double inverse_width = 1.0 / static_cast<double>(width);
  const float* scale = a.scale;
  const float* bias = a.bias;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = a.x + row * width;
    float* y = a.y + row * width;
    const float mean = static_cast<float>(
        inverse_width *
        SumOverVectors(width, [=](int64_t i, auto part) HWY_ATTR { return Load(x + i, part); }));
    const FloatVec center = hn::Set(d, mean);
    const double squares = SumOverVectors(width, [=](int64_t i, auto part) HWY_ATTR {
      const FloatVec v = hn::Sub(Load(x + i, part), center);
      return hn::Mul(v, v);
    });
    const float inv_std = InverseRoot(squares * inverse_width, a.epsilon);
    const FloatVec inverse = hn::Set(d, inv_std);
    ForEachVector(width, [=](int64_t i, auto part) HWY_ATTR {
      const FloatVec xhat = hn::Mul(hn::Sub(Load(x + i, part), center), inverse);
      const FloatVec s = Load(scale + i, part);
      Store(bias != nullptr ? hn::MulAdd(xhat, s, Load(bias + i, part)) : hn::Mul(xhat, s), y + i,
            part);
    });
    a.mean[row] = mean;
    a.inv_std[row] = inv_std;
  }
}

// The gradients of one row. kCentered: LayerNorm, else RMSNorm (mean is 0, no bias).
struct RowGradient {
  const float* x;
  const float* scale;
  const float* dy;
  float* dx;      // or null
  float* dscale;  // partial sum of this chunk, or null
  float* dbias;   // or null
  int64_t width;
  float mean, inverse;
  Write write_dx;
  bool first_of_chunk;  // the partial sums start here
};

template <bool kCentered>
void BackwardRow(const RowGradient& r) {
  const FloatTag d;
  const FloatVec center = hn::Set(d, r.mean);
  const FloatVec inverse = hn::Set(d, r.inverse);
  const auto normalized = [=](FloatVec x) HWY_ATTR {
    return hn::Mul(kCentered ? hn::Sub(x, center) : x, inverse);
  };
  FloatVec mean_g = hn::Zero(d), mean_gx = mean_g;
  if (r.dx != nullptr) {
    const double inverse_width = 1.0 / static_cast<double>(r.width);
    const double sum_gx = SumOverVectors(r.width, [&](int64_t i, auto part) HWY_ATTR {
      const FloatVec g = hn::Mul(Load(r.dy + i, part), Load(r.scale + i, part));
      return hn::Mul(g, normalized(Load(r.x + i, part)));
    });
    mean_gx = hn::Set(d, static_cast<float>(sum_gx * inverse_width));
    if constexpr (kCentered) {
      const double sum_g = SumOverVectors(r.width, [&](int64_t i, auto part) HWY_ATTR {
        return hn::Mul(Load(r.dy + i, part), Load(r.scale + i, part));
      });
      mean_g = hn::Set(d, static_cast<float>(sum_g * inverse_width));
    }
  }
  ForEachVector(r.width, [&](int64_t i, auto part) HWY_ATTR {
    const FloatVec dy = Load(r.dy + i, part);
    const FloatVec xhat = normalized(Load(r.x + i, part));
    if (r.dscale != nullptr) {
      const FloatVec term = hn::Mul(dy, xhat);
      Store(r.first_of_chunk ? term : hn::Add(Load(r.dscale + i, part), term), r.dscale + i, part);
    }
    if (r.dbias != nullptr) {
      Store(r.first_of_chunk ? dy : hn::Add(Load(r.dbias + i, part), dy), r.dbias + i, part);
    }
    if (r.dx != nullptr) {
      FloatVec g = hn::Mul(dy, Load(r.scale + i, part));
      if constexpr (kCentered) g = hn::Sub(g, mean_g);
      FloatVec dx = hn::Mul(inverse, hn::NegMulAdd(xhat, mean_gx, g));
      if (r.write_dx == Write::kAccumulate) dx = hn::Add(Load(r.dx + i, part), dx);
      Store(dx, r.dx + i, part);
    }
  });
}

void RmsBackwardRows(const RmsNormBackwardArgs& a, int64_t begin, int64_t end, float* dscale) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * a.width;
    BackwardRow<false>({a.x + at, a.scale, a.dy + at, a.dx != nullptr ? a.dx + at : nullptr, dscale,
                        nullptr, a.width, 0.0f, a.inv_rms[row], a.write_dx, row == begin});
  }
}

void LayerBackwardRows(const LayerNormBackwardArgs& a, int64_t begin, int64_t end, float* dscale,
                       float* dbias) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * a.width;
    BackwardRow<true>({a.x + at, a.scale, a.dy + at, a.dx != nullptr ? a.dx + at : nullptr, dscale,
                       dbias, a.width, a.mean[row], a.inv_std[row], a.write_dx, row == begin});
  }
}

// out[c] += sum of partial[k * width + c] over k, in the order of k, for c in [begin, end).
void AddPartials(const float* partial, int64_t chunks, int64_t width, int64_t begin, int64_t end,
                 float* out) {
  ForEachVector(end - begin, [=](int64_t offset, auto part) HWY_ATTR {
    const int64_t c = begin + offset;
    FloatVec sum = Load(partial + c, part);
    for (int64_t k = 1; k < chunks; ++k) sum = hn::Add(sum, Load(partial + k * width + c, part));
    Store(hn::Add(Load(out + c, part), sum), out + c, part);
  });
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace permafrost::kernels::cpu {
namespace {
HWY_EXPORT(RmsForwardRows);
HWY_EXPORT(LayerForwardRows);
HWY_EXPORT(RmsBackwardRows);
HWY_EXPORT(LayerBackwardRows);
HWY_EXPORT(AddPartials);

void AddChunks(const float* partial, int64_t rows, int64_t width, float* out,
               const Parallel& parallel) {
  const auto add = HWY_DYNAMIC_DISPATCH(AddPartials);
  const int64_t chunks = (rows + kReductionRows - 1) / kReductionRows;
  ParallelChunks(parallel, width, kColumnsPerTask,
                 [&](int64_t begin, int64_t end) { add(partial, chunks, width, begin, end, out); });
}
}  // namespace

void RmsNormForward(const RmsNormForwardArgs& args, const Parallel& parallel) {
  const auto rows = HWY_DYNAMIC_DISPATCH(RmsForwardRows);
  ParallelChunks(parallel, args.rows, ChunkRows(args.width),
                 [&](int64_t begin, int64_t end) { rows(args, begin, end); });
}

void LayerNormForward(const LayerNormForwardArgs& args, const Parallel& parallel) {
  const auto rows = HWY_DYNAMIC_DISPATCH(LayerForwardRows);
  ParallelChunks(parallel, args.rows, ChunkRows(args.width),
                 [&](int64_t begin, int64_t end) { rows(args, begin, end); });
}

void RmsNormBackward(const RmsNormBackwardArgs& args, const Parallel& parallel) {
  if (args.rows <= 0) return;
  const auto rows = HWY_DYNAMIC_DISPATCH(RmsBackwardRows);
  const bool reduce = args.dscale != nullptr;
  const int64_t size = reduce ? kReductionRows : ChunkRows(args.width);
  ParallelChunks(parallel, args.rows, size, [&](int64_t begin, int64_t end) {
    rows(args, begin, end, reduce ? args.workspace + begin / size * args.width : nullptr);
  });
  if (reduce) AddChunks(args.workspace, args.rows, args.width, args.dscale, parallel);
}

void LayerNormBackward(const LayerNormBackwardArgs& args, const Parallel& parallel) {
  if (args.rows <= 0) return;
  const auto rows = HWY_DYNAMIC_DISPATCH(LayerBackwardRows);
  const bool reduce = args.dscale != nullptr || args.dbias != nullptr;
  const int64_t size = reduce ? kReductionRows : ChunkRows(args.width);
  // First the partial sums of dscale for all chunks, then those of dbias.
  const int64_t bias_at = NormBackwardWorkspace(args.rows, args.width) / 2;
  ParallelChunks(parallel, args.rows, size, [&](int64_t begin, int64_t end) {
    const int64_t at = begin / size * args.width;
    rows(args, begin, end, args.dscale != nullptr ? args.workspace + at : nullptr,
         args.dbias != nullptr ? args.workspace + bias_at + at : nullptr);
  });
  if (args.dscale != nullptr) {
    AddChunks(args.workspace, args.rows, args.width, args.dscale, parallel);
  }
  if (args.dbias != nullptr) {
    AddChunks(args.workspace + bias_at, args.rows, args.width, args.dbias, parallel);
  }
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
