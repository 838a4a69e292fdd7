#include "engine/weight.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "engine/check.h"
#include "engine/context.h"

namespace permafrost {

absl::StatusOr<Weight> Weight::Pack(Context& c, int64_t outputs, int64_t inputs, DType format,
                                    const RowReader& read) {
  Weight w;
  w.format_ = format;
  w.outputs_ = outputs;
  w.inputs_ = inputs;
  w.data_ = Tensor({1, kernels::PackedBytes(format, outputs, inputs) / 4}, MemoryTag::kWeight,
                   DType::kI32);
  // A few panels at a time, so that loading needs little memory beside the packed weight.
  const int64_t block = kernels::kPanelWidth * 4;
  Tensor rows({std::min(block, outputs), inputs}, MemoryTag::kWorkspace);
  for (int64_t begin = 0; begin < outputs; begin += block) {
    const int64_t count = std::min(block, outputs - begin);
    PERMAFROST_RETURN_IF_ERROR(read(begin, count, rows.f32()));
    kernels::cpu::PackWeight({.source = rows.f32(),
                              .source_stride = inputs,
                              .output_begin = begin,
                              .rows = count,
                              .data = w.data_.raw(),
                              .dtype = format,
                              .outputs = outputs,
                              .inputs = inputs},
                             c.parallel());
  }
  return w;
}

Weight Weight::FromF32(Context& c, const Tensor& w, DType format) {
  auto read = [&](int64_t first, int64_t rows, float* out) {
    std::memcpy(out, w.row(first), static_cast<size_t>(rows * w.columns()) * sizeof(float));
    return absl::OkStatus();
  };
  return *Pack(c, w.rows(), w.columns(), format, read);
}

Tensor Weight::Rows(Context& c, absl::Span<const int32_t> ids) const {
  Tensor out({static_cast<int64_t>(ids.size()), inputs_});
  kernels::cpu::UnpackRows({.weight = packed(),
                            .ids = ids.data(),
                            .count = out.rows(),
                            .out = out.f32(),
                            .out_stride = inputs_},
                           c.parallel());
  return out;
}

Tensor Weight::ToF32(Context& c) const {
  std::vector<int32_t> ids(static_cast<size_t>(outputs_));
  std::iota(ids.begin(), ids.end(), 0);
  return Rows(c, ids);
}

uint64_t Weight::Checksum() const {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a over 32-bit words
  const int32_t* words = data_.i32();
  for (int64_t i = 0; i < data_.count(); ++i) {
    hash = (hash ^ static_cast<uint32_t>(words[i])) * 0x100000001b3u;
  }
  return hash;
}

}  // namespace permafrost
