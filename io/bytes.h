// Small helpers for binary file formats: unaligned little-endian loads, half-precision numbers,
// and sizes that cannot overflow.

#ifndef PERMAFROST_IO_BYTES_H_
#define PERMAFROST_IO_BYTES_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "absl/types/span.h"

namespace permafrost {

static_assert(std::endian::native == std::endian::little,
              "the file formats here are little-endian and are read without swapping");

// Reads a T from any address.
template <typename T>
T LoadLittleEndian(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

// IEEE 754 half to single, exact: subnormals, infinities and NaN payloads included.
inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, which f32 holds as a normal number
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t biased = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | biased << 23 | mantissa << 13);
}

// bfloat16 to single: the upper half of the bits.
inline float Bfloat16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// a * b for a, b >= 0, or nothing if it exceeds int64.
inline std::optional<int64_t> CheckedMultiply(int64_t a, int64_t b) {
  int64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// Number of elements of a shape. Nothing if a dimension is negative or if the product of the
// non-zero dimensions exceeds int64, so that products of any subset of dimensions are safe too.
inline std::optional<int64_t> ElementCount(absl::Span<const int64_t> shape) {
  std::optional<int64_t> product = 1;
  bool empty = false;
  for (const int64_t size : shape) {
    if (size < 0) return std::nullopt;
    if (size == 0) {
      empty = true;
      continue;
    }
    product = CheckedMultiply(*product, size);
    if (!product.has_value()) return std::nullopt;
  }
  return empty ? 0 : *product;
}

// "[2, 3]", as shapes appear in messages.
inline std::string ShapeText(absl::Span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

// True if the text has a NUL, another ASCII control character or DEL. Such names are refused: they
// cut or forge lines of messages and logs.
inline bool HasControlCharacter(std::string_view text) {
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return true;
  }
  return false;
}

// Fingerprint, not a cryptographic hash: FNV-1a over bytes, the same on every machine.
inline constexpr uint64_t kFingerprintSeed = 0xcbf29ce484222325u;
inline uint64_t Fingerprint(const void* data, size_t size, uint64_t seed = kFingerprintSeed) {
  const unsigned char* bytes = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < size; ++i) seed = (seed ^ bytes[i]) * 0x100000001b3u;
  return seed;
}

}  // namespace permafrost

#endif  // PERMAFROST_IO_BYTES_H_
