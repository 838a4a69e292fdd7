// Attention kernels against the f64 reference on every SIMD level, and the reference against
// central differences.
#include "kernels/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "kernels/simd.h"
#include "tests/kernels/attention_problem.h"

namespace permafrost::kernels {
namespace {

// A causal prompt with children, one of which has a child of its own.
AttentionProblem Forest(int64_t prompt, int64_t length) {
  AttentionProblem p;
  p.heads = 6, p.key_heads = 2, p.head_size = 16, p.causal = true;
  const KeySpan root = {1, prompt, 0};
  p.Add(prompt, 0, {root});
  int64_t row = prompt + 2;
  for (int64_t child = 0; child < 3; ++child) {
    const KeySpan own = {row, length + child, prompt};
    p.Add(length + child, prompt, {root, own});
    row += length + child;
    if (child == 1) {
      const KeySpan grandchild = {row, 5, prompt + length + child};
      p.Add(5, prompt + length + child, {root, own, grandchild});
      row += 5;
    }
  }
  return p;
}

AttentionProblem Plain(int64_t queries, int64_t keys, int64_t head_size) {
  AttentionProblem p;
  p.head_size = head_size;
  p.Add(queries, 0, {{1, keys, 0}});
  return p;
}

AttentionProblem Encoder(int64_t length, int64_t segments, int64_t bias_distance) {
  AttentionProblem p;
  p.heads = p.key_heads = 2, p.head_size = 24, p.bias_distance = bias_distance, p.scale = 1.0;
  p.magnitude = 0.4;
  for (int64_t s = 0; s < segments; ++s) p.Add(length, 0, {{1 + s * length, length, 0}});
  return p;
}

// Segments of all kinds; about half of the spans read rows that other segments read too.
AttentionProblem Random(uint32_t seed) {
  std::mt19937 rng(seed);
  const auto pick = [&](int64_t lo, int64_t hi) {
    return std::uniform_int_distribution<int64_t>(lo, hi)(rng);
  };
  AttentionProblem p;
  p.key_heads = pick(1, 3);
  p.heads = p.key_heads * pick(1, 3);
  p.head_size = pick(1, 40);
  p.causal = pick(0, 1) == 1;
  p.bias_distance = pick(0, 1) == 1 ? pick(0, 30) : -1;
  p.padding = pick(0, 1) * pick(1, 20);
  int64_t fresh = 1;
  for (int64_t s = pick(1, 4); s > 0; --s) {
    std::vector<KeySpan> reads;
    int64_t position = pick(0, 5);
    for (int64_t i = pick(0, 3); i > 0; --i) {
      const int64_t length = pick(0, 60);
      const bool shared = fresh > 1 && pick(0, 1) == 1;
      const int64_t begin = shared ? pick(1, fresh - 1) : fresh;
      reads.push_back({begin, length, position});
      fresh = std::max(fresh, begin + length + pick(0, 1));
      position += length + (pick(0, 3) == 0 ? pick(-20, 100) : 0);
    }
    p.Add(pick(0, 70), pick(0, position), reads);
    if (pick(0, 1) == 1) p.segments.back().bias_shift = pick(-40, 40);
  }
  return p;
}

// Compares named rows within bounds and demands the sentinel everywhere else.
template <class Ranges>
void ExpectRows(const char* name, const std::vector<float>& got, const std::vector<double>& want,
                const std::vector<double>& bound, int64_t stride, int64_t width,
                const Ranges& ranges) {
  std::vector<bool> named(got.size());
  int failures = 0;
  for (const auto& range : ranges) {
    for (int64_t i = range.begin; i < range.begin + range.length; ++i) {
      for (int64_t c = 0; c < width; ++c) {
        const int64_t at = i * stride + c;
        named[at] = true;
        if (got[at] == want[at]) continue;  // also infinities
        // Probabilities below the smallest f32 become zero.
        if (!(std::abs(got[at] - want[at]) <= bound[at] + 1e-35) && ++failures < 4) {
          ADD_FAILURE() << name << " row " << i << " column " << c << ": " << got[at]
                        << ", expected " << want[at] << " within " << bound[at];
        }
      }
    }
  }
  for (size_t i = 0; i < got.size(); ++i) {
    if (!named[i] && got[i] != kSentinel && ++failures < 4) {
      ADD_FAILURE() << name << " element " << i << " touched: " << got[i];
    }
  }
}

void CheckAgainstReference(const AttentionProblem& p, uint32_t seed) {
  const AttentionData<float> inputs = MakeData(p, seed);
  AttentionData<double> want = ConvertData<double>(inputs);
  reference::AttentionForward(ForwardArgs(p, want));
  reference::AttentionBackward(BackwardArgs(p, want));
  const AttentionData<double> bound = ErrorBounds(p, want);
  const int64_t width = p.heads * p.head_size, key_width = p.key_heads * p.head_size;
  for (const std::string& level : cpu::AvailableSimdLevels()) {
    SCOPED_TRACE(level);
    ASSERT_TRUE(cpu::SetSimdLevel(level));
    AttentionData<float> got = inputs;
    RunForward(p, got);
    ExpectRows("out", got.out, want.out, bound.out, p.QueryStride(), width, p.segments);
    ExpectRows("lse", got.lse, want.lse, bound.lse, p.heads, p.heads, p.segments);
    std::fill(got.out.begin(), got.out.end(), kSentinel);
    RunForward(p, got, 1, /*keep_lse=*/false);
    ExpectRows("out without lse", got.out, want.out, bound.out, p.QueryStride(), width, p.segments);
    got.out = Convert<float>(want.out);
    got.lse = Convert<float>(want.lse);
    RunBackward(BackwardArgs(p, got));
    ExpectRows("dq", got.dq, want.dq, bound.dq, p.QueryStride(), width, p.segments);
    ExpectRows("dk", got.dk, want.dk, bound.dk, p.KeyStride(), key_width, p.spans);
    ExpectRows("dv", got.dv, want.dv, bound.dv, p.KeyStride(), key_width, p.spans);
    const std::vector<KeySpan> all = {{0, static_cast<int64_t>(got.dbias.size()), 0}};
    ExpectRows("dbias", got.dbias, want.dbias, bound.dbias, 1, 1, all);
  }
  cpu::SetSimdLevel(cpu::AvailableSimdLevels().front());
}

TEST(AttentionTest, ForestSharesAncestors) {
  CheckAgainstReference(Forest(7, 9), 1);
  CheckAgainstReference(Forest(50, 40), 2);
  CheckAgainstReference(Forest(100, 128), 3);
}

TEST(AttentionTest, SizesAroundBlocksAndVectors) {
  for (int64_t queries : {1, 2, 3, 4, 7, 8, 47, 48, 49, 97}) {
    for (int64_t keys : {1, 3, 15, 16, 17, 48, 95, 96, 97, 193}) {
      SCOPED_TRACE(testing::Message() << queries << " queries, " << keys << " keys");
      AttentionProblem p = Plain(queries, keys, 5);
      CheckAgainstReference(p, 4);
      p.causal = true;
      p.segments[0].position = keys / 2;
      CheckAgainstReference(p, 5);
    }
  }
}

TEST(AttentionTest, HeadSizes) {
  for (int64_t size :
       {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 80, 96, 128, 130, 200}) {
    SCOPED_TRACE(size);
    AttentionProblem p = Plain(11, 21, size);
    p.scale = 1 / std::sqrt(static_cast<double>(size));
    p.heads = 4, p.key_heads = 2, p.causal = true, p.padding = 3;
    p.segments[0].position = 10;
    CheckAgainstReference(p, 6);
  }
}

TEST(AttentionTest, PositionBias) {
  CheckAgainstReference(Encoder(228, 2, 128), 7);
  CheckAgainstReference(Encoder(60, 3, 20), 8);  // distances beyond the table
  CheckAgainstReference(Encoder(30, 1, 0), 9);   // a single bucket
  CheckAgainstReference(Encoder(40, 2, 500), 10);
  AttentionProblem decoder = Encoder(45, 2, 20);
  decoder.causal = true;
  CheckAgainstReference(decoder, 11);
}

TEST(AttentionTest, CrossAttention) {
  AttentionProblem p;
  p.heads = p.key_heads = 3, p.head_size = 12;
  // Two targets read the first source, one the second.
  p.Add(8, 0, {{1, 57, 0}});
  p.Add(5, 0, {{1, 57, 0}});
  p.Add(8, 0, {{60, 110, 0}});
  CheckAgainstReference(p, 12);
}

TEST(AttentionTest, SingleQueryOverManyKeys) {
  AttentionProblem p;
  p.heads = 9, p.key_heads = 3, p.head_size = 64, p.scale = 0.125, p.causal = true;
  p.Add(1, 500, {{1, 100, 0}, {150, 401, 100}});
  CheckAgainstReference(p, 13);
}

TEST(AttentionTest, ManyRowsOfOneSegment) {
  AttentionProblem p = Plain(300, 310, 8);  // several chunks of 3 * 300 logical rows
  p.heads = 3, p.causal = true;
  p.segments[0].position = 10;
  CheckAgainstReference(p, 14);
}

TEST(AttentionTest, NoVisibleKeys) {
  AttentionProblem p;
  p.heads = 2, p.causal = true, p.bias_distance = 4;
  p.Add(3, 0, {});                         // no spans
  p.Add(3, 0, {{5, 0, 0}});                // an empty span
  p.Add(0, 0, {{6, 4, 0}});                // no queries
  p.Add(20, 0, {{12, 40, 10}});            // the first ten rows see nothing
  p.Add(4, 0, {{60, 3, 1000000000000}});   // far beyond
  p.Add(4, 1000000000000, {{70, 20, 0}});  // far behind
  p.spans.push_back({95, 3, 0});           // read by nobody
  CheckAgainstReference(p, 15);
}

TEST(AttentionTest, SegmentThatReadsRowsTwice) {
  AttentionProblem p = Plain(9, 20, 8);
  p.spans.push_back({10, 20, 20});
  p.segments[0].span_count = 2;
  CheckAgainstReference(p, 16);
}

TEST(AttentionTest, LargeScores) {
  AttentionProblem p = Plain(20, 70, 8);
  for (double magnitude : {30.0, 1e3, 1e10}) {
    p.magnitude = magnitude;
    const AttentionData<float> inputs = MakeData(p, 17);
    for (const std::string& level : cpu::AvailableSimdLevels()) {
      ASSERT_TRUE(cpu::SetSimdLevel(level));
      AttentionData<float> got = inputs;
      RunForward(p, got);
      RunBackward(BackwardArgs(p, got));
      for (const QuerySegment& s : p.segments) {
        for (int64_t i = s.begin * p.QueryStride(); i < (s.begin + s.length) * p.QueryStride();
             ++i) {
          ASSERT_LE(std::abs(got.out[i]), 6.0f);
          ASSERT_TRUE(std::isfinite(got.dq[i]));
        }
      }
    }
    cpu::SetSimdLevel(cpu::AvailableSimdLevels().front());
    if (magnitude < 100) CheckAgainstReference(p, 17);
  }
}

TEST(AttentionTest, NaNOfANamedRowShows) {
  AttentionProblem p = Plain(3, 5, 8);
  AttentionData<float> data = MakeData(p, 18);
  data.k[2 * p.KeyStride() + 1] = std::numeric_limits<float>::quiet_NaN();
  for (const std::string& level : cpu::AvailableSimdLevels()) {
    ASSERT_TRUE(cpu::SetSimdLevel(level));
    RunForward(p, data);
    EXPECT_TRUE(std::isnan(data.out[p.QueryStride()])) << level;
  }
  cpu::SetSimdLevel(cpu::AvailableSimdLevels().front());
}

// A probability of 1 has no gradient, not even rounding noise: Adam would make steps of it.
TEST(AttentionTest, OneVisibleKeyGetsExactZeros) {
  AttentionProblem p;
  p.heads = 4, p.key_heads = 2, p.head_size = 23, p.causal = true, p.bias_distance = 3;
  p.Add(1, 0, {{1, 1, 0}});
  p.Add(9, 7, {{3, 1, 0}});
  p.Add(120, 0, {{5, 120, 0}});
  p.Add(1, 100, {{126, 99, 101}, {226, 1, 4}});
  for (const std::string& level : cpu::AvailableSimdLevels()) {
    SCOPED_TRACE(level);
    ASSERT_TRUE(cpu::SetSimdLevel(level));
    AttentionData<float> data = MakeData(p, 21);
    RunForward(p, data);
    RunBackward(BackwardArgs(p, data));
    const auto largest = [](const std::vector<float>& x, int64_t row, int64_t stride) {
      float most = 0;
      for (int64_t c = 0; c < stride; ++c) most = std::max(most, std::abs(x[row * stride + c]));
      return most;
    };
    for (const QuerySegment& s : p.segments) {
      EXPECT_EQ(largest(data.dq, s.begin, p.QueryStride()), 0) << s.begin;
    }
    EXPECT_NE(largest(data.dq, p.segments[2].begin + 1, p.QueryStride()), 0);
    for (int64_t key : {1, 3, 226}) EXPECT_EQ(largest(data.dk, key, p.KeyStride()), 0) << key;
    EXPECT_NE(largest(data.dk, 5, p.KeyStride()), 0);
  }
  cpu::SetSimdLevel(cpu::AvailableSimdLevels().front());
}

TEST(AttentionTest, RandomForests) {
  for (uint32_t seed = 100; seed < 140; ++seed) {
    SCOPED_TRACE(seed);
    CheckAgainstReference(Random(seed), seed);
  }
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

TEST(AttentionTest, SameBitsForAnyNumberOfWorkers) {
  AttentionProblem biased = Forest(30, 35);
  biased.bias_distance = 16;
  for (const AttentionProblem& p : {biased, Plain(500, 60, 8), Random(200), Random(201)}) {
    AttentionData<float> one = MakeData(p, 19);
    const AttentionData<float> inputs = one;
    RunForward(p, one);
    RunBackward(BackwardArgs(p, one));
    for (int workers : {2, 3}) {
      AttentionData<float> many = inputs;
      RunForward(p, many, workers);
      RunBackward(BackwardArgs(p, many), workers);
      EXPECT_TRUE(SameBits(one.out, many.out));
      EXPECT_TRUE(SameBits(one.lse, many.lse));
      EXPECT_TRUE(SameBits(one.dq, many.dq));
      EXPECT_TRUE(SameBits(one.dk, many.dk));
      EXPECT_TRUE(SameBits(one.dv, many.dv));
      EXPECT_TRUE(SameBits(one.dbias, many.dbias));
    }
  }
}

TEST(AttentionTest, NullOutputs) {
  AttentionProblem p = Forest(20, 30);
  p.bias_distance = 10;
  AttentionData<float> all = MakeData(p, 20);
  const AttentionData<float> inputs = all;
  RunForward(p, all);
  RunBackward(BackwardArgs(p, all));
  for (int present = 0; present < 16; ++present) {
    SCOPED_TRACE(present);
    AttentionData<float> some = inputs;
    some.out = all.out, some.lse = all.lse;
    AttentionBackwardArgs args = BackwardArgs(p, some);
    if (!(present & 1)) args.dq = nullptr;
    if (!(present & 2)) args.dk = nullptr;
    if (!(present & 4)) args.dv = nullptr;
    if (!(present & 8)) args.dbias = nullptr;
    RunBackward(args);
    EXPECT_TRUE(SameBits(some.dq, present & 1 ? all.dq : inputs.dq));
    EXPECT_TRUE(SameBits(some.dk, present & 2 ? all.dk : inputs.dk));
    EXPECT_TRUE(SameBits(some.dv, present & 4 ? all.dv : inputs.dv));
    EXPECT_TRUE(SameBits(some.dbias, present & 8 ? all.dbias : inputs.dbias));
  }
  AttentionData<float> no_lse = inputs;
  RunForward(p, no_lse, 1, /*keep_lse=*/false);
  EXPECT_TRUE(SameBits(no_lse.out, all.out));
  EXPECT_TRUE(SameBits(no_lse.lse, inputs.lse));
}

// The derivative of sum(out * dout) by each input against central differences.
TEST(AttentionReferenceTest, GradientMatchesCentralDifferences) {
  for (uint32_t seed = 300; seed < 312; ++seed) {
    SCOPED_TRACE(seed);
    AttentionProblem p = Random(seed);
    p.head_size = 3, p.heads = 2 * p.key_heads;
    for (QuerySegment& s : p.segments) s.length = std::min<int64_t>(s.length, 6);
    for (KeySpan& s : p.spans) s.length = std::min<int64_t>(s.length, 9);
    AttentionData<double> data = ConvertData<double>(MakeData(p, seed));
    std::fill(data.dbias.begin(), data.dbias.end(), 0.0);
    reference::AttentionForward(ForwardArgs(p, data));
    reference::AttentionBackward(BackwardArgs(p, data));
    const auto loss = [&] {
      AttentionData<double> run = data;
      reference::AttentionForward(ForwardArgs(p, run));
      double sum = 0;
      for (const QuerySegment& s : p.segments) {
        for (int64_t i = s.begin; i < s.begin + s.length; ++i) {
          for (int64_t c = 0; c < p.heads * p.head_size; ++c) {
            sum += run.out[i * p.QueryStride() + c] * run.dout[i * p.QueryStride() + c];
          }
        }
      }
      return sum;
    };
    const auto check = [&](const char* name, std::vector<double>& x,
                           const std::vector<double>& gradient) {
      for (size_t i = 0; i < x.size(); i += 1 + x.size() / 60) {
        if (std::isnan(x[i])) continue;
        const double kept = x[i], step = 1e-5;
        x[i] = kept + step;
        const double up = loss();
        x[i] = kept - step;
        const double down = loss();
        x[i] = kept;
        // Truncation step^2 times a third derivative of order 10^2, rounding 1e-16 * |loss| / step.
        EXPECT_NEAR(gradient[i], (up - down) / (2 * step), 1e-7) << name << " " << i;
      }
    };
    check("q", data.q, data.dq);
    check("k", data.k, data.dk);
    check("v", data.v, data.dv);
    check("bias", data.bias, data.dbias);
  }
}

}  // namespace
}  // namespace permafrost::kernels
