// Elementwise arithmetic, conversions and reductions over contiguous arrays or strided rows.
#ifndef PERMAFROST_KERNELS_ELEMENTWISE_H_
#define PERMAFROST_KERNELS_ELEMENTWISE_H_

#include "kernels/types.h"

namespace permafrost::kernels {

// y = alpha x + beta y. With beta == 0 y is not read (NaN there does no harm). x may be null if
// alpha == 0.
template <class T>
struct AxpbyArgsOf {
  T alpha;
  const T* x;
  T beta;
  T* y;
  int64_t count;
};

// z = a * b (elementwise), (+)=.
template <class T>
struct MultiplyArgsOf {
  const T* a;
  const T* b;
  T* z;
  Write write;
  int64_t count;
};

// y[i, :] (+)= x[i, :] for strided rows: column slices and concatenations.
template <class T>
struct CopyRowsArgsOf {
  const T* x;
  int64_t x_stride;
  T* y;
  int64_t y_stride;
  int64_t rows, width;
  Write write;
};

// y[i, :] += bias.
template <class T>
struct AddBiasArgsOf {
  const T* bias;  // [width]
  T* y;
  int64_t y_stride;
  int64_t rows, width;
};

// out[c] += sum over rows of x[i, c]; fixed chunks of rows (kReductionRows of norm.h), then chunk
// order.
template <class T>
struct ColumnSumArgsOf {
  const T* x;
  int64_t x_stride;
  T* out;  // [width]
  int64_t rows, width;
  T* workspace;  // ColumnSumWorkspace(...) elements
};

// y[i, :] = x[i, :] * scale; y may be x.
template <class T>
struct ScaleColumnsArgsOf {
  const T* x;      // [rows, width]
  const T* scale;  // [width]
  T* y;            // [rows, width]
  int64_t rows, width;
};

// out[c] += sum over rows of a[i, c] * b[i, c]; chunks as in ColumnSum.
template <class T>
struct ColumnDotArgsOf {
  const T* a;  // [rows, width]
  const T* b;  // [rows, width]
  T* out;      // [width]
  int64_t rows, width;
  T* workspace;  // ColumnSumWorkspace(...) elements
};

using AxpbyArgs = AxpbyArgsOf<float>;
using MultiplyArgs = MultiplyArgsOf<float>;
using CopyRowsArgs = CopyRowsArgsOf<float>;
using AddBiasArgs = AddBiasArgsOf<float>;
using ColumnSumArgs = ColumnSumArgsOf<float>;
using ScaleColumnsArgs = ScaleColumnsArgsOf<float>;
using ColumnDotArgs = ColumnDotArgsOf<float>;

inline int64_t ColumnSumWorkspace(int64_t rows, int64_t width) {
  return ((rows + 63) / 64) * width;
}

// Round to nearest even.
struct ToBF16Args {
  const float* x;
  BF16* y;
  int64_t count;
};
struct FromBF16Args {
  const BF16* x;
  float* y;
  int64_t count;
};

namespace cpu {
void Axpby(const AxpbyArgs& args, const Parallel& parallel);
void Multiply(const MultiplyArgs& args, const Parallel& parallel);
void CopyRows(const CopyRowsArgs& args, const Parallel& parallel);
void AddBias(const AddBiasArgs& args, const Parallel& parallel);
void ColumnSum(const ColumnSumArgs& args, const Parallel& parallel);
void ScaleColumns(const ScaleColumnsArgs& args, const Parallel& parallel);
void ColumnDot(const ColumnDotArgs& args, const Parallel& parallel);
void ConvertToBF16(const ToBF16Args& args, const Parallel& parallel);
void ConvertFromBF16(const FromBF16Args& args, const Parallel& parallel);
// Sum of squares in f64 over fixed chunks of 4096 elements, added in chunk order.
double SumOfSquares(const float* x, int64_t count);
// Whether every element is finite.
bool AllFinite(const float* x, int64_t count);
}  // namespace cpu

}  // namespace permafrost::kernels

#endif  // PERMAFROST_KERNELS_ELEMENTWISE_H_
