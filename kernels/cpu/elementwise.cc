// Elementwise arithmetic, conversions and reductions. Definition: kernels/reference/elementwise.h.
#include "kernels/elementwise.h"

#include "kernels/cpu/chunks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/bf16-inl.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

void AxpbyRange(const AxpbyArgs& a, int64_t begin, int64_t end) {
  const FloatTag d;
  const FloatVec alpha = hn::Set(d, a.alpha), beta = hn::Set(d, a.beta);
  const float* x = a.x;
  float* y = a.y;
  if (a.alpha == 0.0f) {
    // x may be null, and is not read.
    ForEachVector(end - begin, [=, &a](int64_t i, auto part) HWY_ATTR {
      float* to = y + begin + i;
      Store(a.beta == 0.0f ? hn::Zero(FloatTag()) : hn::Mul(beta, Load(to, part)), to, part);
    });
  } else if (a.beta == 0.0f) {
    ForEachVector(end - begin, [=](int64_t i, auto part) HWY_ATTR {
      Store(hn::Mul(alpha, Load(x + begin + i, part)), y + begin + i, part);
    });
  } else {
    ForEachVector(end - begin, [=](int64_t i, auto part) HWY_ATTR {
      float* to = y + begin + i;
      const FloatVec scaled = hn::Mul(beta, Load(to, part));
      Store(hn::MulAdd(alpha, Load(x + begin + i, part), scaled), to, part);
    });
  }
}

void MultiplyRange(const MultiplyArgs& a, int64_t begin, int64_t end) {
  ForEachVector(end - begin, [&a, begin](int64_t offset, auto part) HWY_ATTR {
    const int64_t i = begin + offset;
    const FloatVec u = Load(a.a + i, part), v = Load(a.b + i, part);
    Store(a.write == Write::kAccumulate ? hn::MulAdd(u, v, Load(a.z + i, part)) : hn::Mul(u, v),
          a.z + i, part);
  });
}

// to[c] (+)= from[c].
void CopyRow(const float* from, float* to, int64_t width, Write write) {
  ForEachVector(width, [=](int64_t c, auto part) HWY_ATTR {
    const FloatVec v = Load(from + c, part);
    Store(write == Write::kAccumulate ? hn::Add(Load(to + c, part), v) : v, to + c, part);
  });
}

void CopyRange(const CopyRowsArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    CopyRow(a.x + i * a.x_stride, a.y + i * a.y_stride, a.width, a.write);
  }
}

void AddBiasRange(const AddBiasArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    CopyRow(a.bias, a.y + i * a.y_stride, a.width, Write::kAccumulate);
  }
}

// partial = sum of rows [begin, end).
void SumRows(const ColumnSumArgs& a, int64_t begin, int64_t end, float* partial) {
  for (int64_t i = begin; i < end; ++i) {
    CopyRow(a.x + i * a.x_stride, partial, a.width,
            i == begin ? Write::kOverwrite : Write::kAccumulate);
  }
}

void ScaleColumnsRange(const ScaleColumnsArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float* from = a.x + i * a.width;
    float* to = a.y + i * a.width;
    ForEachVector(a.width, [=, &a](int64_t c, auto part) HWY_ATTR {
      Store(hn::Mul(Load(from + c, part), Load(a.scale + c, part)), to + c, part);
    });
  }
}

// partial = sum of the products of rows [begin, end).
void DotRows(const ColumnDotArgs& a, int64_t begin, int64_t end, float* partial) {
  for (int64_t i = begin; i < end; ++i) {
    const float *u = a.a + i * a.width, *v = a.b + i * a.width;
    const bool first = i == begin;
    ForEachVector(a.width, [=](int64_t c, auto part) HWY_ATTR {
      const FloatVec sum = first ? hn::Zero(FloatTag()) : Load(partial + c, part);
      Store(hn::MulAdd(Load(u + c, part), Load(v + c, part), sum), partial + c, part);
    });
  }
}

// out[c] += sum of `chunks` partial rows of `width`, in order, for c in [begin, end).
void AddPartials(const float* partials, int64_t width, int64_t chunks, float* out, int64_t begin,
                 int64_t end) {
  ForEachVector(end - begin, [=](int64_t offset, auto part) HWY_ATTR {
    const int64_t c = begin + offset;
    FloatVec sum = Load(partials + c, part);
    for (int64_t k = 1; k < chunks; ++k) sum = hn::Add(sum, Load(partials + k * width + c, part));
    Store(hn::Add(Load(out + c, part), sum), out + c, part);
  });
}

void ToBF16Range(const ToBF16Args& a, int64_t begin, int64_t end) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) StoreBF16(d, hn::LoadU(d, a.x + i), &a.y[i].bits);
  if (i < end) {
    uint16_t bits[hn::MaxLanes(FloatTag())];
    StoreBF16(d, Load(a.x + i, Part{end - i}), bits);
    for (int64_t k = 0; i + k < end; ++k) a.y[i + k].bits = bits[k];
  }
}

void FromBF16Range(const FromBF16Args& a, int64_t begin, int64_t end) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) hn::StoreU(LoadBF16(d, &a.x[i].bits), d, a.y + i);
  if (i < end) {
    uint16_t bits[hn::MaxLanes(FloatTag())] = {};
    for (int64_t k = 0; i + k < end; ++k) bits[k] = a.x[i + k].bits;
    Store(LoadBF16(d, bits), a.y + i, Part{end - i});
  }
}

double SumOfSquaresImpl(const float* x, int64_t count) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, hn::ScalableTag<double>> half;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  constexpr int64_t kChunk = 4096;
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t end = HWY_MIN(begin + kChunk, count);
    auto s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
    int64_t i = begin;
    for (; i + 4 * lanes <= end; i += 4 * lanes) {
      const auto v0 = hn::PromoteTo(d, hn::LoadU(half, x + i));
      const auto v1 = hn::PromoteTo(d, hn::LoadU(half, x + i + lanes));
      const auto v2 = hn::PromoteTo(d, hn::LoadU(half, x + i + 2 * lanes));
      const auto v3 = hn::PromoteTo(d, hn::LoadU(half, x + i + 3 * lanes));
      s0 = hn::MulAdd(v0, v0, s0);
      s1 = hn::MulAdd(v1, v1, s1);
      s2 = hn::MulAdd(v2, v2, s2);
      s3 = hn::MulAdd(v3, v3, s3);
    }
    double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
    for (; i < end; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    total += sum;
  }
  return total;
}

bool AllFiniteImpl(const float* x, int64_t count) {
  const hn::RebindToUnsigned<FloatTag> du;
  const auto exponent = hn::Set(du, 0x7f800000u);
  // The largest exponent field, as an unsigned number, is that of infinity and NaN.
  constexpr int64_t kChunk = 4096;
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    auto largest = hn::Zero(du);
    ForEachVector(HWY_MIN(kChunk, count - begin), [&](int64_t i, auto part) HWY_ATTR {
      const auto bits = hn::BitCast(du, Load(x + begin + i, part));
      largest = hn::Max(largest, hn::And(bits, exponent));
    });
    if (!hn::AllFalse(du, hn::Eq(largest, exponent))) return false;
  }
  return true;
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace permafrost::kernels::cpu {
namespace {
HWY_EXPORT(AxpbyRange);
HWY_EXPORT(MultiplyRange);
HWY_EXPORT(CopyRange);
HWY_EXPORT(AddBiasRange);
HWY_EXPORT(SumRows);
HWY_EXPORT(ScaleColumnsRange);
HWY_EXPORT(DotRows);
HWY_EXPORT(AddPartials);
HWY_EXPORT(ToBF16Range);
HWY_EXPORT(FromBF16Range);
HWY_EXPORT(SumOfSquaresImpl);
HWY_EXPORT(AllFiniteImpl);

// Rows of one partial sum: kReductionRows of norm.h.
constexpr int64_t kSumRows = 64;

template <class Args>
void Run(const Args& args, const Parallel& parallel, int64_t count, int64_t size,
         void (*range)(const Args&, int64_t, int64_t)) {
  ParallelChunks(parallel, count, size,
                 [&](int64_t begin, int64_t end) { range(args, begin, end); });
}
}  // namespace

void Axpby(const AxpbyArgs& args, const Parallel& parallel) {
  Run(args, parallel, args.count, kChunkElements, HWY_DYNAMIC_DISPATCH(AxpbyRange));
}
void Multiply(const MultiplyArgs& args, const Parallel& parallel) {
  Run(args, parallel, args.count, kChunkElements, HWY_DYNAMIC_DISPATCH(MultiplyRange));
}
void CopyRows(const CopyRowsArgs& args, const Parallel& parallel) {
  Run(args, parallel, args.rows, ChunkRows(args.width), HWY_DYNAMIC_DISPATCH(CopyRange));
}
void AddBias(const AddBiasArgs& args, const Parallel& parallel) {
  Run(args, parallel, args.rows, ChunkRows(args.width), HWY_DYNAMIC_DISPATCH(AddBiasRange));
}
void ConvertToBF16(const ToBF16Args& args, const Parallel& parallel) {
  Run(args, parallel, args.count, kChunkElements, HWY_DYNAMIC_DISPATCH(ToBF16Range));
}
void ConvertFromBF16(const FromBF16Args& args, const Parallel& parallel) {
  Run(args, parallel, args.count, kChunkElements, HWY_DYNAMIC_DISPATCH(FromBF16Range));
}

// out += the column sums of what `rows` puts into each chunk's partial row; Args as ColumnSumArgs.
template <class Args>
void Reduce(const Args& args, const Parallel& parallel,
            void (*rows)(const Args&, int64_t, int64_t, float*)) {
  if (args.rows <= 0) return;
  ParallelChunks(parallel, args.rows, kSumRows, [&](int64_t begin, int64_t end) {
    rows(args, begin, end, args.workspace + begin / kSumRows * args.width);
  });
  const auto add = HWY_DYNAMIC_DISPATCH(AddPartials);
  const int64_t chunks = (args.rows + kSumRows - 1) / kSumRows;
  ParallelChunks(parallel, args.width, kColumnsPerTask, [&](int64_t begin, int64_t end) {
    add(args.workspace, args.width, chunks, args.out, begin, end);
  });
}

void ColumnSum(const ColumnSumArgs& args, const Parallel& parallel) {
  Reduce(args, parallel, HWY_DYNAMIC_DISPATCH(SumRows));
}
void ColumnDot(const ColumnDotArgs& args, const Parallel& parallel) {
  Reduce(args, parallel, HWY_DYNAMIC_DISPATCH(DotRows));
}
void ScaleColumns(const ScaleColumnsArgs& args, const Parallel& parallel) {
  Run(args, parallel, args.rows, ChunkRows(args.width), HWY_DYNAMIC_DISPATCH(ScaleColumnsRange));
}

double SumOfSquares(const float* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(SumOfSquaresImpl)(x, count);
}

bool AllFinite(const float* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(AllFiniteImpl)(x, count);
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
