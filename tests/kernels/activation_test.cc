#include "kernels/activation.h"

#include "kernels/reference/activation.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/kernels/parallel_for_tests.h"

namespace permafrost::kernels {
namespace {

constexpr Activation kAll[] = {Activation::kRelu, Activation::kGeluErf, Activation::kGeluTanh,
                               Activation::kSilu, Activation::kTanh,    Activation::kLeakyRelu};

std::string Name(Activation activation) {
  const char* const names[] = {"relu", "gelu_erf", "gelu_tanh", "silu", "tanh", "leaky_relu"};
  return names[static_cast<int>(activation)];
}

// The argument 2 u of the sigmoid of gelu_tanh.
double GeluArgument(double x) {
  return 2 * reference::kGeluTanhScale * x * (1 + reference::kGeluTanhCubic * x * x);
}

// Error bounds: rounding steps in ulp of each term. A denormal factor may be off by its own unit.
double ValueBound(Activation activation, double x) {
  const double y = std::abs(reference::Activate(activation, x));
  const double denormal = (1 + std::abs(x)) * std::ldexp(1.0, -148);
  switch (activation) {
    case Activation::kRelu:
      return 0;
    case Activation::kGeluErf:
      return 4 * kUlp * y + denormal;
    case Activation::kGeluTanh: {
      // The rounding of u (two steps) enters through d ln sigmoid(2u) = (1 - s) d(2u).
      const double u = GeluArgument(x);
      return kUlp * (3 + 1.5 * std::abs(u) * reference::Sigmoid(-u)) * y + denormal;
    }
    case Activation::kSilu:
      return 3 * kUlp * y + denormal;
    case Activation::kTanh:
      return 2 * kUlp * y + denormal;
    case Activation::kLeakyRelu:  // below 0: the product, and the slope as a float
      return x < 0 ? 2 * kUlp * y + denormal : 0;
  }
  return 0;
}

double SlopeBound(Activation activation, double x) {
  const double denormal = (1 + std::abs(x)) * std::ldexp(1.0, -147);
  switch (activation) {
    case Activation::kRelu:
      return 0;
    case Activation::kLeakyRelu:
      return kUlp * kLeakySlope;
    case Activation::kGeluErf:
      return kUlp * (4 * reference::NormalCdf(x) + 3 * std::abs(x) * reference::NormalDensity(x)) +
             denormal;
    case Activation::kGeluTanh: {
      const double u = GeluArgument(x), s = reference::Sigmoid(u), c = reference::Sigmoid(-u);
      const double du = 2 * reference::kGeluTanhScale * (1 + 3 * reference::kGeluTanhCubic * x * x);
      return kUlp * (3 * s + 1.5 * std::abs(u) * s * c +
                     (7 + 3 * std::abs(u)) * std::abs(x) * s * c * du) +
             denormal * 100;
    }
    case Activation::kSilu: {
      const double s = reference::Sigmoid(x);
      return kUlp * (3 * s + 6 * std::abs(x) * s * reference::Sigmoid(-x)) + denormal;
    }
    case Activation::kTanh:
      return 5 * kUlp * reference::ActivationDerivative(activation, x) + 4 * denormal;
  }
  return 0;
}

// Floats of both signs: evenly spaced in [-20, 20], and every magnitude from 1e-40 to 200.
std::vector<float> Sweep() {
  std::vector<float> values{0.0f, -0.0f};
  for (int i = -60000; i <= 60000; ++i) values.push_back(static_cast<float>(i) * 3.3333e-4f);
  for (double magnitude = 1e-40; magnitude < 200; magnitude *= 1.004) {
    values.push_back(static_cast<float>(magnitude));
    values.push_back(static_cast<float>(-magnitude));
  }
  return values;
}

TEST(ActivationTest, AccuracyOverADenseSweep) {
  const std::vector<float> x = Sweep();
  const std::vector<float> ones(x.size(), 1.0f);
  const int64_t count = static_cast<int64_t>(x.size());
  for (Activation activation : kAll) {
    std::vector<double> value, slope, value_bound, slope_bound;
    for (float v : x) {
      value.push_back(reference::Activate(activation, static_cast<double>(v)));
      slope.push_back(reference::ActivationDerivative(activation, static_cast<double>(v)));
      value_bound.push_back(ValueBound(activation, v));
      slope_bound.push_back(SlopeBound(activation, v));
    }
    ForEachSimdLevel([&] {
      std::vector<float> y(x.size()), dx(x.size());
      cpu::ActivationForward({activation, x.data(), y.data(), count}, {});
      ExpectWithin(
          y, value, [&](size_t i) { return value_bound[i]; }, Name(activation));
      cpu::ActivationBackward({activation, x.data(), ones.data(), dx.data(), count}, {});
      ExpectWithin(
          dx, slope, [&](size_t i) { return slope_bound[i]; }, Name(activation) + "'");
    });
  }
}

// torch: nn.functional.gelu(x, approximate="tanh") and gelu(x). The two differ by up to 5e-4.
TEST(ActivationTest, GeluFormsAreToldApart) {
  const float x[] = {-3.0f, -1.0f, 0.5f, 1.0f};
  const double tanh_form[] = {-0.00363739, -0.15880801, 0.34571401, 0.84119199};
  const double erf_form[] = {-0.00404969, -0.15865525, 0.34573123, 0.84134475};
  float y[4];
  cpu::ActivationForward({Activation::kGeluTanh, x, y, 4}, {});
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(y[i], tanh_form[i], 6e-8);
  cpu::ActivationForward({Activation::kGeluErf, x, y, 4}, {});
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(y[i], erf_form[i], 6e-8);
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(reference::Activate<double>(Activation::kGeluTanh, x[i]), tanh_form[i], 6e-9);
    EXPECT_NEAR(reference::Activate<double>(Activation::kGeluErf, x[i]), erf_form[i], 6e-9);
  }
}

TEST(ActivationTest, ExtremesAndNaN) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float x[] = {1e4f, -1e4f, 1e30f, -1e30f, infinity, kNaN};
  const float one[] = {1, 1, 1, 1, 1, 1};
  ForEachSimdLevel([&] {
    for (Activation activation : kAll) {
      float y[6], slope[6];
      cpu::ActivationForward({activation, x, y, 6}, {});
      cpu::ActivationBackward({activation, x, one, slope, 6}, {});
      const bool bounded = activation == Activation::kTanh;
      const float below = activation == Activation::kLeakyRelu ? 0.01f : 0.0f;
      EXPECT_EQ(y[0], bounded ? 1.0f : 1e4f) << Name(activation);
      EXPECT_EQ(y[1], bounded ? -1.0f : below * -1e4f) << Name(activation);
      EXPECT_EQ(y[2], bounded ? 1.0f : 1e30f) << Name(activation);
      EXPECT_EQ(y[3], bounded ? -1.0f : below * -1e30f) << Name(activation);
      EXPECT_EQ(y[4], bounded ? 1.0f : infinity) << Name(activation);
      EXPECT_TRUE(std::isnan(y[5])) << Name(activation);
      for (int i = 0; i < 4; ++i) {
        EXPECT_EQ(slope[i], bounded      ? 0.0f
                            : i % 2 == 1 ? below
                                         : 1.0f)
            << Name(activation) << " " << x[i];
      }
      EXPECT_TRUE(activation == Activation::kRelu || activation == Activation::kLeakyRelu ||
                  std::isnan(slope[5]))
          << Name(activation);
    }
  });
}

TEST(ActivationTest, EdgesOfBuffers) {
  ForEachSimdLevel([&] {
    for (Activation activation : kAll) {
      for (int64_t n : EdgeLengths()) {
        const int shift = static_cast<int>(n % 5);
        const std::vector<float> gate_values = RandomFloats(n, 1, 2.0f);
        const std::vector<float> up_values = RandomFloats(n, 2), dy_values = RandomFloats(n, 3);
        Guarded<float> gate(gate_values, shift), up(up_values, 0), dy(dy_values, 1);
        Guarded<float> y(n, 2), z(n, 3), dx(n, 1), dgate(n, 0), dup(n, 4), dup_only(n, 1);
        cpu::ActivationForward({activation, gate.data(), y.data(), n}, {});
        cpu::GatedForward({activation, gate.data(), up.data(), z.data(), n}, {});
        cpu::ActivationBackward({activation, gate.data(), dy.data(), dx.data(), n}, {});
        cpu::GatedBackward(
            {activation, gate.data(), up.data(), dy.data(), dgate.data(), dup.data(), n}, {});
        cpu::GatedBackward(
            {activation, gate.data(), up.data(), dy.data(), nullptr, dup_only.data(), n}, {});
        const auto at = [&](size_t i) { return static_cast<double>(gate_values[i]); };
        std::vector<double> want_y, want_z, want_dx, want_dgate, want_dup;
        for (size_t i = 0; i < gate_values.size(); ++i) {
          const double value = reference::Activate(activation, at(i));
          const double slope = reference::ActivationDerivative(activation, at(i));
          want_y.push_back(value);
          want_z.push_back(value * up_values[i]);
          want_dx.push_back(slope * dy_values[i]);
          want_dgate.push_back(slope * up_values[i] * dy_values[i]);
          want_dup.push_back(value * dy_values[i]);
        }
        // One more rounding for each product.
        const auto value = [&](size_t i) { return ValueBound(activation, at(i)); };
        const auto slope = [&](size_t i) { return SlopeBound(activation, at(i)); };
        const std::string name = Name(activation);
        ExpectWithin(y.values(), want_y, value, name);
        ExpectWithin(
            z.values(), want_z,
            [&](size_t i) {
              return value(i) * std::abs(up_values[i]) + kUlp * std::abs(want_z[i]);
            },
            name + " gated");
        ExpectWithin(
            dx.values(), want_dx,
            [&](size_t i) {
              return slope(i) * std::abs(dy_values[i]) + kUlp * std::abs(want_dx[i]);
            },
            name + " dx");
        ExpectWithin(
            dgate.values(), want_dgate,
            [&](size_t i) {
              return slope(i) * std::abs(up_values[i] * dy_values[i]) +
                     2 * kUlp * std::abs(want_dgate[i]);
            },
            name + " dgate");
        ExpectWithin(
            dup.values(), want_dup,
            [&](size_t i) {
              return value(i) * std::abs(dy_values[i]) + kUlp * std::abs(want_dup[i]);
            },
            name + " dup");
        ExpectSameBits(dup_only.values(), dup.values(), name);
        Guarded<float> dgate_only(n, 2);
        cpu::GatedBackward(
            {activation, gate.data(), up.data(), dy.data(), dgate_only.data(), nullptr, n}, {});
        ExpectSameBits(dgate_only.values(), dgate.values(), name);
        for (const Guarded<float>* b : {&y, &z, &dx, &dgate, &dup, &dup_only, &dgate_only}) {
          ASSERT_TRUE(b->Intact()) << name << " " << n;
        }
        // In place: outputs over inputs.
        cpu::ActivationForward({activation, y.data(), y.data(), 0}, {});
        cpu::GatedForward({activation, gate.data(), up.data(), up.data(), n}, {});
        ExpectSameBits(up.values(), z.values(), name);
        cpu::ActivationBackward({activation, gate.data(), dy.data(), dy.data(), n}, {});
        ExpectSameBits(dy.values(), dx.values(), name);
        cpu::ActivationForward({activation, gate.data(), gate.data(), n}, {});
        ExpectSameBits(gate.values(), y.values(), name);
      }
    }
  });
}

TEST(ActivationTest, ReferenceGradient) {
  for (Activation activation : kAll) {
    std::vector<double> gate = Doubles(RandomFloats(40, 5, 2.0f)),
                        up = Doubles(RandomFloats(40, 6));
    const std::vector<double> dy = Doubles(RandomFloats(40, 7));
    std::vector<double> y(40), dgate(40), dup(40), dx(40);
    reference::GatedBackward<double>(
        {activation, gate.data(), up.data(), dy.data(), dgate.data(), dup.data(), 40});
    const auto loss = [&] {
      reference::GatedForward<double>({activation, gate.data(), up.data(), y.data(), 40});
      return Dot(y, dy);
    };
    ExpectGradient(loss, &gate, dgate, Name(activation) + " dgate");
    ExpectGradient(loss, &up, dup, Name(activation) + " dup");
    reference::ActivationBackward<double>({activation, gate.data(), dy.data(), dx.data(), 40});
    ExpectGradient(
        [&] {
          reference::ActivationForward<double>({activation, gate.data(), y.data(), 40});
          return Dot(y, dy);
        },
        &gate, dx, Name(activation) + " dx");
  }
}

TEST(ActivationTest, ReluMask) {
  ForEachSimdLevel([&] {
    for (int64_t n : EdgeLengths()) {
      std::vector<float> values = RandomFloats(n, 11);
      if (n > 2) values[2] = 0.0f;
      const std::vector<float> dy = RandomFloats(n, 12);
      Guarded<float> x(values, 1), y(n, 3), dx(n, 2);
      Guarded<uint8_t> mask((n + 7) / 8, 1);
      cpu::ReluMaskForward({x.data(), y.data(), mask.data(), n}, {});
      cpu::ReluMaskBackward({mask.data(), dy.data(), dx.data(), n}, {});
      std::vector<float> want_y(values.size()), want_dx(values.size());
      std::vector<uint8_t> want_mask((values.size() + 7) / 8);
      reference::ReluMaskForward({values.data(), want_y.data(), want_mask.data(), n});
      reference::ReluMaskBackward({want_mask.data(), dy.data(), want_dx.data(), n});
      EXPECT_EQ(mask.values(), want_mask) << n;
      ExpectSameBits(y.values(), want_y, "y");
      ExpectSameBits(dx.values(), want_dx, "dx");
      // The mask is all that the gradient needs.
      for (size_t i = 0; i < values.size(); ++i) {
        EXPECT_EQ(want_dx[i], values[i] > 0 ? dy[i] : 0.0f);
      }
      ASSERT_TRUE(x.Intact() && y.Intact() && dx.Intact() && mask.Intact()) << n;
    }
  });
}

TEST(ActivationTest, SameBitsForAnyNumberOfWorkers) {
  const int64_t n = 50001;
  const std::vector<float> gate = RandomFloats(n, 21), up = RandomFloats(n, 22);
  std::vector<float> one(gate.size()), other(gate.size());
  std::vector<uint8_t> mask_one((n + 7) / 8), mask_other((n + 7) / 8);
  cpu::GatedForward({Activation::kSilu, gate.data(), up.data(), one.data(), n}, {});
  cpu::ReluMaskForward({gate.data(), other.data(), mask_one.data(), n}, {});
  for (int workers : {2, 3}) {
    const Parallel parallel = ThreadsForTests(workers);
    cpu::ReluMaskForward({gate.data(), other.data(), mask_other.data(), n}, parallel);
    EXPECT_EQ(mask_one, mask_other);
    cpu::GatedForward({Activation::kSilu, gate.data(), up.data(), other.data(), n}, parallel);
    ExpectSameBits(one, other, "gated silu");
  }
}

}  // namespace
}  // namespace permafrost::kernels
