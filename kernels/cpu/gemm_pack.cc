// Packing of weights at load, and the copies that products make on the fly.
#include "kernels/cpu/gemm_pack.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm_pack.cc"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/bf16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace permafrost::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// The 128-bit blocks at `from`, + step, + 2 step, ..., as many as the vector has.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::VFromD<D> LoadBlocks(D d, const T* from, int64_t step) {
#if HWY_TARGET == HWY_AVX3
  const hn::Half<D> d2;
  const hn::Half<decltype(d2)> d1;
  return hn::Combine(
      d, hn::Combine(d2, hn::LoadU(d1, from + 3 * step), hn::LoadU(d1, from + 2 * step)),
      hn::Combine(d2, hn::LoadU(d1, from + step), hn::LoadU(d1, from)));
#elif HWY_TARGET == HWY_AVX2
  const hn::Half<D> d1;
  return hn::Combine(d, hn::LoadU(d1, from + step), hn::LoadU(d1, from));
#else
  (void)step;
  return hn::LoadU(d, from);
#endif
}

// A vector's number of rows times 4 columns: block b of the loads holds row 4 b + i, so that
// transposing 4x4 inside the blocks leaves whole columns.
HWY_INLINE void TransposeColumns(const uint32_t* from, int64_t from_stride, uint32_t* to,
                                 int64_t to_stride) {
  const hn::ScalableTag<uint32_t> d;
  const hn::Repartition<uint64_t, decltype(d)> d64;
  const auto r0 = LoadBlocks(d, from, 4 * from_stride);
  const auto r1 = LoadBlocks(d, from + from_stride, 4 * from_stride);
  const auto r2 = LoadBlocks(d, from + 2 * from_stride, 4 * from_stride);
  const auto r3 = LoadBlocks(d, from + 3 * from_stride, 4 * from_stride);
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, r0, r1));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, r2, r3));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, r0, r1));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, low01, low23)), d, to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23)), d, to + to_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, high01, high23)), d, to + 2 * to_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23)), d, to + 3 * to_stride);
}

void Transpose(const uint32_t* from, int64_t from_stride, int64_t rows, int64_t cols, uint32_t* to,
               int64_t to_stride) {
  constexpr int64_t kBlock = 256;  // the lines that a block writes stay in L1
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<uint32_t>()));
  for (int64_t c0 = 0; c0 < cols; c0 += kBlock) {
    const int64_t c1 = c0 + kBlock < cols ? c0 + kBlock : cols;
    int64_t r = 0;
    for (; r + lanes <= rows; r += lanes) {
      const uint32_t* row = from + r * from_stride;
      int64_t c = c0;
      for (; c + 4 <= c1; c += 4) {
        TransposeColumns(row + c, from_stride, to + c * to_stride + r, to_stride);
      }
      for (; c < c1; ++c) {
        for (int64_t i = 0; i < lanes; ++i) to[c * to_stride + r + i] = row[i * from_stride + c];
      }
    }
    for (; r < rows; ++r) {
      for (int64_t c = c0; c < c1; ++c) to[c * to_stride + r] = from[r * from_stride + c];
    }
  }
}

void RoundRows(const float* from, int64_t from_stride, int64_t rows, int64_t cols, float* to,
               int64_t to_stride) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    int64_t c = 0;
    for (; c + lanes <= cols; c += lanes)
      hn::StoreU(RoundToBF16(d, hn::LoadU(d, from + c)), d, to + c);
    for (; c < cols; ++c) to[c] = ToFloat(ToBF16(from[c]));
    if (cols % 2 != 0) to[cols] = 0;
  }
}

HWY_INLINE uint64_t SwapMiddle(uint64_t x) {
  return (x & 0xffff00000000ffffu) | ((x & 0xffff0000u) << 16) | ((x >> 16) & 0xffff0000u);
}

// Packed bf16 words hold (even k, odd k) of one output n. For two neighbouring outputs and one pair
// of inputs that is a 2x2 matrix of 16-bit values inside 64 bits: swapping its middle two
// transposes it, and transposing the 64-bit units does the rest.
//   from [k_pairs][48] words, columns [0, 2 n_pairs)  ->  to [n_pairs][48] words, 2 k_pairs of them
void RepackPairs(const uint64_t* from, int64_t k_pairs, int64_t n_pairs, uint64_t* to) {
  constexpr int64_t kStride = kPanelWidth / 2;
  const hn::ScalableTag<uint64_t> d;
  const hn::Repartition<uint8_t, decltype(d)> d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  alignas(16) static constexpr uint8_t kSwapMiddle[16] = {0, 1, 4,  5,  2,  3,  6,  7,
                                                          8, 9, 12, 13, 10, 11, 14, 15};
  const auto swap = hn::LoadDup128(d8, kSwapMiddle);
  int64_t k = 0;
  for (; k + lanes <= k_pairs; k += lanes) {
    const uint64_t* rows = from + k * kStride;
    int64_t n = 0;
    for (; n + 2 <= n_pairs; n += 2) {
      // Block b: rows 2 b (even) and 2 b + 1 (odd), units n and n + 1.
      const auto even = hn::BitCast(d8, LoadBlocks(d, rows + n, 2 * kStride));
      const auto odd = hn::BitCast(d8, LoadBlocks(d, rows + kStride + n, 2 * kStride));
      const auto a = hn::BitCast(d, hn::TableLookupBytes(even, swap));
      const auto b = hn::BitCast(d, hn::TableLookupBytes(odd, swap));
      hn::StoreU(hn::InterleaveLower(d, a, b), d, to + n * kStride + k);
      hn::StoreU(hn::InterleaveUpper(d, a, b), d, to + (n + 1) * kStride + k);
    }
    for (int64_t i = 0; n < n_pairs && i < lanes; ++i) {
      to[n * kStride + k + i] = SwapMiddle(rows[i * kStride + n]);
    }
  }
  for (; k < k_pairs; ++k) {
    for (int64_t n = 0; n < n_pairs; ++n) {
      to[n * kStride + k] = SwapMiddle(from[k * kStride + n]);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace permafrost::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <cstring>

namespace permafrost::kernels::cpu {
HWY_EXPORT(Transpose);
HWY_EXPORT(RoundRows);
HWY_EXPORT(RepackPairs);

void TransposeWords(const void* from, int64_t from_stride, int64_t rows, int64_t cols, void* to,
                    int64_t to_stride) {
  HWY_DYNAMIC_DISPATCH(Transpose)
  (static_cast<const uint32_t*>(from), from_stride, rows, cols, static_cast<uint32_t*>(to),
   to_stride);
}

void RoundRowsToF32(const float* from, int64_t from_stride, int64_t rows, int64_t cols, float* to,
                    int64_t to_stride) {
  HWY_DYNAMIC_DISPATCH(RoundRows)(from, from_stride, rows, cols, to, to_stride);
}

namespace {

// Zeros columns [cols, 48) of `steps` rows of words.
void ZeroColumns(void* to, int64_t steps, int64_t cols) {
  if (cols >= kPanelWidth) return;
  uint32_t* words = static_cast<uint32_t*>(to);
  for (int64_t i = 0; i < steps; ++i) {
    std::fill(words + i * kPanelWidth + cols, words + (i + 1) * kPanelWidth, 0u);
  }
}

}  // namespace

void RepackBlock(const PackedWeight& weight, int64_t panel, int64_t begin, int64_t end, void* to) {
  const int64_t k0 = panel * kPanelWidth;
  const int64_t inputs = std::min(kPanelWidth, weight.inputs - k0);
  const bool bf16 = weight.dtype == DType::kBF16;
  // Depth steps (outputs, or pairs of them) and words per step and panel of the source.
  const int64_t unit = bf16 ? 2 : 1;
  const int64_t source_steps = bf16 ? (weight.inputs + 1) / 2 : weight.inputs;
  char* out = static_cast<char*>(to);
  for (int64_t n = begin; n < end;) {
    const int64_t p = n / kPanelWidth, j = n % kPanelWidth;
    const int64_t count = std::min(end - n, kPanelWidth - j);
    const int64_t steps = (count + unit - 1) / unit;
    const uint32_t* from = static_cast<const uint32_t*>(weight.data) +
                           (p * source_steps + k0 / unit) * kPanelWidth + j;
    if (bf16) {
      // Even an odd `outputs` has a zero beside its last row: panels are zero-filled.
      HWY_DYNAMIC_DISPATCH(RepackPairs)
      (reinterpret_cast<const uint64_t*>(from), (inputs + 1) / 2, steps,
       reinterpret_cast<uint64_t*>(out));
      ZeroColumns(out, steps, (inputs + 1) / 2 * 2);
    } else {
      TransposeWords(from, kPanelWidth, inputs, count, out, kPanelWidth);
      ZeroColumns(out, steps, inputs);
    }
    out += steps * kPanelWidth * 4;
    n += count;
  }
}

void PackColumns(const MatMulArgs& args, int64_t panel, int64_t begin, int64_t end, float* to) {
  const int64_t n0 = panel * kPanelWidth;
  const int64_t cols = std::min(kPanelWidth, args.n - n0);
  if (args.transpose_b) {
    TransposeWords(args.b + n0 * args.b_stride + begin, args.b_stride, cols, end - begin, to,
                   kPanelWidth);
  } else {
    for (int64_t k = begin; k < end; ++k) {
      std::memcpy(to + (k - begin) * kPanelWidth, args.b + k * args.b_stride + n0,
                  static_cast<size_t>(cols) * sizeof(float));
    }
  }
  ZeroColumns(to, end - begin, cols);
}

namespace {

void PackPanelF32(const PackArgs& args, int64_t row, int64_t rows, int64_t cols) {
  float* to = static_cast<float*>(args.data) + (args.output_begin + row) * args.inputs;
  TransposeWords(args.source + row * args.source_stride, args.source_stride, rows, args.inputs, to,
                 kPanelWidth);
  if (cols > rows) ZeroColumns(to, args.inputs, rows);
}

void PackPanelBF16(const PackArgs& args, int64_t row, int64_t rows, int64_t cols) {
  constexpr int64_t kBlock = 128;
  alignas(64) float rounded[kBlock];
  alignas(64) uint16_t pairs[kPanelWidth * kBlock];  // transposed as words
  const int64_t steps = (args.inputs + 1) / 2;
  char* to = static_cast<char*>(args.data) + (args.output_begin + row) * steps * 4;
  for (int64_t k = 0; k < args.inputs; k += kBlock) {
    const int64_t count = std::min(kBlock, args.inputs - k), padded = (count + 1) / 2 * 2;
    for (int64_t r = 0; r < rows; ++r) {
      RoundRowsToF32(args.source + (row + r) * args.source_stride + k, 0, 1, count, rounded, 0);
      for (int64_t i = 0; i < padded; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &rounded[i], sizeof(bits));
        pairs[r * kBlock + i] = static_cast<uint16_t>(bits >> 16);
      }
    }
    TransposeWords(pairs, kBlock / 2, rows, padded / 2, to + k / 2 * kPanelWidth * 4, kPanelWidth);
  }
  if (cols > rows) ZeroColumns(to, steps, rows);
}

}  // namespace

void PackWeight(const PackArgs& args, const Parallel& parallel) {
  const bool last = args.output_begin + args.rows == args.outputs;
  ParallelFor(parallel, PanelCount(args.rows), [&](int64_t panel, int) {
    const int64_t row = panel * kPanelWidth;
    const int64_t rows = std::min(kPanelWidth, args.rows - row);
    // A partial panel is completed by zeros only at the end of the weight.
    const int64_t cols = last ? kPanelWidth : rows;
    (args.dtype == DType::kF32 ? PackPanelF32 : PackPanelBF16)(args, row, rows, cols);
  });
}

void UnpackRows(const UnpackRowsArgs& args, const Parallel& parallel) {
  constexpr int64_t kRows = 16;
  const int64_t inputs = args.weight.inputs;
  ParallelFor(parallel, (args.count + kRows - 1) / kRows, [&](int64_t block, int) {
    const int64_t end = std::min(args.count, (block + 1) * kRows);
    for (int64_t i = block * kRows; i < end; ++i) {
      const int64_t panel = args.ids[i] / kPanelWidth, j = args.ids[i] % kPanelWidth;
      float* out = args.out + i * args.out_stride;
      if (args.weight.dtype == DType::kF32) {
        const float* from =
            static_cast<const float*>(args.weight.data) + panel * inputs * kPanelWidth + j;
        for (int64_t k = 0; k < inputs; ++k) out[k] = from[k * kPanelWidth];
      } else {
        const BF16* from = static_cast<const BF16*>(args.weight.data) +
                           (panel * ((inputs + 1) / 2) * kPanelWidth + j) * 2;
        for (int64_t k = 0; k < inputs; ++k) {
          out[k] = ToFloat(from[k / 2 * kPanelWidth * 2 + k % 2]);
        }
      }
    }
  });
}

}  // namespace permafrost::kernels::cpu
#endif  // HWY_ONCE
