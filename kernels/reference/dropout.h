// The definition of Philox dropout (kernels/dropout.h).
#ifndef PERMAFROST_KERNELS_REFERENCE_DROPOUT_H_
#define PERMAFROST_KERNELS_REFERENCE_DROPOUT_H_

#include "kernels/dropout.h"

namespace permafrost::kernels::reference {

template <class T>
void Dropout(const DropoutArgsOf<T>& a) {
  const T keep_rate = T(1) - static_cast<T>(a.rate);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t c = 0; c < a.width; ++c) {
      const PhiloxWords words = Philox(a.seed, static_cast<uint32_t>(c / 4),
                                       static_cast<uint32_t>(a.row_begin + i), a.place, a.step);
      const double fraction = words.word[c % 4] / 4294967296.0;
      const int64_t at = i * a.width + c;
      a.y[at] = fraction >= static_cast<double>(a.rate) ? a.x[at] / keep_rate : T(0);
    }
  }
}

}  // namespace permafrost::kernels::reference

#endif  // PERMAFROST_KERNELS_REFERENCE_DROPOUT_H_
