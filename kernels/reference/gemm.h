// The definition of the matrix products, in scalar code. See kernels/gemm.h for shapes.
//
// Packed weights are defined on their unpacked meaning: PackedElement(w, n, k) is W[n][k].
#ifndef PERMAFROST_KERNELS_REFERENCE_GEMM_H_
#define PERMAFROST_KERNELS_REFERENCE_GEMM_H_

#include <cstdint>

#include "kernels/gemm.h"

namespace permafrost::kernels::reference {

// c (+)= alpha op(a) op(b).
template <class T>
void MatMul(const MatMulArgsOf<T>& args) {
  for (int64_t i = 0; i < args.m; ++i) {
    for (int64_t j = 0; j < args.n; ++j) {
      T sum = T(0);
      for (int64_t p = 0; p < args.k; ++p) {
        const T a =
            args.transpose_a ? args.a[p * args.a_stride + i] : args.a[i * args.a_stride + p];
        const T b =
            args.transpose_b ? args.b[j * args.b_stride + p] : args.b[p * args.b_stride + j];
        sum += a * b;
      }
      T& c = args.c[i * args.c_stride + j];
      c = args.write == Write::kAccumulate ? c + args.alpha * sum : args.alpha * sum;
    }
  }
}

// Where W[n][k] lies in the packed array, in elements.
inline int64_t PackedIndex(DType dtype, int64_t inputs, int64_t n, int64_t k) {
  const int64_t panel = n / kPanelWidth, j = n % kPanelWidth;
  if (dtype == DType::kF32) return (panel * inputs + k) * kPanelWidth + j;
  const int64_t pairs = (inputs + 1) / 2;
  return ((panel * pairs + k / 2) * kPanelWidth + j) * 2 + k % 2;
}

inline float PackedElement(const PackedWeight& w, int64_t n, int64_t k) {
  const int64_t i = PackedIndex(w.dtype, w.inputs, n, k);
  return w.dtype == DType::kF32 ? static_cast<const float*>(w.data)[i]
                                : ToFloat(static_cast<const BF16*>(w.data)[i]);
}

inline void PackWeight(const PackArgs& args) {
  const int64_t padded = (args.output_begin + args.rows == args.outputs)
                             ? PanelCount(args.outputs) * kPanelWidth - args.output_begin
                             : args.rows;
  const int64_t inputs = args.dtype == DType::kBF16 ? (args.inputs + 1) / 2 * 2 : args.inputs;
  for (int64_t r = 0; r < padded; ++r) {
    for (int64_t k = 0; k < inputs; ++k) {
      const float value =
          r < args.rows && k < args.inputs ? args.source[r * args.source_stride + k] : 0.0f;
      const int64_t i = PackedIndex(args.dtype, args.inputs, args.output_begin + r, k);
      if (args.dtype == DType::kF32) {
        static_cast<float*>(args.data)[i] = value;
      } else {
        static_cast<BF16*>(args.data)[i] = ToBF16(value);
      }
    }
  }
}

inline void UnpackRows(const UnpackRowsArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) {
    for (int64_t k = 0; k < args.weight.inputs; ++k) {
      args.out[i * args.out_stride + k] = PackedElement(args.weight, args.ids[i], k);
    }
  }
}

// An activation as the product sees it: rounded to bf16 when the weight is bf16.
inline float ProductInput(DType weight_dtype, float value) {
  return weight_dtype == DType::kBF16 ? ToFloat(ToBF16(value)) : value;
}

// y (+)= x W^T + bias, summed in T.
template <class T>
void PackedForward(const PackedForwardArgs& args) {
  const PackedWeight& w = args.weight;
  for (int64_t r = 0; r < args.rows; ++r) {
    for (int64_t n = 0; n < w.outputs; ++n) {
      T sum = args.bias != nullptr ? T(args.bias[n]) : T(0);
      for (int64_t k = 0; k < w.inputs; ++k) {
        sum += T(ProductInput(w.dtype, args.x[r * args.x_stride + k])) * T(PackedElement(w, n, k));
      }
      float& y = args.y[r * args.y_stride + n];
      y = static_cast<float>(args.write == Write::kAccumulate ? T(y) + sum : sum);
    }
  }
}

// dx (+)= dy W, summed in T.
template <class T>
void PackedBackward(const PackedBackwardArgs& args) {
  const PackedWeight& w = args.weight;
  for (int64_t r = 0; r < args.rows; ++r) {
    for (int64_t k = 0; k < w.inputs; ++k) {
      T sum = T(0);
      for (int64_t n = 0; n < w.outputs; ++n) {
        sum +=
            T(ProductInput(w.dtype, args.dy[r * args.dy_stride + n])) * T(PackedElement(w, n, k));
      }
      float& dx = args.dx[r * args.dx_stride + k];
      dx = static_cast<float>(args.write == Write::kAccumulate ? T(dx) + sum : sum);
    }
  }
}

}  // namespace permafrost::kernels::reference

#endif  // PERMAFROST_KERNELS_REFERENCE_GEMM_H_
