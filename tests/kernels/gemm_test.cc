// Products with packed weights at every SIMD level against the scalar reference summed in f64.
#include "kernels/gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference/gemm.h"
#include "kernels/simd.h"
#include "tests/kernels/gemm_test_util.h"
#include "tests/kernels/parallel_for_tests.h"

namespace permafrost::kernels {
namespace {

struct Packed {
  Packed(const Matrix& w, DType dtype)
      : memory(PackedBytes(dtype, w.rows, w.cols)), weight{memory.get(), dtype, w.rows, w.cols} {
    cpu::PackWeight({.source = w.data(),
                     .source_stride = w.stride,
                     .output_begin = 0,
                     .rows = w.rows,
                     .data = memory.get(),
                     .dtype = dtype,
                     .outputs = w.rows,
                     .inputs = w.cols},
                    Parallel{});
  }
  Aligned memory;
  PackedWeight weight;
};

INSTANTIATE_TEST_SUITE_P(Levels, GemmTest, testing::ValuesIn(cpu::AvailableSimdLevels()),
                         [](const auto& info) { return info.param; });

TEST_P(GemmTest, PackWeightEqualsReference) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t outputs : {1, 47, 48, 49, 150}) {
      for (const int64_t inputs : {1, 2, 3, 16, 33, 127, 129, 260}) {
        Matrix w(outputs, inputs, 1);
        w.at(0, 0) = kNaN;
        if (inputs > 2) w.at(0, 2) = 1.00390625f;  // a tie: rounds to even, 1.0
        const int64_t bytes = PackedBytes(dtype, outputs, inputs);
        Aligned expected(bytes), actual(bytes);
        PackArgs args{.source = w.data(),
                      .source_stride = w.stride,
                      .output_begin = 0,
                      .rows = outputs,
                      .data = expected.get(),
                      .dtype = dtype,
                      .outputs = outputs,
                      .inputs = inputs};
        reference::PackWeight(args);
        // In two pieces, as a loader that streams a large tensor does.
        args.data = actual.get();
        args.rows = std::min(outputs, kPanelWidth);
        cpu::PackWeight(args, ThreadsForTests(2));
        if (outputs > kPanelWidth) {
          args.source += kPanelWidth * w.stride;
          args.output_begin = kPanelWidth;
          args.rows = outputs - kPanelWidth;
          cpu::PackWeight(args, ThreadsForTests(2));
        }
        ASSERT_EQ(std::memcmp(actual.get(), expected.get(), static_cast<size_t>(bytes)), 0)
            << outputs << "x" << inputs;
        ASSERT_TRUE(actual.Intact());
      }
    }
  }
}

TEST_P(GemmTest, UnpackRowsGathers) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t inputs : {1, 7, 64}) {
      Matrix w(100, inputs, 2);
      Packed packed(w, dtype);
      const std::vector<int32_t> ids = {0, 99, 47, 48, 48, 3};
      Matrix out = Output(static_cast<int64_t>(ids.size()), inputs, Write::kOverwrite);
      cpu::UnpackRows({.weight = packed.weight,
                       .ids = ids.data(),
                       .count = out.rows,
                       .out = out.data(),
                       .out_stride = out.stride},
                      ThreadsForTests(2));
      for (int64_t i = 0; i < out.rows; ++i) {
        for (int64_t k = 0; k < inputs; ++k) {
          ASSERT_EQ(out.at(i, k), reference::ProductInput(dtype, w.at(ids[i], k)));
        }
      }
      ExpectSentinels(out);
    }
  }
}

// Forward and backward of one shape, checked, and bit-equal for 1, 2 and 3 workers.
void CheckPacked(DType dtype, int64_t rows, int64_t outputs, int64_t inputs, Write write,
                 bool with_bias, uint32_t seed) {
  SCOPED_TRACE(testing::Message() << (dtype == DType::kF32 ? "f32 " : "bf16 ") << rows << " rows, "
                                  << outputs << " outputs, " << inputs << " inputs");
  const Matrix w(outputs, inputs, seed), x(rows, inputs, seed + 1), dy(rows, outputs, seed + 2);
  const Matrix bias(1, outputs, seed + 3);
  const Packed packed(w, dtype);
  const auto in = [&](float v) { return static_cast<double>(reference::ProductInput(dtype, v)); };

  const Matrix y0 = Output(rows, outputs, write), dx0 = Output(rows, inputs, write);
  const bool add = write == Write::kAccumulate;
  std::vector<double> y, y_terms, dx, dx_terms;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = (add ? y0.at(r, n) : 0.0) + (with_bias ? bias.at(0, n) : 0.0);
      double terms = (add ? std::abs(y0.at(r, n)) : 0.0) + std::abs(with_bias ? bias.at(0, n) : 0);
      for (int64_t k = 0; k < inputs; ++k) {
        const double term = in(x.at(r, k)) * in(w.at(n, k));
        sum += term;
        terms += std::abs(term);
      }
      y.push_back(sum);
      y_terms.push_back(terms);
    }
    for (int64_t k = 0; k < inputs; ++k) {
      double sum = add ? dx0.at(r, k) : 0.0, terms = std::abs(sum);
      for (int64_t n = 0; n < outputs; ++n) {
        const double term = in(dy.at(r, n)) * in(w.at(n, k));
        sum += term;
        terms += std::abs(term);
      }
      dx.push_back(sum);
      dx_terms.push_back(terms);
    }
  }

  std::vector<float> y_bits, dx_bits;
  for (const int workers : {1, 2, 3}) {
    Matrix y_out = y0, dx_out = dx0;
    Aligned forward(cpu::PackedForwardWorkspace(packed.weight, rows, workers));
    Aligned backward(cpu::PackedBackwardWorkspace(packed.weight, rows, workers));
    cpu::PackedForward({.x = x.data(),
                        .x_stride = x.stride,
                        .weight = packed.weight,
                        .bias = with_bias ? bias.data() : nullptr,
                        .y = y_out.data(),
                        .y_stride = y_out.stride,
                        .rows = rows,
                        .write = write,
                        .workspace = forward.get()},
                       ThreadsForTests(workers));
    cpu::PackedBackward({.dy = dy.data(),
                         .dy_stride = dy.stride,
                         .weight = packed.weight,
                         .dx = dx_out.data(),
                         .dx_stride = dx_out.stride,
                         .rows = rows,
                         .write = write,
                         .workspace = backward.get()},
                        ThreadsForTests(workers));
    ASSERT_TRUE(forward.Intact());
    ASSERT_TRUE(backward.Intact());
    if (workers > 1) {
      ASSERT_EQ(std::memcmp(y_out.storage.data(), y_bits.data(), y_bits.size() * 4), 0) << workers;
      ASSERT_EQ(std::memcmp(dx_out.storage.data(), dx_bits.data(), dx_bits.size() * 4), 0)
          << workers;
      continue;
    }
    y_bits = y_out.storage;
    dx_bits = dx_out.storage;
    ExpectSentinels(y_out);
    ExpectSentinels(dx_out);
    ExpectClose(y_out, y, y_terms, inputs);
    ExpectClose(dx_out, dx, dx_terms, outputs);
  }
}

TEST_P(GemmTest, PackedEdges) {
  uint32_t seed = 10;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t rows : {1, 2, 3, 5, 6, 7, 8, 9, 15, 17}) {
      for (const int64_t outputs : {1, 15, 16, 17, 47, 48, 49, 95}) {
        const int64_t inputs = std::vector<int64_t>{1, 2, 8, 31, 48, 49, 97}[seed % 7];
        const Write write = seed % 2 != 0 ? Write::kAccumulate : Write::kOverwrite;
        CheckPacked(dtype, rows, outputs, inputs, write, seed % 3 == 0, seed);
        ++seed;
      }
    }
  }
}

TEST_P(GemmTest, PackedSeveralBlocks) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    CheckPacked(dtype, 37, 100, 2051, Write::kAccumulate, true, 500);  // depth blocks, forward
    CheckPacked(dtype, 13, 2099, 50, Write::kOverwrite, true, 501);    // depth blocks, backward
    CheckPacked(dtype, 541, 70, 33, Write::kOverwrite, false, 502);    // row blocks
  }
}

TEST_P(GemmTest, PackedEmpty) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    CheckPacked(dtype, 0, 5, 7, Write::kOverwrite, true, 600);
    CheckPacked(dtype, 3, 5, 0, Write::kOverwrite, true, 601);  // y = bias
    CheckPacked(dtype, 3, 5, 0, Write::kOverwrite, false, 602);
    CheckPacked(dtype, 3, 0, 7, Write::kOverwrite, false, 603);  // dx = 0
    CheckPacked(dtype, 3, 0, 7, Write::kAccumulate, false, 604);
  }
}

// Result bits may not depend on where the caller cuts the rows either.
TEST_P(GemmTest, PackedRowsCutAnywhere) {
  const int64_t rows = 530, outputs = 70, inputs = 900;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Matrix w(outputs, inputs, 1), x(rows, inputs, 2), dy(rows, outputs, 3);
    const Packed packed(w, dtype);
    Aligned workspace(std::max(cpu::PackedForwardWorkspace(packed.weight, rows, 1),
                               cpu::PackedBackwardWorkspace(packed.weight, rows, 1)));
    Matrix whole = Output(rows, outputs, Write::kOverwrite), cut = whole;
    Matrix dx_whole = Output(rows, inputs, Write::kOverwrite), dx_cut = dx_whole;
    const auto run = [&](Matrix& y, Matrix& dx, int64_t begin, int64_t end) {
      cpu::PackedForward({.x = &x.data()[begin * x.stride],
                          .x_stride = x.stride,
                          .weight = packed.weight,
                          .bias = nullptr,
                          .y = &y.at(begin, 0),
                          .y_stride = y.stride,
                          .rows = end - begin,
                          .write = Write::kOverwrite,
                          .workspace = workspace.get()},
                         Parallel{});
      cpu::PackedBackward({.dy = &dy.data()[begin * dy.stride],
                           .dy_stride = dy.stride,
                           .weight = packed.weight,
                           .dx = &dx.at(begin, 0),
                           .dx_stride = dx.stride,
                           .rows = end - begin,
                           .write = Write::kOverwrite,
                           .workspace = workspace.get()},
                          Parallel{});
    };
    run(whole, dx_whole, 0, rows);
    for (const auto& [begin, end] : {std::pair{0, 1}, {1, 8}, {8, 527}, {527, 530}}) {
      run(cut, dx_cut, begin, end);
    }
    EXPECT_EQ(std::memcmp(whole.storage.data(), cut.storage.data(), whole.storage.size() * 4), 0);
    EXPECT_EQ(
        std::memcmp(dx_whole.storage.data(), dx_cut.storage.data(), dx_whole.storage.size() * 4),
        0);
    ASSERT_TRUE(workspace.Intact());
  }
}

// A NaN in one row of x or one output of W shows in that row or output only.
TEST_P(GemmTest, PackedNaNStaysInItsRow) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Matrix w(50, 20, 1), x(9, 20, 2), y = Output(9, 50, Write::kOverwrite);
    x.at(3, 5) = kNaN;
    w.at(49, 0) = kNaN;
    const Packed packed(w, dtype);
    Aligned workspace(cpu::PackedForwardWorkspace(packed.weight, 9, 1));
    cpu::PackedForward({.x = x.data(),
                        .x_stride = x.stride,
                        .weight = packed.weight,
                        .bias = nullptr,
                        .y = y.data(),
                        .y_stride = y.stride,
                        .rows = 9,
                        .write = Write::kOverwrite,
                        .workspace = workspace.get()},
                       Parallel{});
    for (int64_t r = 0; r < 9; ++r) {
      for (int64_t n = 0; n < 50; ++n) {
        EXPECT_EQ(std::isnan(y.at(r, n)), r == 3 || n == 49) << r << " " << n;
      }
    }
  }
}

// The packed reference is the unpacked meaning, so it must agree with the plain product.
TEST(GemmReference, PackedEqualsPlain) {
  const Matrix w(50, 7, 1), x(3, 7, 2);
  const Packed packed(w, DType::kF32);
  Matrix y = Output(3, 50, Write::kOverwrite), plain = y;
  reference::PackedForward<double>({.x = x.data(),
                                    .x_stride = x.stride,
                                    .weight = packed.weight,
                                    .bias = nullptr,
                                    .y = y.data(),
                                    .y_stride = y.stride,
                                    .rows = 3,
                                    .write = Write::kOverwrite,
                                    .workspace = nullptr});
  reference::MatMul<float>({.a = x.data(),
                            .a_stride = x.stride,
                            .transpose_a = false,
                            .b = w.data(),
                            .b_stride = w.stride,
                            .transpose_b = true,
                            .c = plain.data(),
                            .c_stride = plain.stride,
                            .m = 3,
                            .n = 50,
                            .k = 7,
                            .alpha = 1,
                            .write = Write::kOverwrite,
                            .workspace = nullptr});
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t n = 0; n < 50; ++n) EXPECT_NEAR(y.at(r, n), plain.at(r, n), 1e-5);
  }
  Matrix dx = Output(3, 7, Write::kOverwrite), dx_plain = dx;
  reference::PackedBackward<double>({.dy = y.data(),
                                     .dy_stride = y.stride,
                                     .weight = packed.weight,
                                     .dx = dx.data(),
                                     .dx_stride = dx.stride,
                                     .rows = 3,
                                     .write = Write::kOverwrite,
                                     .workspace = nullptr});
  reference::MatMul<float>({.a = y.data(),
                            .a_stride = y.stride,
                            .transpose_a = false,
                            .b = w.data(),
                            .b_stride = w.stride,
                            .transpose_b = false,
                            .c = dx_plain.data(),
                            .c_stride = dx_plain.stride,
                            .m = 3,
                            .n = 7,
                            .k = 50,
                            .alpha = 1,
                            .write = Write::kOverwrite,
                            .workspace = nullptr});
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t k = 0; k < 7; ++k) EXPECT_NEAR(dx.at(r, k), dx_plain.at(r, k), 1e-3);
  }
}

}  // namespace
}  // namespace permafrost::kernels
