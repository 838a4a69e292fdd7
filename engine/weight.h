// Weight: a frozen matrix [outputs, inputs], packed once at load into the layout the matrix product
// wants. It has no gradient and cannot change. Formats: f32 (lossless) and bf16; int8 and nf4 would
// be further values of the packed dtype.
#ifndef PERMAFROST_ENGINE_WEIGHT_H_
#define PERMAFROST_ENGINE_WEIGHT_H_

#include <functional>

#include "absl/status/statusor.h"
#include "engine/tensor.h"
#include "kernels/gemm.h"

namespace permafrost {

struct Context;

class Weight {
 public:
  Weight() = default;
  // Packs rows delivered by `read(first_row, rows, out)`, row-major f32, in order from row 0.
  using RowReader = std::function<absl::Status(int64_t first_row, int64_t rows, float* out)>;
  static absl::StatusOr<Weight> Pack(Context& c, int64_t outputs, int64_t inputs, DType format,
                                     const RowReader& read);
  static Weight FromF32(Context& c, const Tensor& w, DType format);  // w [outputs, inputs]

  explicit operator bool() const { return static_cast<bool>(data_); }
  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  DType format() const { return format_; }
  int64_t bytes() const { return static_cast<int64_t>(data_.bytes()); }
  kernels::PackedWeight packed() const { return {data_.raw(), format_, outputs_, inputs_}; }

  // Rows W[ids[i], :] as f32 [count, inputs].
  Tensor Rows(Context& c, absl::Span<const int32_t> ids) const;
  Tensor ToF32(Context& c) const;
  // A hash of all packed bytes: tests and run.json use it to show that nothing moved.
  uint64_t Checksum() const;

 private:
  Tensor data_;
  DType format_ = DType::kF32;
  int64_t outputs_ = 0;
  int64_t inputs_ = 0;
};

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_WEIGHT_H_
