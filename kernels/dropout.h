// Inverted dropout from a Philox 4x32-10 counter (Salmon et al. 2011). The mask is a function of
// (seed, step, place, row, column): it is recomputed in the backward pass, never stored, and does
// not depend on threads.
#ifndef PERMAFROST_KERNELS_DROPOUT_H_
#define PERMAFROST_KERNELS_DROPOUT_H_

#include "kernels/types.h"

namespace permafrost::kernels {

// The four words of Philox4x32-10 for a counter and key.
struct PhiloxWords {
  uint32_t word[4];
};
inline PhiloxWords Philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// y[i, c] = keep(i, c) ? x[i, c] / (1 - rate) : 0. Element (i, c) is kept iff word (c % 4) of
// Philox(seed, c / 4, row_begin + i, place, step), as a 32-bit fraction, is >= rate. y may be x.
// The gradient is the same function of dy.
template <class T>
struct DropoutArgsOf {
  const T* x;
  T* y;
  int64_t rows, width;
  int64_t row_begin;
  float rate;  // in [0, 1)
  uint64_t seed;
  uint32_t step;
  uint32_t place;
};
using DropoutArgs = DropoutArgsOf<float>;

namespace cpu {
void Dropout(const DropoutArgs& args, const Parallel& parallel);
}  // namespace cpu

}  // namespace permafrost::kernels

#endif  // PERMAFROST_KERNELS_DROPOUT_H_
