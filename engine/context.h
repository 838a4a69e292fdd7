// What an op runs with: threads, precision, the tape.
#ifndef PERMAFROST_ENGINE_CONTEXT_H_
#define PERMAFROST_ENGINE_CONTEXT_H_

#include "engine/autograd.h"
#include "engine/thread_pool.h"

namespace permafrost {

// kF32: exact path, parity with PyTorch f32. kBF16: frozen weights packed as bf16, their products
// take bf16 inputs with f32 sums, and activations kept for the backward pass are bf16.
enum class Precision { kF32, kBF16 };

// What the backward pass computes again from its kept input instead of keeping: nothing; each
// attention's norm, queries, keys, values and heads; or whole layers.
enum class Recompute { kNone, kAttention, kLayers };

struct Context {
  explicit Context(int threads = 1, Precision p = Precision::kF32) : pool(threads), precision(p) {}

  kernels::Parallel parallel() { return pool.parallel(); }

  ThreadPool pool;
  Precision precision;
  Tape tape;
  Recompute recompute = Recompute::kNone;
  bool training = false;  // dropout acts only in training
};

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_CONTEXT_H_
