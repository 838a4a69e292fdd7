// Matrix products on one thread: GFLOP/s of CPU time, and percent of the peak probe taken right
// before each row. Arguments: rows, outputs, inputs (or m, n, k).
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/probe.h"

namespace permafrost::kernels {
namespace {

// Random f32 of normal scale in 64-byte aligned memory: zeros would run faster.
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<float*>(
            std::aligned_alloc(64, static_cast<size_t>((count * 4 + 64) / 64 * 64)))) {
    uint32_t state = 1;
    for (int64_t i = 0; i < count; ++i) {
      state = state * 1664525u + 1013904223u;
      data_[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    }
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* data() { return data_; }

 private:
  float* data_;
};

void Report(benchmark::State& state, double flops, double probe_gflops) {
  using benchmark::Counter;
  const double total = flops * static_cast<double>(state.iterations()) * 1e-9;
  state.counters["GF/s"] = Counter(total, Counter::kIsRate);
  state.counters["%peak"] = Counter(total / probe_gflops * 100, Counter::kIsRate);
}

void Packed(benchmark::State& state, DType dtype, bool backward) {
  const int64_t rows = state.range(0), outputs = state.range(1), inputs = state.range(2);
  Buffer w(outputs * inputs), packed(PackedBytes(dtype, outputs, inputs) / 4);
  Buffer x(rows * inputs), y(rows * outputs);
  const PackedWeight weight{packed.data(), dtype, outputs, inputs};
  cpu::PackWeight({.source = w.data(),
                   .source_stride = inputs,
                   .output_begin = 0,
                   .rows = outputs,
                   .data = packed.data(),
                   .dtype = dtype,
                   .outputs = outputs,
                   .inputs = inputs},
                  Parallel{});
  Buffer workspace((std::max(cpu::PackedForwardWorkspace(weight, rows, 1),
                             cpu::PackedBackwardWorkspace(weight, rows, 1)) +
                    3) /
                   4);
  const double probe =
      dtype == DType::kBF16 ? cpu::Bf16DotProbeGflops(0.05) : cpu::FmaProbeGflops(0.05);
  for (auto _ : state) {
    if (backward) {
      cpu::PackedBackward({.dy = y.data(),
                           .dy_stride = outputs,
                           .weight = weight,
                           .dx = x.data(),
                           .dx_stride = inputs,
                           .rows = rows,
                           .write = Write::kOverwrite,
                           .workspace = workspace.data()},
                          Parallel{});
    } else {
      cpu::PackedForward({.x = x.data(),
                          .x_stride = inputs,
                          .weight = weight,
                          .bias = nullptr,
                          .y = y.data(),
                          .y_stride = outputs,
                          .rows = rows,
                          .write = Write::kOverwrite,
                          .workspace = workspace.data()},
                         Parallel{});
    }
    benchmark::ClobberMemory();
  }
  const double size = static_cast<double>(outputs) * static_cast<double>(inputs);
  Report(state, 2.0 * static_cast<double>(rows) * size, probe);
}

void Shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "outputs", "inputs"})->Unit(benchmark::kMicrosecond);
  // SmolLM2-135M, then T5-base.
  for (const auto& [n, k] : {std::pair{576, 576},
                             {192, 576},
                             {1536, 576},
                             {576, 1536},
                             {49152, 576},
                             {768, 768},
                             {3072, 768},
                             {768, 3072}}) {
    b->Args({2048, n, k});
  }
  for (const int64_t rows : {1, 2, 4, 8, 16, 32, 128}) b->Args({rows, 1536, 576});
  for (const int64_t rows : {1, 8}) b->Args({rows, 49152, 576});
}
BENCHMARK_CAPTURE(Packed, forward_f32, DType::kF32, false)->Apply(Shapes);
BENCHMARK_CAPTURE(Packed, forward_bf16, DType::kBF16, false)->Apply(Shapes);
BENCHMARK_CAPTURE(Packed, backward_f32, DType::kF32, true)->Apply(Shapes);
BENCHMARK_CAPTURE(Packed, backward_bf16, DType::kBF16, true)->Apply(Shapes);

void Plain(benchmark::State& state, bool transpose_a, bool transpose_b, Write write) {
  const int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  Buffer a(m * k), b(n * k), c(m * n);
  Buffer workspace((cpu::MatMulWorkspace(m, n, k, 1) + 3) / 4);
  const double probe = cpu::FmaProbeGflops(0.05);
  for (auto _ : state) {
    cpu::MatMul({.a = a.data(),
                 .a_stride = transpose_a ? m : k,
                 .transpose_a = transpose_a,
                 .b = b.data(),
                 .b_stride = transpose_b ? k : n,
                 .transpose_b = transpose_b,
                 .c = c.data(),
                 .c_stride = n,
                 .m = m,
                 .n = n,
                 .k = k,
                 .alpha = 1.0f,
                 .write = write,
                 .workspace = workspace.data()},
                Parallel{});
    benchmark::ClobberMemory();
  }
  Report(state, 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k),
         probe);
}

void Ranks(benchmark::internal::Benchmark* b, bool down) {
  b->ArgNames({"m", "n", "k"})->Unit(benchmark::kMicrosecond);
  for (const int64_t r : {8, 16, 64}) b->Args({2048, down ? r : 576, down ? 576 : r});
}
BENCHMARK_CAPTURE(Plain, lora_down, false, true, Write::kOverwrite)->Apply([](auto* b) {
  Ranks(b, true);
});
BENCHMARK_CAPTURE(Plain, lora_up, false, true, Write::kAccumulate)->Apply([](auto* b) {
  Ranks(b, false);
});
BENCHMARK_CAPTURE(Plain, lora_grad_b, true, false, Write::kAccumulate)
    ->Args({576, 8, 2048})
    ->Args({576, 16, 2048})
    ->Args({576, 64, 2048});
BENCHMARK_CAPTURE(Plain, lora_grad_a, true, false, Write::kAccumulate)
    ->Args({8, 576, 2048})
    ->Args({16, 576, 2048})
    ->Args({64, 576, 2048});
BENCHMARK_CAPTURE(Plain, lora_grad_s, false, false, Write::kOverwrite)->Args({2048, 8, 576});
BENCHMARK_CAPTURE(Plain, full_grad, true, false, Write::kAccumulate)
    ->Args({576, 576, 2048})
    ->Args({1536, 576, 2048});

}  // namespace
}  // namespace permafrost::kernels
