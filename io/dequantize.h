// Element types of GGUF tensors and their conversion to f32.
//
// A tensor of a quantized type is a row of blocks; a block holds `block_elements` numbers in
// `block_bytes` bytes with its own scale. The results equal those of the reference (ggml's
// dequantize_row_*, Python package gguf) bit for bit: all arithmetic is f32 with every product
// rounded, never fused with the following addition.
//
// Non-goals: quantizing, the 1- to 3-bit and IQ types (named, never read).

#ifndef PERMAFROST_IO_DEQUANTIZE_H_
#define PERMAFROST_IO_DEQUANTIZE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/types/span.h"

namespace permafrost {

// Converts `count` blocks at `blocks` (any alignment) to count * block_elements floats.
using DequantizeFunction = void (*)(const std::byte* blocks, int64_t count, float* out);

struct GgmlType {
  uint32_t id;
  std::string_view name;
  int block_elements;
  int block_bytes;
  DequantizeFunction dequantize;  // nullptr: the size is known, the content is not read
};

// The type of that id, or nullptr if the id is unknown or was withdrawn from the format.
const GgmlType* FindGgmlType(uint32_t id);

// All types that FindGgmlType knows.
absl::Span<const GgmlType> GgmlTypes();

}  // namespace permafrost

#endif  // PERMAFROST_IO_DEQUANTIZE_H_
