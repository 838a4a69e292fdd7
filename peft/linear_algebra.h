// Matrix decompositions for adapters' initial values and for adapters made from checkpoints. Inputs
// and outputs are f32 [N, D]; all is computed in f64 (Eigen's BDCSVD and HouseholderQR).
//
// Non-goals: differentiable decompositions, anything that runs in a training step.
#ifndef PERMAFROST_PEFT_LINEAR_ALGEBRA_H_
#define PERMAFROST_PEFT_LINEAR_ALGEBRA_H_

#include "engine/tensor.h"

namespace permafrost {

// W [N, D] ~ U diag(S) V^T with the r = min(rank, N, D) largest singular values, descending: the
// best approximation of that rank (Eckart and Young 1936). The signs of a pair of singular vectors
// are free; those of other libraries may differ.
struct Svd {
  Tensor u;             // [N, r], orthonormal columns
  Tensor s;             // [1, r]
  Tensor v;             // [D, r], orthonormal columns
  double residual = 0;  // ||W - U diag(S) V^T||, Frobenius, from the values left out
  double norm = 0;      // ||W||
};
Svd TruncatedSvd(const Tensor& w, int64_t rank);

// W [N, D] = Q R, k = min(N, D). The signs are LAPACK's (and so torch.linalg.qr's): the diagonal of
// R is not made positive.
struct Qr {
  Tensor q;  // [N, k], orthonormal columns
  Tensor r;  // [k, D], upper triangular
};
Qr QrDecomposition(const Tensor& w);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_LINEAR_ALGEBRA_H_
