#include "kernels/norm.h"

#include <algorithm>

#include "kernels/reference/norm.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/kernels/parallel_for_tests.h"

namespace permafrost::kernels {
namespace {

constexpr double kEpsilon = 1e-5;

// Error of a sum over a row in ulp of the sum of magnitudes: f32 additions of one lane at the
// narrowest target (four sums of four lanes) within a chunk of 1024, plus combining them.
double SumUlp(int64_t width) {
  return 0.5 * (static_cast<double>(std::min<int64_t>(width, 1024)) / 16 + 8);
}

// Inputs of a norm and everything the kernels and the f64 reference say about them.
struct Case {
  Case(int64_t rows_in, int64_t width_in, float offset)
      : rows(rows_in),
        width(width_in),
        x(RandomFloats(rows * width, 1)),
        scale(RandomFloats(width, 2)),
        bias(RandomFloats(width, 3)),
        dy(RandomFloats(rows * width, 4)),
        dx0(RandomFloats(rows * width, 5)),
        dscale0(RandomFloats(width, 6)),
        dbias0(RandomFloats(width, 7)) {
    for (float& v : x) v += offset;
  }
  int64_t rows, width;
  std::vector<float> x, scale, bias, dy, dx0, dscale0, dbias0;
  size_t Row(size_t i) const { return i / static_cast<size_t>(width); }
  size_t Column(size_t i) const { return i % static_cast<size_t>(width); }
};

std::string Where(const Case& c) {
  return std::to_string(c.rows) + " x " + std::to_string(c.width);
}

// Means over a row of |x|, |g|, |g xhat| for bounds.
struct RowMagnitudes {
  std::vector<double> x, g, gx;
};
RowMagnitudes Magnitudes(const Case& c, const std::vector<float>& mean,
                         const std::vector<float>& inverse) {
  RowMagnitudes m;
  for (int64_t row = 0; row < c.rows; ++row) {
    double x = 0, g = 0, gx = 0;
    for (int64_t k = 0; k < c.width; ++k) {
      const double v = c.x[row * c.width + k], gradient = c.dy[row * c.width + k] * c.scale[k];
      x += std::abs(v);
      g += std::abs(gradient);
      gx += std::abs(gradient * (v - mean[row]) * inverse[row]);
    }
    const double n = static_cast<double>(c.width);
    m.x.push_back(x / n);
    m.g.push_back(g / n);
    m.gx.push_back(gx / n);
  }
  return m;
}

// Sum over rows of |dy xhat| (dscale) and |dy| (dbias) by column, for bounds.
std::vector<double> ColumnMagnitude(const Case& c, const std::vector<float>* mean,
                                    const std::vector<float>* inverse) {
  std::vector<double> sum(c.scale.size());
  for (size_t i = 0; i < c.x.size(); ++i) {
    const double xhat =
        mean == nullptr ? 1.0
                        : (static_cast<double>(c.x[i]) - (*mean)[c.Row(i)]) * (*inverse)[c.Row(i)];
    sum[c.Column(i)] += std::abs(c.dy[i] * xhat);
  }
  return sum;
}

double ColumnUlp(const Case& c) { return 4 + 0.5 * (64 + static_cast<double>(c.rows) / 64); }

void CheckRms(const Case& c, int shift, const Parallel& parallel) {
  Guarded<float> x(c.x, shift), scale(c.scale, 1), y(c.rows * c.width, 2), inv(c.rows, 3);
  cpu::RmsNormForward(
      {x.data(), scale.data(), y.data(), inv.data(), c.rows, c.width, static_cast<float>(kEpsilon)},
      parallel);
  const std::vector<double> x64 = Doubles(c.x), scale64 = Doubles(c.scale), dy64 = Doubles(c.dy);
  std::vector<double> y64(x64.size()), inv64(static_cast<size_t>(c.rows));
  reference::RmsNormForward<double>({x64.data(), scale64.data(), y64.data(), inv64.data(), c.rows,
                                     c.width, static_cast<float>(kEpsilon)});
  const double ulp = SumUlp(c.width);
  ExpectWithin(
      inv.values(), inv64, [&](size_t i) { return kUlp * (1 + ulp / 2) * inv64[i]; }, "inv_rms");
  ExpectWithin(
      y.values(), y64, [&](size_t i) { return kUlp * (2 + ulp / 2) * std::abs(y64[i]); },
      "rms y " + Where(c));

  // The gradient, from the f32 statistics that the forward kernel kept.
  const std::vector<float> inverse = inv.values();
  const std::vector<float> zero_mean(inverse.size());
  const std::vector<double> inverse64 = Doubles(inverse);
  const RowMagnitudes m = Magnitudes(c, zero_mean, inverse);
  for (Write write : {Write::kOverwrite, Write::kAccumulate}) {
    std::vector<double> dx64 = Doubles(c.dx0), dscale64 = Doubles(c.dscale0);
    reference::RmsNormBackward<double>({x64.data(), scale64.data(), inverse64.data(), dy64.data(),
                                        dx64.data(), write, dscale64.data(), c.rows, c.width,
                                        nullptr});
    const bool accumulate = write == Write::kAccumulate;
    Guarded<float> dy(c.dy, 1), dscale(c.dscale0, 2), dscale_only(c.dscale0, 0);
    Guarded<float> dx(c.rows * c.width, shift), dx_only(c.rows * c.width, 0);
    if (accumulate) {
      std::copy(c.dx0.begin(), c.dx0.end(), dx.data());
      std::copy(c.dx0.begin(), c.dx0.end(), dx_only.data());
    }
    Guarded<float> workspace(NormBackwardWorkspace(c.rows, c.width), 1);
    RmsNormBackwardArgs args{x.data(), scale.data(),  inv.data(), dy.data(), dx.data(),
                             write,    dscale.data(), c.rows,     c.width,   workspace.data()};
    cpu::RmsNormBackward(args, parallel);
    ExpectWithin(
        dx.values(), dx64,
        [&](size_t i) {
          const size_t row = c.Row(i);
          const double xhat = std::abs(x64[i] * inverse64[row]);
          const double g = std::abs(dy64[i] * scale64[c.Column(i)]);
          return kUlp * (inverse64[row] * (3 * g + (4 + ulp) * xhat * m.gx[row]) +
                         (accumulate ? std::abs(dx64[i]) + std::abs(c.dx0[i]) : 0));
        },
        "rms dx " + Where(c));
    const std::vector<double> magnitude = ColumnMagnitude(c, &zero_mean, &inverse);
    ExpectWithin(
        dscale.values(), dscale64,
        [&](size_t i) {
          return kUlp *
                 (ColumnUlp(c) * magnitude[i] + std::abs(c.dscale0[i]) + std::abs(dscale64[i]));
        },
        "rms dscale " + Where(c));
    // Each output alone gives the same bits.
    args.dscale = nullptr;
    args.dx = dx_only.data();
    args.workspace = nullptr;
    cpu::RmsNormBackward(args, parallel);
    ExpectSameBits(dx_only.values(), dx.values(), "dx alone");
    args.dx = nullptr;
    args.dscale = dscale_only.data();
    args.workspace = workspace.data();
    cpu::RmsNormBackward(args, parallel);
    ExpectSameBits(dscale_only.values(), dscale.values(), "dscale alone");
    for (const Guarded<float>* b : {&x, &y, &inv, &dx, &dx_only, &dscale, &workspace}) {
      ASSERT_TRUE(b->Intact()) << Where(c);
    }
  }
}

void CheckLayer(const Case& c, int shift, bool with_bias, const Parallel& parallel) {
  Guarded<float> x(c.x, shift), scale(c.scale, 1), bias(c.bias, 4);
  Guarded<float> y(c.rows * c.width, 2), mean(c.rows, 1), inv(c.rows, 3);
  cpu::LayerNormForward({x.data(), scale.data(), with_bias ? bias.data() : nullptr, y.data(),
                         mean.data(), inv.data(), c.rows, c.width, static_cast<float>(kEpsilon)},
                        parallel);
  const std::vector<double> x64 = Doubles(c.x), scale64 = Doubles(c.scale), dy64 = Doubles(c.dy);
  const std::vector<double> bias64 = Doubles(c.bias);
  std::vector<double> y64(x64.size()), mean64(static_cast<size_t>(c.rows)), inv64(mean64);
  reference::LayerNormForward<double>(
      {x64.data(), scale64.data(), with_bias ? bias64.data() : nullptr, y64.data(), mean64.data(),
       inv64.data(), c.rows, c.width, static_cast<float>(kEpsilon)});
  const double ulp = SumUlp(c.width);
  const std::vector<float> means = mean.values(), inverse = inv.values();
  const RowMagnitudes m = Magnitudes(c, means, inverse);
  // An error e of the mean enters the variance as e^2: second order, but not against epsilon.
  const auto mean_error = [&](size_t row) { return kUlp * (ulp + 0.5) * m.x[row]; };
  const auto inverse_error = [&](size_t row) {
    const double shifted = mean_error(row) * inv64[row];
    return inv64[row] * (kUlp * (2 + ulp / 2) + shifted * shifted + shifted * kUlp);
  };
  ExpectWithin(means, mean64, mean_error, "mean");
  ExpectWithin(inverse, inv64, inverse_error, "inv_std " + Where(c));
  ExpectWithin(
      y.values(), y64,
      [&](size_t i) {
        const size_t row = c.Row(i);
        const double s = std::abs(scale64[c.Column(i)]), centered = std::abs(x64[i] - mean64[row]);
        return s * (inv64[row] * (mean_error(row) + 2 * kUlp * centered) +
                    centered * inverse_error(row)) +
               kUlp * (std::abs(bias64[c.Column(i)]) + std::abs(y64[i]));
      },
      "layer y " + Where(c));

  const std::vector<double> means64 = Doubles(means), inverse64 = Doubles(inverse);
  for (Write write : {Write::kOverwrite, Write::kAccumulate}) {
    std::vector<double> dx64 = Doubles(c.dx0);
    std::vector<double> dscale64 = Doubles(c.dscale0), dbias64 = Doubles(c.dbias0);
    reference::LayerNormBackward<double>(
        {x64.data(), scale64.data(), means64.data(), inverse64.data(), dy64.data(), dx64.data(),
         write, dscale64.data(), dbias64.data(), c.rows, c.width, nullptr});
    const bool accumulate = write == Write::kAccumulate;
    Guarded<float> dy(c.dy, 1), dscale(c.dscale0, 2), dbias(c.dbias0, 3), dbias_only(c.dbias0, 0);
    Guarded<float> dx(c.rows * c.width, shift);
    if (accumulate) std::copy(c.dx0.begin(), c.dx0.end(), dx.data());
    Guarded<float> workspace(NormBackwardWorkspace(c.rows, c.width), 1);
    LayerNormBackwardArgs args{x.data(),     scale.data(), mean.data(), inv.data(),
                               dy.data(),    dx.data(),    write,       dscale.data(),
                               dbias.data(), c.rows,       c.width,     workspace.data()};
    cpu::LayerNormBackward(args, parallel);
    ExpectWithin(
        dx.values(), dx64,
        [&](size_t i) {
          const size_t row = c.Row(i);
          const double xhat = std::abs((x64[i] - means64[row]) * inverse64[row]);
          const double g = std::abs(dy64[i] * scale64[c.Column(i)]);
          return kUlp *
                 (inverse64[row] * (4 * g + (3 + ulp) * m.g[row] + (5 + ulp) * xhat * m.gx[row]) +
                  (accumulate ? std::abs(dx64[i]) + std::abs(c.dx0[i]) : 0));
        },
        "layer dx " + Where(c));
    const std::vector<double> scale_magnitude = ColumnMagnitude(c, &means, &inverse);
    const std::vector<double> bias_magnitude = ColumnMagnitude(c, nullptr, nullptr);
    ExpectWithin(
        dscale.values(), dscale64,
        [&](size_t i) {
          return kUlp * (ColumnUlp(c) * scale_magnitude[i] + std::abs(c.dscale0[i]) +
                         std::abs(dscale64[i]));
        },
        "layer dscale " + Where(c));
    ExpectWithin(
        dbias.values(), dbias64,
        [&](size_t i) {
          return kUlp *
                 (ColumnUlp(c) * bias_magnitude[i] + std::abs(c.dbias0[i]) + std::abs(dbias64[i]));
        },
        "layer dbias " + Where(c));
    args.dx = nullptr;
    args.dscale = nullptr;
    args.dbias = dbias_only.data();
    cpu::LayerNormBackward(args, parallel);
    ExpectSameBits(dbias_only.values(), dbias.values(), "dbias alone");
    for (const Guarded<float>* b : {&x, &y, &mean, &inv, &dx, &dscale, &dbias, &workspace}) {
      ASSERT_TRUE(b->Intact()) << Where(c);
    }
  }
}

TEST(NormTest, AgreesWithReferenceAtEdges) {
  ForEachSimdLevel([&] {
    for (int64_t width : EdgeLengths()) {
      const Case c(3, width, 0.0f);
      CheckRms(c, static_cast<int>(width % 5), {});
      CheckLayer(c, static_cast<int>(width % 5), width % 2 == 1, {});
    }
    for (int64_t rows : {1, 63, 64, 65, 200}) {
      const Case c(rows, 37, 0.5f);
      CheckRms(c, 1, {});
      CheckLayer(c, 1, true, {});
    }
  });
}

// The mean is a thousand times the deviation: E[x^2] - mean^2 would lose all of the variance.
TEST(NormTest, LargeMeanDoesNotCancel) {
  ForEachSimdLevel([&] { CheckLayer(Case(4, 768, 1000.0f), 1, true, {}); });
}

TEST(NormTest, WideRows) {
  ForEachSimdLevel([&] {
    CheckRms(Case(2, 20000, 0.0f), 1, {});
    CheckLayer(Case(2, 20000, 0.25f), 1, true, {});
  });
}

TEST(NormTest, ReferenceGradient) {
  const int64_t rows = 3, width = 7;
  std::vector<double> x = Doubles(RandomFloats(rows * width, 1)),
                      scale = Doubles(RandomFloats(width, 2));
  std::vector<double> bias = Doubles(RandomFloats(width, 3));
  const std::vector<double> dy = Doubles(RandomFloats(rows * width, 4));
  std::vector<double> y(x.size()), mean(rows), inverse(rows), dx(x.size()), dscale(width),
      dbias(width);
  const auto rms = [&] {
    reference::RmsNormForward<double>(
        {x.data(), scale.data(), y.data(), inverse.data(), rows, width, kEpsilon});
    return Dot(y, dy);
  };
  rms();
  reference::RmsNormBackward<double>({x.data(), scale.data(), inverse.data(), dy.data(), dx.data(),
                                      Write::kOverwrite, dscale.data(), rows, width, nullptr});
  ExpectGradient(rms, &x, dx, "rms dx");
  ExpectGradient(rms, &scale, dscale, "rms dscale");

  dscale.assign(width, 0.0);
  const auto layer = [&] {
    reference::LayerNormForward<double>({x.data(), scale.data(), bias.data(), y.data(), mean.data(),
                                         inverse.data(), rows, width, kEpsilon});
    return Dot(y, dy);
  };
  layer();
  reference::LayerNormBackward<double>({x.data(), scale.data(), mean.data(), inverse.data(),
                                        dy.data(), dx.data(), Write::kOverwrite, dscale.data(),
                                        dbias.data(), rows, width, nullptr});
  ExpectGradient(layer, &x, dx, "layer dx");
  ExpectGradient(layer, &scale, dscale, "layer dscale");
  ExpectGradient(layer, &bias, dbias, "layer dbias");
}

TEST(NormTest, SameBitsForAnyNumberOfWorkers) {
  const Case c(333, 96, 0.1f);
  std::vector<std::vector<float>> results[2];
  for (int workers : {1, 2, 3}) {
    const Parallel parallel = ThreadsForTests(workers);
    std::vector<float> y(c.x.size()), mean(c.rows), inverse(c.rows), dx(c.x.size());
    std::vector<float> dscale = c.dscale0, dbias = c.dbias0, dscale_rms = c.dscale0;
    std::vector<float> workspace(NormBackwardWorkspace(c.rows, c.width));
    cpu::LayerNormForward({c.x.data(), c.scale.data(), c.bias.data(), y.data(), mean.data(),
                           inverse.data(), c.rows, c.width, 1e-5f},
                          parallel);
    cpu::LayerNormBackward(
        {c.x.data(), c.scale.data(), mean.data(), inverse.data(), c.dy.data(), dx.data(),
         Write::kOverwrite, dscale.data(), dbias.data(), c.rows, c.width, workspace.data()},
        parallel);
    cpu::RmsNormBackward({c.x.data(), c.scale.data(), inverse.data(), c.dy.data(), dx.data(),
                          Write::kAccumulate, dscale_rms.data(), c.rows, c.width, workspace.data()},
                         parallel);
    results[workers > 1] = {y, mean, inverse, dx, dscale, dbias, dscale_rms};
    if (workers == 1) continue;
    for (size_t i = 0; i < results[0].size(); ++i) {
      ExpectSameBits(results[0][i], results[1][i], "output " + std::to_string(i));
    }
  }
}

}  // namespace
}  // namespace permafrost::kernels
