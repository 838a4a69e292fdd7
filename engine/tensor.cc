#include "engine/tensor.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/check.h"

namespace permafrost {

size_t DTypeBytes(DType dtype) { return dtype == DType::kBF16 ? 2 : 4; }

std::string ToString(const Shape& shape) {
  return absl::StrCat("[", shape.rows, ", ", shape.columns, "]");
}

Tensor::Tensor(Shape shape, MemoryTag tag, DType dtype) : shape_(shape), dtype_(dtype) {
  PERMAFROST_CHECK(shape.rows >= 0 && shape.columns >= 0) << "Tensor: " << ToString(shape);
  storage_ = std::make_shared<Storage>(bytes(), tag);
}

Tensor Tensor::Zeros(Shape shape, MemoryTag tag) {
  Tensor t(shape, tag);
  std::memset(t.raw(), 0, t.bytes());
  return t;
}

Tensor Tensor::From(Shape shape, absl::Span<const float> values, MemoryTag tag) {
  Tensor t(shape, tag);
  PERMAFROST_CHECK(t.count() == static_cast<int64_t>(values.size()))
      << "Tensor::From: " << ToString(shape) << " from " << values.size() << " values";
  if (!values.empty()) std::memcpy(t.raw(), values.data(), t.bytes());
  return t;
}

std::byte* Tensor::raw() const {
  return storage_ == nullptr ? nullptr
                             : storage_->data() + static_cast<size_t>(offset_) * DTypeBytes(dtype_);
}

std::byte* Tensor::Data(DType expected) const {
  PERMAFROST_CHECK(dtype_ == expected) << "Tensor: read as another element type";
  return raw();
}

Tensor Tensor::RowRange(int64_t begin, int64_t rows) const {
  PERMAFROST_CHECK(begin >= 0 && rows >= 0 && begin + rows <= shape_.rows)
      << "Tensor::RowRange: rows " << begin << " + " << rows << " of " << ToString(shape_);
  Tensor view = *this;
  view.offset_ += begin * shape_.columns;
  view.shape_.rows = rows;
  return view;
}

Tensor Tensor::Clone(MemoryTag tag) const {
  Tensor copy(shape_, tag, dtype_);
  if (bytes() > 0) std::memcpy(copy.raw(), raw(), bytes());
  return copy;
}

Tensor Tensor::Overwritable(Tensor t) {
  if (!t.unique()) return t.Clone();
  t.storage_->Renew();
  return t;
}

}  // namespace permafrost
