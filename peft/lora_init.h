// Low-rank pairs that start from the base weight W [N, D]. PEFT takes s B A out of W then; here W
// stays frozen and the start is subtracted beside it, y = W x + s (B A - B0 A0) x, which is the
// same function.
#ifndef PERMAFROST_PEFT_LORA_INIT_H_
#define PERMAFROST_PEFT_LORA_INIT_H_

#include "absl/status/statusor.h"
#include "engine/random_tensor.h"
#include "engine/weight.h"

namespace permafrost {

// How the factors of a fresh LoRA start: A uniform and B zero (Hu et al. 2021); A normal with
// deviation 1 / r and B zero; the r largest singular vectors of W (PiSSA, Meng et al. 2024); the
// first r columns of W's QR decomposition (OLoRA, Buyukakyuz 2024).
enum class LoraInit { kDefault, kGaussian, kPissa, kOlora };

struct LowRankPair {
  Tensor a;  // [r, D]
  Tensor b;  // [N, r]
};

// A = sqrt(S / s) V^T, B = U sqrt(S / s) of the r largest singular triplets of W, so that s B A is
// the best rank-r approximation. By subspace iteration: seen from one seed the same bits for any
// number of threads. r at most min(N, D).
LowRankPair PissaPair(Context& c, const Weight& w, int64_t rank, double scale, Random& random);

// B = Q[:, :r], A = R[:r, :] of W = Q R, not divided by s (as PEFT). r at most min(N, D).
LowRankPair OloraPair(Context& c, const Weight& w, int64_t rank);

// [x; y] by rows, and [x, -y] by columns.
Tensor StackedRows(const Tensor& x, const Tensor& y);
Tensor WithNegatedColumns(const Tensor& x, const Tensor& y);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_LORA_INIT_H_
