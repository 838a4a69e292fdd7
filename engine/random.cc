#include "engine/random.h"

#include <cmath>

#include "engine/check.h"
#include "kernels/dropout.h"

namespace permafrost {

uint32_t Random::Word() {
  const uint64_t block = counter_ / 4;
  const kernels::PhiloxWords words =
      kernels::Philox(seed_, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                      stream_, 0x52414e44);  // apart from every dropout counter
  return words.word[counter_++ % 4];
}

double Random::Uniform() { return Word() * 0x1p-32; }

double Random::Normal() {
  const double radius = std::sqrt(-2 * std::log(1 - Uniform()));
  return radius * std::cos(6.283185307179586 * Uniform());
}

int64_t Random::Below(int64_t limit) {
  PERMAFROST_CHECK(limit >= 1) << "Random::Below: limit " << limit;
  // NOLINTNEXTLINE(modernize-use-using): __extension__ goes with typedef only.
  __extension__ typedef unsigned __int128 Wide;
  const Wide wide = (uint64_t{Word()} << 32) | Word();
  return static_cast<int64_t>((wide * static_cast<uint64_t>(limit)) >> 64);
}

}  // namespace permafrost
