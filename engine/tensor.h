// Tensor: plain memory with a shape. Contiguous, row-major, at most two dimensions ([rows,
// columns]; a vector is one row). It has no gradient; a Var (var.h) is a Tensor that may need one,
// a Weight (weight.h) a frozen matrix in a packed format.
#ifndef PERMAFROST_ENGINE_TENSOR_H_
#define PERMAFROST_ENGINE_TENSOR_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/types/span.h"
#include "engine/memory.h"
#include "kernels/types.h"

namespace permafrost {

using kernels::BF16;
using kernels::DType;

size_t DTypeBytes(DType dtype);

struct Shape {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t count() const { return rows * columns; }
  friend bool operator==(const Shape&, const Shape&) = default;
};
std::string ToString(const Shape& shape);  // "[3, 64]"

// A handle: copies share the memory.
class Tensor {
 public:
  Tensor() = default;
  // Contents are undefined.
  explicit Tensor(Shape shape, MemoryTag tag = MemoryTag::kActivation, DType dtype = DType::kF32);
  static Tensor Zeros(Shape shape, MemoryTag tag = MemoryTag::kActivation);
  static Tensor From(Shape shape, absl::Span<const float> values,
                     MemoryTag tag = MemoryTag::kActivation);

  explicit operator bool() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int64_t rows() const { return shape_.rows; }
  int64_t columns() const { return shape_.columns; }
  int64_t count() const { return shape_.count(); }
  DType dtype() const { return dtype_; }
  size_t bytes() const { return static_cast<size_t>(count()) * DTypeBytes(dtype_); }

  float* f32() const { return reinterpret_cast<float*>(Data(DType::kF32)); }
  BF16* bf16() const { return reinterpret_cast<BF16*>(Data(DType::kBF16)); }
  int32_t* i32() const { return reinterpret_cast<int32_t*>(Data(DType::kI32)); }
  std::byte* raw() const;
  absl::Span<const float> values() const { return {f32(), static_cast<size_t>(count())}; }
  float* row(int64_t i) const { return f32() + i * shape_.columns; }

  // Rows [begin, begin + rows) of the same memory.
  Tensor RowRange(int64_t begin, int64_t rows) const;
  Tensor Clone(MemoryTag tag = MemoryTag::kActivation) const;

  // Whether no other handle or view shares the memory, so that it may be overwritten in place.
  bool unique() const { return storage_.use_count() == 1; }
  // Names the contents of the whole storage (Storage::id).
  uint64_t storage_id() const { return storage_ == nullptr ? 0 : storage_->id(); }
  // What the memory is counted as; there must be memory.
  MemoryTag tag() const { return storage_->tag(); }
  void Retag(MemoryTag tag) const { storage_->Retag(tag); }
  // `t` itself if nothing else holds it, else a copy: what an op may overwrite in place.
  static Tensor Overwritable(Tensor t);

 private:
  std::byte* Data(DType expected) const;

  std::shared_ptr<Storage> storage_;
  int64_t offset_ = 0;  // elements
  Shape shape_;
  DType dtype_ = DType::kF32;
};

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_TENSOR_H_
