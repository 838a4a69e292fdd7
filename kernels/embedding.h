// Row gather and scatter-add: token embeddings, virtual tokens, labelled rows.
#ifndef PERMAFROST_KERNELS_EMBEDDING_H_
#define PERMAFROST_KERNELS_EMBEDDING_H_

#include "kernels/types.h"

namespace permafrost::kernels {

// out[i, :] = table[ids[i], :]. (Frozen packed tables: UnpackRows in gemm.h.)
template <class T>
struct GatherRowsArgsOf {
  const T* table;  // [table rows, D]
  const int32_t* ids;
  T* out;  // [count, D]
  int64_t count, width;
};

// dtable[ids[i], :] += dout[i, :], added in the order of i whatever the number of threads.
template <class T>
struct ScatterAddRowsArgsOf {
  const T* dout;  // [count, D]
  const int32_t* ids;
  T* dtable;  // [table rows, D]
  int64_t count, width;
};

using GatherRowsArgs = GatherRowsArgsOf<float>;
using ScatterAddRowsArgs = ScatterAddRowsArgsOf<float>;

namespace cpu {
void GatherRows(const GatherRowsArgs& args, const Parallel& parallel);
void ScatterAddRows(const ScatterAddRowsArgs& args, const Parallel& parallel);
}  // namespace cpu

}  // namespace permafrost::kernels

#endif  // PERMAFROST_KERNELS_EMBEDDING_H_
