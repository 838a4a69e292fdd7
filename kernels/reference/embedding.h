// The definition of row gather and scatter-add (kernels/embedding.h).
#ifndef PERMAFROST_KERNELS_REFERENCE_EMBEDDING_H_
#define PERMAFROST_KERNELS_REFERENCE_EMBEDDING_H_

#include "kernels/embedding.h"

namespace permafrost::kernels::reference {

template <class T>
void GatherRows(const GatherRowsArgsOf<T>& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    for (int64_t c = 0; c < a.width; ++c) {
      a.out[i * a.width + c] = a.table[a.ids[i] * a.width + c];
    }
  }
}

template <class T>
void ScatterAddRows(const ScatterAddRowsArgsOf<T>& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    for (int64_t c = 0; c < a.width; ++c) {
      a.dtable[a.ids[i] * a.width + c] += a.dout[i * a.width + c];
    }
  }
}

}  // namespace permafrost::kernels::reference

#endif  // PERMAFROST_KERNELS_REFERENCE_EMBEDDING_H_
