#include "kernels/cross_entropy.h"

#include <algorithm>

#include "kernels/reference/cross_entropy.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/kernels/parallel_for_tests.h"

namespace permafrost::kernels {
namespace {

// Relative error of a sum of V positive f32 exponentials in ulp: two for each exponential, half for
// the rounding of the argument per unit of |z - max| (here weighted by e^(z - max), so at most
// 0.5 / e), and the additions of a lane within a chunk (64 at the narrowest target) plus combining.
constexpr double kSumUlp = 2 + 0.2 + 0.5 * (64 + 8);

struct Case {
  Case(int64_t rows_in, int64_t vocabulary_in, float spread, double z_loss_in)
      : rows(rows_in),
        vocabulary(vocabulary_in),
        stride(vocabulary_in + 3),
        z_loss(z_loss_in),
        logits(RandomFloats(rows * stride, 1, spread)),
        row_scale(RandomFloats(rows, 2)) {
    std::mt19937 generator(3);
    for (int64_t i = 0; i < rows; ++i) {
      labels.push_back(static_cast<int32_t>(generator() % static_cast<uint32_t>(vocabulary)));
      // The gap between rows must not be read.
      for (int64_t c = vocabulary; c < stride; ++c) logits[i * stride + c] = kNaN;
    }
  }
  int64_t rows, vocabulary, stride;
  double z_loss;
  std::vector<float> logits, row_scale;
  std::vector<int32_t> labels;
};

void Check(const Case& c, int shift, bool scaled) {
  const std::vector<double> z = Doubles(c.logits), scale = Doubles(c.row_scale);
  std::vector<double> loss64(static_cast<size_t>(c.rows)), dz64(z.size());
  reference::CrossEntropy<double>({z.data(), c.stride, c.labels.data(), loss64.data(),
                                   scaled ? scale.data() : nullptr, dz64.data(), c.rows,
                                   c.vocabulary, static_cast<float>(c.z_loss)});
  Guarded<float> logits(c.logits, shift), loss(c.rows, 1), loss_only(c.rows, 2),
      row_scale(c.row_scale, 3);
  Guarded<float> dlogits(c.rows * c.stride, 1);
  CrossEntropyArgs args{logits.data(),
                        c.stride,
                        c.labels.data(),
                        loss.data(),
                        scaled ? row_scale.data() : nullptr,
                        dlogits.data(),
                        c.rows,
                        c.vocabulary,
                        static_cast<float>(c.z_loss)};
  cpu::CrossEntropy(args, {});
  std::vector<double> max(loss64.size(), -1e300), lse(loss64.size());
  for (size_t row = 0; row < loss64.size(); ++row) {
    const double* first = z.data() + row * static_cast<size_t>(c.stride);
    double sum = 0;
    for (int64_t k = 0; k < c.vocabulary; ++k) max[row] = std::max(max[row], first[k]);
    for (int64_t k = 0; k < c.vocabulary; ++k) sum += std::exp(first[k] - max[row]);
    lse[row] = max[row] + std::log(sum);
  }
  ExpectWithin(
      loss.values(), loss64,
      [&](size_t row) {
        return kUlp * (std::abs(loss64[row]) + kSumUlp * (1 + 2 * c.z_loss * std::abs(lse[row])));
      },
      "loss " + std::to_string(c.vocabulary));
  const std::vector<float> dz = dlogits.values();
  for (int64_t row = 0; row < c.rows; ++row) {
    const size_t at = static_cast<size_t>(row * c.stride),
                 width = static_cast<size_t>(c.vocabulary);
    const std::vector<float> got(dz.begin() + at, dz.begin() + at + width);
    const std::vector<double> want(dz64.begin() + at, dz64.begin() + at + width);
    const double s = scaled ? std::abs(scale[row]) : 1.0;
    ExpectWithin(
        got, want,
        [&](size_t k) {
          const double p = std::exp(z[at + k] - lse[row]);
          return s * (1 + 2 * c.z_loss * std::abs(lse[row])) * kUlp *
                     (p * (kSumUlp + 4 + std::abs(z[at + k] - max[row]))) +
                 kUlp * std::abs(want[k]) + std::ldexp(1.0, -140);
        },
        "dlogits " + std::to_string(c.vocabulary));
    for (size_t k = width; k < static_cast<size_t>(c.stride) && at + k < dz.size(); ++k) {
      EXPECT_TRUE(std::isnan(dz[at + k])) << "wrote between rows";
    }
  }
  args.loss = loss_only.data();
  args.dlogits = nullptr;
  cpu::CrossEntropy(args, {});
  ExpectSameBits(loss_only.values(), loss.values(), "loss alone");
  args.dlogits = logits.data();
  cpu::CrossEntropy(args, {});
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t k = 0; k < c.vocabulary; ++k) {
      ASSERT_EQ(logits.data()[row * c.stride + k], dz[row * c.stride + k]) << "in place";
    }
  }
  ASSERT_TRUE(logits.Intact() && loss.Intact() && loss_only.Intact() && dlogits.Intact());
}

TEST(CrossEntropyTest, AgreesWithReference) {
  ForEachSimdLevel([&] {
    for (int64_t vocabulary : EdgeLengths()) {
      Check(Case(3, vocabulary, 1.0f, 0.0), static_cast<int>(vocabulary % 5), false);
      Check(Case(2, vocabulary, 8.0f, 1e-4), static_cast<int>(vocabulary % 3), true);
    }
    for (int64_t vocabulary : {4095, 4096, 4097, 32128, 50257}) {
      Check(Case(2, vocabulary, 3.0f, 1e-4), 1, true);
    }
  });
}

// 250,000 equal logits: every addition of a naive f32 sum rounds.
TEST(CrossEntropyTest, LargeVocabulary) {
  ForEachSimdLevel([&] {
    const int64_t vocabulary = 250000;
    const std::vector<float> logits(static_cast<size_t>(vocabulary), 0.7f);
    const int32_t label = 17;
    float loss;
    cpu::CrossEntropy(
        {logits.data(), vocabulary, &label, &loss, nullptr, nullptr, 1, vocabulary, 0.0f}, {});
    EXPECT_NEAR(loss, std::log(250000.0), 1e-6);
  });
  Check(Case(1, 250001, 2.0f, 0.0), 1, false);
}

// The maximum rises over the blocks: earlier sums are scaled down.
TEST(CrossEntropyTest, RisingAndFallingLogits) {
  ForEachSimdLevel([&] {
    for (double slope : {0.004, -0.004}) {
      Case c(1, 30000, 0.0f, 0.0);
      for (int64_t k = 0; k < c.vocabulary; ++k) {
        c.logits[k] = static_cast<float>(slope * static_cast<double>(k));
      }
      Check(c, 1, false);
    }
  });
}

TEST(CrossEntropyTest, InfiniteAndNaNLogits) {
  const float infinity = std::numeric_limits<float>::infinity();
  ForEachSimdLevel([&] {
    std::vector<float> logits(9000, -infinity), dz(9000);
    logits[8999] = 1.0f;
    logits[5000] = 1.0f;
    const int32_t label = 8999;
    float loss;
    const CrossEntropyArgs args{logits.data(), 9000, &label, &loss, nullptr,
                                dz.data(),     1,    9000,   0.0f};
    cpu::CrossEntropy(args, {});
    EXPECT_NEAR(loss, std::log(2.0), kUlp);
    EXPECT_NEAR(dz[8999], -0.5, kUlp);
    EXPECT_NEAR(dz[5000], 0.5, kUlp);
    EXPECT_EQ(dz[0], 0.0f);
    for (size_t at : {size_t{0}, size_t{4000}, size_t{8998}}) {
      const float kept = logits[at];
      logits[at] = kNaN;
      cpu::CrossEntropy(args, {});
      EXPECT_TRUE(std::isnan(loss)) << at;
      EXPECT_TRUE(std::isnan(dz[8999])) << at;
      logits[at] = kept;
    }
  });
}

TEST(CrossEntropyTest, ReferenceGradient) {
  const int64_t rows = 3, vocabulary = 9;
  std::vector<double> z = Doubles(RandomFloats(rows * vocabulary, 1, 2.0f)), dz(z.size());
  const std::vector<double> scale = Doubles(RandomFloats(rows, 2));
  const std::vector<int32_t> labels{8, 0, 4};
  std::vector<double> loss(rows);
  reference::CrossEntropy<double>({z.data(), vocabulary, labels.data(), loss.data(), scale.data(),
                                   dz.data(), rows, vocabulary, 0.05});
  ExpectGradient(
      [&] {
        reference::CrossEntropy<double>({z.data(), vocabulary, labels.data(), loss.data(), nullptr,
                                         nullptr, rows, vocabulary, 0.05});
        return Dot(loss, scale);
      },
      &z, dz, "dlogits");
}

TEST(CrossEntropyTest, SameBitsForAnyNumberOfWorkers) {
  const Case c(7, 5003, 2.0f, 1e-4);
  std::vector<float> one(c.logits.size()), other(c.logits.size()), loss(7), loss_other(7);
  CrossEntropyArgs args{c.logits.data(), c.stride, c.labels.data(), loss.data(), c.row_scale.data(),
                        one.data(),      c.rows,   c.vocabulary,    1e-4f};
  cpu::CrossEntropy(args, {});
  args.loss = loss_other.data();
  args.dlogits = other.data();
  for (int workers : {2, 3}) {
    cpu::CrossEntropy(args, ThreadsForTests(workers));
    ExpectSameBits(loss, loss_other, "loss");
    ExpectSameBits(one, other, "dlogits");
  }
}

}  // namespace
}  // namespace permafrost::kernels
