// What ops share and nobody else needs.
#ifndef PERMAFROST_ENGINE_OPS_INTERNAL_H_
#define PERMAFROST_ENGINE_OPS_INTERNAL_H_

#include "engine/context.h"

namespace permafrost {

struct MatMulOperand {
  Tensor tensor;
  bool transpose = false;
};

// out (+)= alpha op(a) op(b) on plain f32 matrices.
void MatMulInto(Context& c, const MatMulOperand& a, const MatMulOperand& b, const Tensor& out,
                float alpha, kernels::Write write);

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_OPS_INTERNAL_H_
