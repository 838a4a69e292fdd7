#include "io/dequantize.h"

#include <array>
#include <cstring>

#include "io/bytes.h"

namespace permafrost {
namespace {

constexpr int kSmallBlock = 32;   // elements of Q4_0 .. Q8_0
constexpr int kSuperBlock = 256;  // elements of the K types

uint8_t U8(const std::byte* bytes, int i) { return static_cast<uint8_t>(bytes[i]); }
int8_t I8(const std::byte* bytes, int i) { return static_cast<int8_t>(bytes[i]); }
float Half(const std::byte* bytes) { return HalfToFloat(LoadLittleEndian<uint16_t>(bytes)); }

// scale * 0, scale * 1, ...: products come out of this table, so that no compiler setting can fuse
// them with the addition that follows.
template <int kCount>
std::array<float, kCount> Products(float scale) {
  std::array<float, kCount> products;
  for (int i = 0; i < kCount; ++i) products[i] = scale * static_cast<float>(i);
  return products;
}

// The 4-bit number of element i in a block of 32: low halves first, then high halves.
int Nibble(const std::byte* quants, int i) {
  return i < 16 ? U8(quants, i) & 15 : U8(quants, i - 16) >> 4;
}

void F32(const std::byte* blocks, int64_t count, float* out) {
  std::memcpy(out, blocks, static_cast<size_t>(count) * sizeof(float));
}

void F16(const std::byte* blocks, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = Half(blocks + 2 * i);
}

void BF16(const std::byte* blocks, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = Bfloat16ToFloat(LoadLittleEndian<uint16_t>(blocks + 2 * i));
  }
}

// f16 scale; i8 q[32]
void Q8_0(const std::byte* block, int64_t count, float* out) {
  for (; count > 0; --count, block += 34, out += kSmallBlock) {
    const float scale = Half(block);
    for (int i = 0; i < kSmallBlock; ++i) out[i] = scale * static_cast<float>(I8(block, 2 + i));
  }
}

// f16 scale; u8 quants[16]
void Q4_0(const std::byte* block, int64_t count, float* out) {
  for (; count > 0; --count, block += 18, out += kSmallBlock) {
    const float scale = Half(block);
    for (int i = 0; i < kSmallBlock; ++i) {
      out[i] = scale * static_cast<float>(Nibble(block + 2, i) - 8);
    }
  }
}

// f16 scale; f16 minimum; u8 quants[16]
void Q4_1(const std::byte* block, int64_t count, float* out) {
  for (; count > 0; --count, block += 20, out += kSmallBlock) {
    const auto products = Products<16>(Half(block));
    const float minimum = Half(block + 2);
    for (int i = 0; i < kSmallBlock; ++i) out[i] = products[Nibble(block + 4, i)] + minimum;
  }
}

// f16 scale; u32 fifth bits; u8 quants[16]
void Q5_0(const std::byte* block, int64_t count, float* out) {
  for (; count > 0; --count, block += 22, out += kSmallBlock) {
    const float scale = Half(block);
    const uint32_t high = LoadLittleEndian<uint32_t>(block + 2);
    for (int i = 0; i < kSmallBlock; ++i) {
      const int quant = Nibble(block + 6, i) | static_cast<int>((high >> i) & 1u) << 4;
      out[i] = scale * static_cast<float>(quant - 16);
    }
  }
}

// f16 scale; f16 minimum; u32 fifth bits; u8 quants[16]
void Q5_1(const std::byte* block, int64_t count, float* out) {
  for (; count > 0; --count, block += 24, out += kSmallBlock) {
    const auto products = Products<32>(Half(block));
    const float minimum = Half(block + 2);
    const uint32_t high = LoadLittleEndian<uint32_t>(block + 4);
    for (int i = 0; i < kSmallBlock; ++i) {
      const int quant = Nibble(block + 8, i) | static_cast<int>((high >> i) & 1u) << 4;
      out[i] = products[quant] + minimum;
    }
  }
}

// Unpacks the 6-bit scale and minimum of sub-block b (0..7) from the 12 bytes of Q4_K and Q5_K.
struct ScaleAndMinimum {
  int scale;
  int minimum;
};
ScaleAndMinimum UnpackScale(const std::byte* packed, int b) {
  if (b < 4) return {U8(packed, b) & 63, U8(packed, b + 4) & 63};
  return {(U8(packed, b + 4) & 15) | (U8(packed, b - 4) >> 6) << 4,
          (U8(packed, b + 4) >> 4) | (U8(packed, b) >> 6) << 4};
}

// f16 scale of scales; f16 scale of minimums; u8 packed[12]; for Q5_K u8 fifth bits[32];
// u8 quants[128]. Sub-blocks 2g and 2g + 1 are the low and high halves of quants[32g ..].
template <bool kFifthBit>
void FourOrFiveBitK(const std::byte* block, int64_t count, float* out) {
  constexpr int kQuantsAt = kFifthBit ? 48 : 16;
  for (; count > 0; --count, block += kQuantsAt + 128, out += kSuperBlock) {
    const float scale = Half(block), minimum_scale = Half(block + 2);
    for (int b = 0; b < 8; ++b) {
      const ScaleAndMinimum sub = UnpackScale(block + 4, b);
      const auto products = Products<32>(scale * static_cast<float>(sub.scale));
      const float minimum = minimum_scale * static_cast<float>(sub.minimum);
      for (int l = 0; l < 32; ++l) {
        const int byte = U8(block, kQuantsAt + 32 * (b / 2) + l);
        int quant = b % 2 == 0 ? byte & 15 : byte >> 4;
        if constexpr (kFifthBit) quant += 16 * ((U8(block, 16 + l) >> b) & 1);
        out[32 * b + l] = products[quant] - minimum;
      }
    }
  }
}

// u8 low[128]; u8 high[64]; i8 scales[16]; f16 scale. Two halves of 128 elements; in each, element
// 32k + l takes 4 bits from `low` and 2 bits from high[l].
void Q6_K(const std::byte* block, int64_t count, float* out) {
  for (; count > 0; --count, block += 210, out += kSuperBlock) {
    const float scale = Half(block + 208);
    for (int half = 0; half < 2; ++half) {
      const std::byte* low = block + 64 * half;
      const std::byte* high = block + 128 + 32 * half;
      const std::byte* scales = block + 192 + 8 * half;
      for (int k = 0; k < 4; ++k) {
        for (int l = 0; l < 32; ++l) {
          const int low_byte = U8(low, l + 32 * (k % 2));
          const int low_bits = k < 2 ? low_byte & 15 : low_byte >> 4;
          const int high_bits = (U8(high, l) >> (2 * k)) & 3;
          const float sub_scale = scale * static_cast<float>(I8(scales, 2 * k + l / 16));
          out[128 * half + 32 * k + l] =
              sub_scale * static_cast<float>((low_bits | high_bits << 4) - 32);
        }
      }
    }
  }
}

constexpr GgmlType kTypes[] = {
    {0, "F32", 1, 4, F32},
    {1, "F16", 1, 2, F16},
    {2, "Q4_0", 32, 18, Q4_0},
    {3, "Q4_1", 32, 20, Q4_1},
    {6, "Q5_0", 32, 22, Q5_0},
    {7, "Q5_1", 32, 24, Q5_1},
    {8, "Q8_0", 32, 34, Q8_0},
    {9, "Q8_1", 32, 36, nullptr},
    {10, "Q2_K", 256, 84, nullptr},
    {11, "Q3_K", 256, 110, nullptr},
    {12, "Q4_K", 256, 144, FourOrFiveBitK<false>},
    {13, "Q5_K", 256, 176, FourOrFiveBitK<true>},
    {14, "Q6_K", 256, 210, Q6_K},
    {15, "Q8_K", 256, 292, nullptr},
    {16, "IQ2_XXS", 256, 66, nullptr},
    {17, "IQ2_XS", 256, 74, nullptr},
    {18, "IQ3_XXS", 256, 98, nullptr},
    {19, "IQ1_S", 256, 50, nullptr},
    {20, "IQ4_NL", 32, 18, nullptr},
    {21, "IQ3_S", 256, 110, nullptr},
    {22, "IQ2_S", 256, 82, nullptr},
    {23, "IQ4_XS", 256, 136, nullptr},
    {24, "I8", 1, 1, nullptr},
    {25, "I16", 1, 2, nullptr},
    {26, "I32", 1, 4, nullptr},
    {27, "I64", 1, 8, nullptr},
    {28, "F64", 1, 8, nullptr},
    {29, "IQ1_M", 256, 56, nullptr},
    {30, "BF16", 1, 2, BF16},
    {34, "TQ1_0", 256, 54, nullptr},
    {35, "TQ2_0", 256, 66, nullptr},
    {39, "MXFP4", 32, 17, nullptr},
};

}  // namespace

const GgmlType* FindGgmlType(uint32_t id) {
  for (const GgmlType& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

absl::Span<const GgmlType> GgmlTypes() { return kTypes; }

}  // namespace permafrost
