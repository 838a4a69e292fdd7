#include "kernels/optimizer.h"

#include <algorithm>

#include "kernels/reference/optimizer.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/kernels/parallel_for_tests.h"

namespace permafrost::kernels {
namespace {

// torch 2.15 torch.optim.AdamW: p = 1, lr 0.1, weight decay 0.01, gradients 0.5 and -0.25. The form
// that transformers once had, which adds epsilon before the bias correction, gives 0.8991063178.
TEST(OptimizerTest, AdamWGolden) {
  double p = 1, m = 0, v = 0, g = 0.5;
  AdamWArgsOf<double> args{&p, &g, &m, &v, 1, 1, 1.0, 0.1, 0.9, 0.999, 1e-8, 0.01};
  reference::AdamW(args);
  EXPECT_NEAR(p, 0.899000002, 1e-12);
  g = -0.25;
  args.step = 2;
  reference::AdamW(args);
  EXPECT_NEAR(p, 0.8714672987058463, 1e-14);
  ForEachSimdLevel([&] {
    float p32 = 1, m32 = 0, v32 = 0, g32 = 0.25f;  // halved, and scaled back
    AdamWArgs args32{&p32, &g32, &m32, &v32, 1, 1, 2.0, 0.1, 0.9, 0.999, 1e-8, 0.01};
    cpu::AdamW(args32, {});
    EXPECT_NEAR(p32, 0.899000002, 2 * kUlp);
    g32 = -0.125f;
    args32.step = 2;
    cpu::AdamW(args32, {});
    EXPECT_NEAR(p32, 0.8714672987, 3 * kUlp);
  });
}

// torch 2.15 torch.optim.SGD: lr 0.1, momentum 0.9, weight decay 0.01.
TEST(OptimizerTest, SgdGolden) {
  const double want[2][3] = {{0.949, -1.973, 0.3995}, {0.932151, -1.966727, 0.2986505}};
  std::vector<double> p{1, -2, 0.5}, m(3);
  const double gradients[2][3] = {{0.5, -0.25, 1}, {-0.3, 0.2, 0.1}};
  for (int step = 0; step < 2; ++step) {
    reference::Sgd<double>({p.data(), gradients[step], m.data(), 3, 1.0, 0.1, 0.9, 0.01});
    for (int i = 0; i < 3; ++i) EXPECT_NEAR(p[i], want[step][i], 1e-14);
  }
}

struct AdafactorGolden {
  bool factored, scale_parameter;
  AdafactorDecay decay;
  double weight_decay;
  double after[2][6];
};

// P = [[1, -2, 3], [.5, .25, -1]], lr 0.3, clip 1, two gradients. The first: T5X 's Adafactor. The
// others: Adafactor of transformers 5.23 on f64 tensors, the unfactored ones on the flat tensor.
const AdafactorGolden kAdafactor[] = {
    {true,
     false,
     AdafactorDecay::kT5X,
     1e-5,
     {{0.8144859, -1.7159208, 2.6579174, 0.1835982, -0.0528107, -0.7082865},
      {1.2956545, -1.8833335, 2.4356841, 0.0043453, 0.040748, -0.9566131}}},
    {true,
     false,
     AdafactorDecay::kTransformers,
     1e-5,
     {{0.8144929, -1.7159348, 2.6579384, 0.1836017, -0.0528089, -0.7082935},
      {1.2956672, -1.8833595, 2.4357237, 0.0043501, 0.0407494, -0.956625}}},
    {true,
     true,
     AdafactorDecay::kTransformers,
     0.0,
     {{0.703652752, -1.546208501, 2.453562675, -0.005451564, -0.233743363, -0.533996684},
      {1.300960702, -1.754047377, 2.177726787, -0.227964602, -0.117605131, -0.842265215}}},
    {false,
     true,
     AdafactorDecay::kTransformers,
     0.1,
     {{0.472817038, -1.424891315, 2.376965591, -0.003220100, -0.241238669, -0.472817038},
      {0.900675918, -1.607179276, 2.010580238, -0.235324197, -0.128154811, -0.739344452}}},
    {false,
     false,
     AdafactorDecay::kTransformers,
     0.1,
     {{0.67, -1.64, 2.61, 0.185, -0.0575, -0.67},
      {1.030396338, -1.789612768, 2.289327765, -0.019362768, 0.033804703, -0.892272235}}},
};
constexpr double kAdafactorGradient[2][6] = {{.1, -.2, .3, .4, .5, -.6},
                                             {-.3, .1, .2, .2, -.1, .4}};

template <class T, class Update>
void CheckAdafactorGolden(const AdafactorGolden& golden, double tolerance, Update update) {
  std::vector<T> p{1, -2, 3, 0.5, 0.25, -1}, g(6), rows(2), columns(3), moment(6);
  for (int step = 1; step <= 2; ++step) {
    for (int i = 0; i < 6; ++i) g[i] = static_cast<T>(kAdafactorGradient[step - 1][i]);
    update(AdafactorArgsOf<T>{p.data(), g.data(), golden.factored ? rows.data() : nullptr,
                              golden.factored ? columns.data() : nullptr,
                              golden.factored ? nullptr : moment.data(), 2, 3, step, 1.0, 0.3,
                              golden.weight_decay, 1.0, golden.scale_parameter, golden.decay});
    for (int i = 0; i < 6; ++i)
      EXPECT_NEAR(p[i], golden.after[step - 1][i], tolerance) << step << " " << i;
  }
}

TEST(OptimizerTest, AdafactorGolden) {
  for (const AdafactorGolden& golden : kAdafactor) {
    SCOPED_TRACE(&golden - kAdafactor);
    // The digits of the first two are printed f32 values.
    const bool printed = golden.weight_decay == 1e-5;
    CheckAdafactorGolden<double>(golden, printed ? 3e-7 : 2e-9,
                                 [](const auto& args) { reference::Adafactor(args); });
    ForEachSimdLevel([&] {
      CheckAdafactorGolden<float>(golden, 8 * kUlp,
                                  [](const auto& args) { cpu::Adafactor(args, {}); });
    });
  }
}

// One step from random state against the f64 definition, at lengths around vectors and chunks.
TEST(OptimizerTest, AdamWAgreesWithReference) {
  ForEachSimdLevel([&] {
    for (int64_t n : EdgeLengths()) {
      // Large, and in turn too small to matter.
      const double epsilon = n % 2 == 1 ? 0.3 : 1e-8;
      std::vector<float> p = RandomFloats(n, 1), g = RandomFloats(n, 2),
                         m = RandomFloats(n, 3, 0.1f);
      std::vector<float> v = RandomFloats(n, 4);
      for (float& value : v) value = value * value + 1e-4f;
      std::vector<double> p64 = Doubles(p), g64 = Doubles(g), m64 = Doubles(m), v64 = Doubles(v);
      reference::AdamW<double>({p64.data(), g64.data(), m64.data(), v64.data(), n, 7, 0.3, 1e-2,
                                0.9, 0.999, epsilon, 0.1});
      Guarded<float> pa(p, 1), ga(g, 2), ma(m, 3), va(v, 1);
      cpu::AdamW(
          {pa.data(), ga.data(), ma.data(), va.data(), n, 7, 0.3, 1e-2, 0.9, 0.999, epsilon, 0.1},
          {});
      ExpectWithin(
          ma.values(), m64,
          [&](size_t i) { return kUlp * (std::abs(m[i]) + 0.3 * std::abs(g[i])); }, "m");
      ExpectWithin(
          va.values(), v64, [&](size_t i) { return 3 * kUlp * v64[i]; }, "v");
      ExpectWithin(
          pa.values(), p64,
          [&](size_t i) {
            // The size of the update if nothing cancels in m, with all its rounding steps.
            const double update =
                0.02 * (std::abs(m[i]) + 0.3 * std::abs(g[i])) / std::sqrt(v64[i] / 0.007);
            return kUlp * (2 * std::abs(p[i]) + 6 * update);
          },
          "p");
      ASSERT_TRUE(pa.Intact() && ma.Intact() && va.Intact() && ga.Intact());
    }
  });
}

TEST(OptimizerTest, SgdAgreesWithReference) {
  ForEachSimdLevel([&] {
    for (int64_t n : EdgeLengths()) {
      const std::vector<float> p = RandomFloats(n, 1), g = RandomFloats(n, 2),
                               m = RandomFloats(n, 3);
      for (bool momentum : {false, true}) {
        std::vector<double> p64 = Doubles(p), g64 = Doubles(g), m64 = Doubles(m);
        reference::Sgd<double>(
            {p64.data(), g64.data(), momentum ? m64.data() : nullptr, n, 0.5, 0.1, 0.9, 0.01});
        Guarded<float> pa(p, 1), ga(g, 2), ma(m, 3);
        cpu::Sgd({pa.data(), ga.data(), momentum ? ma.data() : nullptr, n, 0.5, 0.1, 0.9, 0.01},
                 {});
        const auto magnitude = [&](size_t i) {
          return std::abs(g[i]) + std::abs(m[i]) + 0.01 * std::abs(p[i]);
        };
        ExpectWithin(
            ma.values(), m64, [&](size_t i) { return 2 * kUlp * magnitude(i); }, "m");
        ExpectWithin(
            pa.values(), p64,
            [&](size_t i) {
              return kUlp * (std::abs(p[i]) + std::abs(p64[i]) + 0.3 * magnitude(i));
            },
            "p");
        ASSERT_TRUE(pa.Intact() && ma.Intact());
      }
    }
  });
}

TEST(OptimizerTest, AdafactorAgreesWithReference) {
  const int64_t shapes[][2] = {{1, 1},   {1, 17},  {17, 1},    {3, 5},
                               {64, 16}, {65, 33}, {130, 260}, {3, 20000}};
  ForEachSimdLevel([&] {
    for (const auto& shape : shapes) {
      const int64_t rows = shape[0], columns = shape[1], n = rows * columns;
      for (bool factored : {false, true}) {
        const std::vector<float> p = RandomFloats(n, 1), g = RandomFloats(n, 2);
        std::vector<float> r = RandomFloats(rows, 3), c = RandomFloats(columns, 4),
                           v = RandomFloats(n, 5);
        for (auto* moments : {&r, &c, &v}) {
          for (float& value : *moments) value = value * value + 1e-3f;
        }
        std::vector<double> p64 = Doubles(p), g64 = Doubles(g), r64 = Doubles(r), c64 = Doubles(c),
                            v64 = Doubles(v);
        reference::Adafactor<double>({p64.data(), g64.data(), factored ? r64.data() : nullptr,
                                      factored ? c64.data() : nullptr,
                                      factored ? nullptr : v64.data(), rows, columns, 5, 0.7, 0.1,
                                      1e-3, 1.0, true, AdafactorDecay::kT5X});
        Guarded<float> pa(p, 1), ga(g, 2), ra(r, 1), ca(c, 3), va(v, 2);
        cpu::Adafactor({pa.data(), ga.data(), factored ? ra.data() : nullptr,
                        factored ? ca.data() : nullptr, factored ? nullptr : va.data(), rows,
                        columns, 5, 0.7, 0.1, 1e-3, 1.0, true, AdafactorDecay::kT5X},
                       {});
        // Sums of positive f32 terms: 64 rows or one lane's share of a chunk of 1024 columns.
        const double sum_ulp = 0.5 * (std::min<int64_t>(64, std::max(rows, columns)) + 8);
        ExpectWithin(
            ra.values(), r64, [&](size_t i) { return kUlp * (3 + sum_ulp) * r64[i]; }, "R");
        ExpectWithin(
            ca.values(), c64, [&](size_t i) { return kUlp * (3 + sum_ulp) * c64[i]; }, "C");
        ExpectWithin(
            va.values(), v64, [&](size_t i) { return 3 * kUlp * v64[i]; }, "V");
        // Both moments, their mean and the two root mean squares enter as square roots.
        ExpectWithin(
            pa.values(), p64,
            [&](size_t i) {
              const double update = std::abs(p64[i] - 0.999 * p[i]);
              return kUlp * (2 * std::abs(p[i]) + (6 + 2.5 * sum_ulp) * update);
            },
            "p");
        ASSERT_TRUE(pa.Intact() && ra.Intact() && ca.Intact() && va.Intact());
      }
    }
  });
}

// A gradient of zeros changes nothing but the decay, and makes no NaN (its moments are 1e-30).
TEST(OptimizerTest, AdafactorZeroGradient) {
  ForEachSimdLevel([&] {
    for (bool factored : {false, true}) {
      std::vector<float> p(6, 2.0f), r(2), c(3), v(6);
      const std::vector<float> g(6);
      cpu::Adafactor(
          {p.data(), g.data(), factored ? r.data() : nullptr, factored ? c.data() : nullptr,
           factored ? nullptr : v.data(), 2, 3, 1, 1.0, 0.3, 0.0, 1.0, false, AdafactorDecay::kT5X},
          {});
      for (float value : p) EXPECT_EQ(value, 2.0f);
    }
  });
}

TEST(OptimizerTest, SameBitsForAnyNumberOfWorkers) {
  const int64_t rows = 150, columns = 300, n = rows * columns;
  const std::vector<float> start = RandomFloats(n, 1), g = RandomFloats(n, 2);
  std::vector<float> results[4][3];
  for (int workers : {1, 2, 3}) {
    const Parallel parallel = ThreadsForTests(workers);
    std::vector<float> p[4] = {start, start, start, start}, m(n), v(n), m2(n), r(rows), c(columns),
                       v2(n);
    for (int step = 1; step <= 2; ++step) {
      cpu::AdamW(
          {p[0].data(), g.data(), m.data(), v.data(), n, step, 1.0, 0.1, 0.9, 0.999, 1e-8, 0.01},
          parallel);
      cpu::Sgd({p[1].data(), g.data(), m2.data(), n, 1.0, 0.1, 0.9, 0.01}, parallel);
      cpu::Adafactor({p[2].data(), g.data(), r.data(), c.data(), nullptr, rows, columns, step, 1.0,
                      0.1, 1e-3, 1.0, true, AdafactorDecay::kT5X},
                     parallel);
      cpu::Adafactor({p[3].data(), g.data(), nullptr, nullptr, v2.data(), rows, columns, step, 1.0,
                      0.1, 1e-3, 1.0, true, AdafactorDecay::kTransformers},
                     parallel);
    }
    for (int i = 0; i < 4; ++i) {
      results[i][workers - 1] = p[i];
      ExpectSameBits(results[i][workers - 1], results[i][0], "optimizer " + std::to_string(i));
    }
  }
}

}  // namespace
}  // namespace permafrost::kernels
