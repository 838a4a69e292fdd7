// AdamW, Adafactor, SGD. Definition: kernels/reference/optimizer.h. Scalars of the step are worked
// out in f64, elements in f32 in the order of operations of torch and transformers.
#include "kernels/optimizer.h"

#include <cmath>

#include "kernels/cpu/chunks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/optimizer.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

HWY_INLINE FloatVec Broadcast(double v) { return hn::Set(FloatTag(), static_cast<float>(v)); }

void AdamWRange(const AdamWArgs& a, int64_t begin, int64_t end) {
  const double step = static_cast<double>(a.step);
  const FloatVec scale = Broadcast(a.gradient_scale);
  const FloatVec decay = Broadcast(1.0 - a.learning_rate * a.weight_decay);
  const FloatVec beta2 = Broadcast(a.beta2);
  const FloatVec rest1 = Broadcast(1.0 - a.beta1), rest2 = Broadcast(1.0 - a.beta2);
  const FloatVec size = Broadcast(a.learning_rate / (1.0 - std::pow(a.beta1, step)));
  const FloatVec correction = Broadcast(std::sqrt(1.0 - std::pow(a.beta2, step)));
  const FloatVec epsilon = Broadcast(a.epsilon);
  ForEachVector(end - begin, [&](int64_t offset, auto part) HWY_ATTR {
    const int64_t i = begin + offset;
    const FloatVec g = hn::Mul(scale, Load(a.gradient + i, part));
    const FloatVec m0 = Load(a.first_moment + i, part);
    const FloatVec m = hn::MulAdd(rest1, hn::Sub(g, m0), m0);
    const FloatVec v =
        hn::MulAdd(beta2, Load(a.second_moment + i, part), hn::Mul(rest2, hn::Mul(g, g)));
    const FloatVec root = hn::Add(hn::Div(hn::Sqrt(v), correction), epsilon);
    const FloatVec p = hn::Mul(Load(a.parameter + i, part), decay);
    Store(m, a.first_moment + i, part);
    Store(v, a.second_moment + i, part);
    Store(hn::Sub(p, hn::Div(hn::Mul(size, m), root)), a.parameter + i, part);
  });
}

void SgdRange(const SgdArgs& a, int64_t begin, int64_t end) {
  const FloatVec scale = Broadcast(a.gradient_scale), rate = Broadcast(a.learning_rate);
  const FloatVec decay = Broadcast(a.weight_decay), momentum = Broadcast(a.momentum);
  ForEachVector(end - begin, [&](int64_t offset, auto part) HWY_ATTR {
    const int64_t i = begin + offset;
    const FloatVec p = Load(a.parameter + i, part);
    FloatVec g = hn::MulAdd(decay, p, hn::Mul(scale, Load(a.gradient + i, part)));
    if (a.first_moment != nullptr) {
      g = hn::MulAdd(momentum, Load(a.first_moment + i, part), g);
      Store(g, a.first_moment + i, part);
    }
    Store(hn::NegMulAdd(rate, g, p), a.parameter + i, part);
  });
}

// Added to every squared gradient (Shazeer & Stern 2018, epsilon 1).
constexpr float kAdafactorEpsilon = 1e-30f;

// R of rows [begin, end): moving average of the mean square of each row.
void AdafactorRowMoments(const AdafactorArgs& a, double beta, int64_t begin, int64_t end) {
  const FloatVec scale = Broadcast(a.gradient_scale);
  const FloatVec epsilon = hn::Set(FloatTag(), kAdafactorEpsilon);
  for (int64_t row = begin; row < end; ++row) {
    const float* g = a.gradient + row * a.columns;
    const double sum = SumOverVectors(a.columns, [=](int64_t i, auto part) HWY_ATTR {
      const FloatVec v = hn::Mul(scale, Load(g + i, part));
      return hn::MulAdd(v, v, epsilon);
    });
    const double mean = sum / static_cast<double>(a.columns);
    a.row_moment[row] =
        static_cast<float>(beta * static_cast<double>(a.row_moment[row]) + (1.0 - beta) * mean);
  }
}

// C of columns [begin, end): the same over rows; f32 over 64 rows, f64 above.
void AdafactorColumnMoments(const AdafactorArgs& a, double beta, int64_t begin, int64_t end) {
  const FloatVec scale = Broadcast(a.gradient_scale);
  const FloatVec epsilon = hn::Set(FloatTag(), kAdafactorEpsilon);
  double total[kColumnsPerTask] = {};
  float part_sum[kColumnsPerTask];
  const int64_t width = end - begin;
  for (int64_t first = 0; first < a.rows; first += 64) {
    for (int64_t c = 0; c < width; ++c) part_sum[c] = 0.0f;
    float* to = part_sum;
    for (int64_t row = first; row < HWY_MIN(first + 64, a.rows); ++row) {
      const float* g = a.gradient + row * a.columns + begin;
      ForEachVector(width, [=](int64_t c, auto part) HWY_ATTR {
        const FloatVec v = hn::Mul(scale, Load(g + c, part));
        Store(hn::Add(Load(to + c, part), hn::MulAdd(v, v, epsilon)), to + c, part);
      });
    }
    for (int64_t c = 0; c < width; ++c) total[c] += static_cast<double>(part_sum[c]);
  }
  for (int64_t c = 0; c < width; ++c) {
    const double mean = total[c] / static_cast<double>(a.rows);
    float& moment = a.column_moment[begin + c];
    moment = static_cast<float>(beta * static_cast<double>(moment) + (1.0 - beta) * mean);
  }
}

// V of elements [begin, end).
void AdafactorMoments(const AdafactorArgs& a, double beta, int64_t begin, int64_t end) {
  const FloatVec scale = Broadcast(a.gradient_scale);
  const FloatVec epsilon = hn::Set(FloatTag(), kAdafactorEpsilon);
  const FloatVec keep = Broadcast(beta), rest = Broadcast(1.0 - beta);
  ForEachVector(end - begin, [&](int64_t offset, auto part) HWY_ATTR {
    const int64_t i = begin + offset;
    const FloatVec g = hn::Mul(scale, Load(a.gradient + i, part));
    const FloatVec square = hn::MulAdd(g, g, epsilon);
    const FloatVec old = hn::Mul(keep, Load(a.second_moment + i, part));
    Store(hn::MulAdd(rest, square, old), a.second_moment + i, part);
  });
}

// The update u = g / root of the moment before clipping. `mean_row` is the mean of R.
struct Update {
  const AdafactorArgs& a;
  FloatVec scale;
  FloatVec row_root;  // sqrt(R_i / mean R)
  int64_t at;         // first element of the row
  template <class P>
  HWY_INLINE FloatVec operator()(int64_t c, P part) const {
    const FloatVec g = hn::Mul(scale, Load(a.gradient + at + c, part));
    const FloatVec root = a.row_moment != nullptr
                              ? hn::Mul(row_root, hn::Sqrt(Load(a.column_moment + c, part)))
                              : hn::Sqrt(Load(a.second_moment + at + c, part));
    return hn::Div(g, root);
  }
};
HWY_INLINE Update RowUpdate(const AdafactorArgs& a, double mean_row, int64_t row) {
  const double root =
      a.row_moment != nullptr ? std::sqrt(static_cast<double>(a.row_moment[row]) / mean_row) : 1.0;
  return {a, Broadcast(a.gradient_scale), Broadcast(root), row * a.columns};
}

// Sums of squares of the updates and of the parameters of rows [begin, end).
void AdafactorSquares(const AdafactorArgs& a, double mean_row, int64_t begin, int64_t end,
                      double* sums) {
  sums[0] = sums[1] = 0;
  for (int64_t row = begin; row < end; ++row) {
    const Update update = RowUpdate(a, mean_row, row);
    const float* p = a.parameter + row * a.columns;
    sums[0] += SumOverVectors(a.columns, [&](int64_t c, auto part) HWY_ATTR {
      const FloatVec u = update(c, part);
      return hn::Mul(u, u);
    });
    if (!a.scale_parameter) continue;
    sums[1] += SumOverVectors(a.columns, [=](int64_t c, auto part) HWY_ATTR {
      const FloatVec v = Load(p + c, part);
      return hn::Mul(v, v);
    });
  }
}

// p = p * keep - rate * u for rows [begin, end).
void AdafactorApply(const AdafactorArgs& a, double mean_row, double keep, double rate,
                    int64_t begin, int64_t end) {
  const FloatVec keep_v = Broadcast(keep), rate_v = Broadcast(rate);
  for (int64_t row = begin; row < end; ++row) {
    const Update update = RowUpdate(a, mean_row, row);
    float* p = a.parameter + row * a.columns;
    ForEachVector(a.columns, [&](int64_t c, auto part) HWY_ATTR {
      const FloatVec kept = hn::Mul(Load(p + c, part), keep_v);
      Store(hn::NegMulAdd(rate_v, update(c, part), kept), p + c, part);
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
HWY_EXPORT(AdamWRange);
HWY_EXPORT(SgdRange);
HWY_EXPORT(AdafactorRowMoments);
HWY_EXPORT(AdafactorColumnMoments);
HWY_EXPORT(AdafactorMoments);
HWY_EXPORT(AdafactorSquares);
HWY_EXPORT(AdafactorApply);

// Pieces of the sums of squares: bounded, so that their results fit on the stack.
constexpr int64_t kMaxPieces = 64;

// sqrt of the mean of squares.
double RootMean(double sum, const AdafactorArgs& args) {
  return std::sqrt(sum / (static_cast<double>(args.rows) * static_cast<double>(args.columns)));
}
}  // namespace

void AdamW(const AdamWArgs& args, const Parallel& parallel) {
  const auto range = HWY_DYNAMIC_DISPATCH(AdamWRange);
  ParallelChunks(parallel, args.count, kChunkElements,
                 [&](int64_t begin, int64_t end) { range(args, begin, end); });
}

void Sgd(const SgdArgs& args, const Parallel& parallel) {
  const auto range = HWY_DYNAMIC_DISPATCH(SgdRange);
  ParallelChunks(parallel, args.count, kChunkElements,
                 [&](int64_t begin, int64_t end) { range(args, begin, end); });
}

void Adafactor(const AdafactorArgs& args, const Parallel& parallel) {
  if (args.rows <= 0 || args.columns <= 0) return;
  const double beta = 1.0 - std::pow(static_cast<double>(args.step), -0.8);
  const int64_t chunk_rows = ChunkRows(args.columns);
  double mean_row = 1.0;
  if (args.row_moment != nullptr) {
    const auto row_moments = HWY_DYNAMIC_DISPATCH(AdafactorRowMoments);
    ParallelChunks(parallel, args.rows, chunk_rows,
                   [&](int64_t begin, int64_t end) { row_moments(args, beta, begin, end); });
    const auto column_moments = HWY_DYNAMIC_DISPATCH(AdafactorColumnMoments);
    ParallelChunks(parallel, args.columns, kColumnsPerTask,
                   [&](int64_t begin, int64_t end) { column_moments(args, beta, begin, end); });
    double sum = 0;
    for (int64_t i = 0; i < args.rows; ++i) sum += static_cast<double>(args.row_moment[i]);
    mean_row = sum / static_cast<double>(args.rows);
  } else {
    const auto moments = HWY_DYNAMIC_DISPATCH(AdafactorMoments);
    ParallelChunks(parallel, args.rows * args.columns, kChunkElements,
                   [&](int64_t begin, int64_t end) { moments(args, beta, begin, end); });
  }

  const auto squares = HWY_DYNAMIC_DISPATCH(AdafactorSquares);
  const int64_t least = (args.rows + kMaxPieces - 1) / kMaxPieces;
  const int64_t piece_rows = least > chunk_rows ? least : chunk_rows;
  double sums[kMaxPieces][2] = {};
  ParallelChunks(parallel, args.rows, piece_rows, [&](int64_t begin, int64_t end) {
    squares(args, mean_row, begin, end, sums[begin / piece_rows]);
  });
  double update_squares = 0, parameter_squares = 0;
  for (const auto& piece : sums) {
    update_squares += piece[0];
    parameter_squares += piece[1];
  }
  double rate = args.learning_rate;
  if (args.scale_parameter) rate *= std::fmax(1e-3, RootMean(parameter_squares, args));
  // A NaN must survive the maximum.
  const double excess = RootMean(update_squares, args) / args.clip_threshold;
  const double clip = excess <= 1.0 ? 1.0 : excess;
  const double decay = args.weight_decay * (args.decay == AdafactorDecay::kT5X ? 1.0 : rate);

  const auto apply = HWY_DYNAMIC_DISPATCH(AdafactorApply);
  ParallelChunks(parallel, args.rows, chunk_rows, [&](int64_t begin, int64_t end) {
    apply(args, mean_row, 1.0 - decay, rate / clip, begin, end);
  });
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
