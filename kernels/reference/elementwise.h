// The definition of elementwise arithmetic, conversions and reductions (kernels/elementwise.h).
#ifndef PERMAFROST_KERNELS_REFERENCE_ELEMENTWISE_H_
#define PERMAFROST_KERNELS_REFERENCE_ELEMENTWISE_H_

#include <cmath>

#include "kernels/elementwise.h"

namespace permafrost::kernels::reference {

template <class T>
void Axpby(const AxpbyArgsOf<T>& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    const T ax = a.alpha == T(0) ? T(0) : a.alpha * a.x[i];
    a.y[i] = a.beta == T(0) ? ax : ax + a.beta * a.y[i];
  }
}

template <class T>
void Multiply(const MultiplyArgsOf<T>& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    const T product = a.a[i] * a.b[i];
    a.z[i] = a.write == Write::kAccumulate ? a.z[i] + product : product;
  }
}

template <class T>
void CopyRows(const CopyRowsArgsOf<T>& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t c = 0; c < a.width; ++c) {
      const T x = a.x[i * a.x_stride + c];
      T& y = a.y[i * a.y_stride + c];
      y = a.write == Write::kAccumulate ? y + x : x;
    }
  }
}

template <class T>
void AddBias(const AddBiasArgsOf<T>& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t c = 0; c < a.width; ++c) a.y[i * a.y_stride + c] += a.bias[c];
  }
}

template <class T>
void ColumnSum(const ColumnSumArgsOf<T>& a) {
  for (int64_t c = 0; c < a.width; ++c) {
    T sum = 0;
    for (int64_t i = 0; i < a.rows; ++i) sum += a.x[i * a.x_stride + c];
    a.out[c] += sum;
  }
}

template <class T>
void ScaleColumns(const ScaleColumnsArgsOf<T>& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t c = 0; c < a.width; ++c) a.y[i * a.width + c] = a.x[i * a.width + c] * a.scale[c];
  }
}

template <class T>
void ColumnDot(const ColumnDotArgsOf<T>& a) {
  for (int64_t c = 0; c < a.width; ++c) {
    T sum = 0;
    for (int64_t i = 0; i < a.rows; ++i) sum += a.a[i * a.width + c] * a.b[i * a.width + c];
    a.out[c] += sum;
  }
}

inline void ConvertToBF16(const ToBF16Args& a) {
  for (int64_t i = 0; i < a.count; ++i) a.y[i] = ToBF16(a.x[i]);
}

inline void ConvertFromBF16(const FromBF16Args& a) {
  for (int64_t i = 0; i < a.count; ++i) a.y[i] = ToFloat(a.x[i]);
}

template <class T>
double SumOfSquares(const T* x, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

template <class T>
bool AllFinite(const T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) return false;
  }
  return true;
}

}  // namespace permafrost::kernels::reference

#endif  // PERMAFROST_KERNELS_REFERENCE_ELEMENTWISE_H_
