// All kernel families.
#ifndef PERMAFROST_KERNELS_KERNELS_H_
#define PERMAFROST_KERNELS_KERNELS_H_

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"
#include "kernels/rope.h"
#include "kernels/simd.h"

#endif  // PERMAFROST_KERNELS_KERNELS_H_
