// Bandwidth of the row and elementwise kernels on one thread, beside a copy of the same memory: the
// bytes that a kernel must move (each input read once, each output written once) over its time.
#include <benchmark/benchmark.h>

#include <cstring>
#include <random>
#include <vector>

#include "kernels/activation.h"
#include "kernels/cross_entropy.h"
#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"
#include "kernels/rope.h"
#include "kernels/simd.h"

namespace permafrost::kernels {
namespace {

std::vector<float> Random(int64_t count) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

// Bytes: f32 elements read and written once in an iteration, times 4.
void Report(benchmark::State& state, int64_t elements) {
  state.SetBytesProcessed(state.iterations() * elements * 4);
  state.SetLabel(cpu::CurrentSimdLevel());
}

// Rows of width 768; the first argument is the number of rows: 256 KiB to 24 MiB an array.
constexpr int64_t kWidth = 768;

void Copy(benchmark::State& state) {
  const int64_t n = state.range(0) * kWidth;
  const std::vector<float> x = Random(n);
  std::vector<float> y(x.size());
  for (auto _ : state) {
    std::memcpy(y.data(), x.data(), x.size() * 4);
    benchmark::ClobberMemory();
  }
  Report(state, 2 * n);
}

void RmsNorm(benchmark::State& state) {
  const int64_t rows = state.range(0), n = rows * kWidth;
  const std::vector<float> x = Random(n), scale = Random(kWidth);
  std::vector<float> y(x.size()), inverse(static_cast<size_t>(rows));
  for (auto _ : state) {
    cpu::RmsNormForward({x.data(), scale.data(), y.data(), inverse.data(), rows, kWidth, 1e-6f},
                        {});
    benchmark::ClobberMemory();
  }
  Report(state, 2 * n);
}

void RmsNormGradient(benchmark::State& state) {
  const int64_t rows = state.range(0), n = rows * kWidth;
  const std::vector<float> x = Random(n), dy = Random(n), scale = Random(kWidth);
  const std::vector<float> inverse(static_cast<size_t>(rows), 1.0f);
  std::vector<float> dx(x.size());
  for (auto _ : state) {
    cpu::RmsNormBackward({x.data(), scale.data(), inverse.data(), dy.data(), dx.data(),
                          Write::kOverwrite, nullptr, rows, kWidth, nullptr},
                         {});
    benchmark::ClobberMemory();
  }
  Report(state, 3 * n);
}

void LayerNorm(benchmark::State& state) {
  const int64_t rows = state.range(0), n = rows * kWidth;
  const std::vector<float> x = Random(n), scale = Random(kWidth), bias = Random(kWidth);
  std::vector<float> y(x.size()), mean(static_cast<size_t>(rows)), inverse(mean);
  for (auto _ : state) {
    cpu::LayerNormForward({x.data(), scale.data(), bias.data(), y.data(), mean.data(),
                           inverse.data(), rows, kWidth, 1e-5f},
                          {});
    benchmark::ClobberMemory();
  }
  Report(state, 2 * n);
}

void Activate(benchmark::State& state) {
  const int64_t n = state.range(0) * kWidth;
  const auto activation = static_cast<Activation>(state.range(1));
  const std::vector<float> x = Random(n);
  std::vector<float> y(x.size());
  for (auto _ : state) {
    cpu::ActivationForward({activation, x.data(), y.data(), n}, {});
    benchmark::ClobberMemory();
  }
  Report(state, 2 * n);
}

void GatedGradient(benchmark::State& state) {
  const int64_t n = state.range(0) * kWidth;
  const auto activation = static_cast<Activation>(state.range(1));
  const std::vector<float> gate = Random(n), up = Random(n), dy = Random(n);
  std::vector<float> dgate(gate.size()), dup(gate.size());
  for (auto _ : state) {
    cpu::GatedBackward({activation, gate.data(), up.data(), dy.data(), dgate.data(), dup.data(), n},
                       {});
    benchmark::ClobberMemory();
  }
  Report(state, 5 * n);
}

void Rotary(benchmark::State& state) {
  const int64_t rows = state.range(0), n = rows * kWidth, head_size = 64;
  std::vector<float> x = Random(n);
  const std::vector<float> cos = Random(rows * head_size / 2), sin = Random(rows * head_size / 2);
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < rows; ++i) positions.push_back(static_cast<int32_t>(i));
  for (auto _ : state) {
    cpu::Rope({x.data(), x.data(), positions.data(), cos.data(), sin.data(), rows,
               kWidth / head_size, head_size, Rotation::kForward},
              {});
    benchmark::ClobberMemory();
  }
  Report(state, 2 * n);
}

void PhiloxDropout(benchmark::State& state) {
  const int64_t rows = state.range(0), n = rows * kWidth;
  const std::vector<float> x = Random(n);
  std::vector<float> y(x.size());
  for (auto _ : state) {
    cpu::Dropout({x.data(), y.data(), rows, kWidth, 0, 0.1f, 1, 2, 3}, {});
    benchmark::ClobberMemory();
  }
  Report(state, 2 * n);
}

void ToBF16Rounding(benchmark::State& state) {
  const int64_t n = state.range(0) * kWidth;
  const std::vector<float> x = Random(n);
  std::vector<BF16> y(x.size());
  for (auto _ : state) {
    cpu::ConvertToBF16({x.data(), y.data(), n}, {});
    benchmark::ClobberMemory();
  }
  Report(state, n + n / 2);
}

void AdamWStep(benchmark::State& state) {
  const int64_t n = state.range(0) * kWidth;
  std::vector<float> p = Random(n), m(p.size()), v(p.size());
  const std::vector<float> g = Random(n);
  int64_t step = 0;
  for (auto _ : state) {
    cpu::AdamW(
        {p.data(), g.data(), m.data(), v.data(), n, ++step, 1.0, 1e-4, 0.9, 0.999, 1e-8, 0.01}, {});
    benchmark::ClobberMemory();
  }
  Report(state, 7 * n);
}

// Loss and gradient of [rows, V] logits; in place if the third argument is set.
void SoftmaxCrossEntropy(benchmark::State& state) {
  const int64_t rows = state.range(0), vocabulary = state.range(1), n = rows * vocabulary;
  std::vector<float> logits = Random(n), dlogits(logits.size());
  std::vector<float> loss(static_cast<size_t>(rows));
  const std::vector<int32_t> labels(static_cast<size_t>(rows), 7);
  float* const to = state.range(2) != 0 ? logits.data() : dlogits.data();
  for (auto _ : state) {
    cpu::CrossEntropy({logits.data(), vocabulary, labels.data(), loss.data(), nullptr, to, rows,
                       vocabulary, 1e-4f},
                      {});
    benchmark::ClobberMemory();
  }
  Report(state, 2 * n);
}

void Sizes(benchmark::internal::Benchmark* bench) {
  for (int64_t rows : {128, 8192}) bench->Arg(rows);
}
void ActivationSizes(benchmark::internal::Benchmark* bench) {
  for (int64_t activation = 0; activation < 5; ++activation) bench->Args({128, activation});
}

BENCHMARK(Copy)->Apply(Sizes);
BENCHMARK(RmsNorm)->Apply(Sizes);
BENCHMARK(RmsNormGradient)->Apply(Sizes);
BENCHMARK(LayerNorm)->Apply(Sizes);
BENCHMARK(Activate)->Apply(ActivationSizes);
BENCHMARK(GatedGradient)->Apply(ActivationSizes);
BENCHMARK(Rotary)->Apply(Sizes);
BENCHMARK(PhiloxDropout)->Apply(Sizes);
BENCHMARK(ToBF16Rounding)->Apply(Sizes);
BENCHMARK(AdamWStep)->Apply(Sizes);
BENCHMARK(SoftmaxCrossEntropy)->Args({128, 49152, 0})->Args({128, 49152, 1});

}  // namespace
}  // namespace permafrost::kernels
