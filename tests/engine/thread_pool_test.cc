// The thread pool: every piece once, workers apart, many short jobs (for ThreadSanitizer too).
#include "engine/thread_pool.h"

#include <algorithm>
#include <cmath>

#include "engine/random.h"
#include "gtest/gtest.h"

namespace permafrost {
namespace {

TEST(ThreadPool, RunsEveryPieceOnce) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    EXPECT_EQ(pool.parallel().workers, threads);
    for (const int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<int> runs(static_cast<size_t>(count));
      kernels::ParallelFor(pool.parallel(), count,
                           [&](int64_t i, int) { ++runs[static_cast<size_t>(i)]; });
      for (const int n : runs) ASSERT_EQ(n, 1);
    }
  }
}

// A worker's index is its own while a piece runs: unlocked sums by worker are whole at the end.
TEST(ThreadPool, WorkersHaveTheirOwnWorkspace) {
  ThreadPool pool(4);
  std::vector<int64_t> sums(4);
  kernels::ParallelFor(pool.parallel(), 5000, [&](int64_t i, int worker) {
    ASSERT_GE(worker, 0);
    ASSERT_LT(worker, 4);
    sums[static_cast<size_t>(worker)] += i;
  });
  EXPECT_EQ(sums[0] + sums[1] + sums[2] + sums[3], int64_t{4999} * 5000 / 2);
}

// What a job wrote is visible to the next one and to the caller, without locks of their own.
TEST(ThreadPool, JobsFollowEachOther) {
  ThreadPool pool(3);
  std::vector<int64_t> from(64, 1), to(64);
  for (int job = 0; job < 2000; ++job) {
    kernels::ParallelFor(pool.parallel(), 64, [&](int64_t i, int) {
      to[static_cast<size_t>(i)] = from[static_cast<size_t>(63 - i)] + (job % 3 == 0 ? 1 : 0);
    });
    std::swap(from, to);
  }
  for (const int64_t value : from) EXPECT_EQ(value, 1 + 667);
}

TEST(ThreadPool, PoolsComeAndGo) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(1 + i % 4);
    std::atomic<int> count{0};
    if (i % 2 == 0) {
      kernels::ParallelFor(pool.parallel(), 10, [&](int64_t, int) { ++count; });
      EXPECT_EQ(count, 10);
    }
  }
}

TEST(Random, IsAFunctionOfSeedStreamAndCount) {
  Random a(1), b(1), stream(1, 1), seed(2);
  int stream_equal = 0, seed_equal = 0;
  for (int i = 0; i < 1000; ++i) {
    const uint32_t word = a.Word();
    EXPECT_EQ(word, b.Word());
    stream_equal += word == stream.Word();
    seed_equal += word == seed.Word();
  }
  EXPECT_LE(stream_equal, 2);
  EXPECT_LE(seed_equal, 2);
}

// Moments within five standard errors.
TEST(Random, Moments) {
  Random random(3);
  constexpr int kCount = 100000;
  double uniform = 0, normal = 0, squares = 0;
  for (int i = 0; i < kCount; ++i) {
    const double u = random.Uniform();
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    uniform += u;
    const double n = random.Normal();
    normal += n;
    squares += n * n;
  }
  const double error = 5 / std::sqrt(kCount);
  EXPECT_NEAR(uniform / kCount, 0.5, error * std::sqrt(1.0 / 12));
  EXPECT_NEAR(normal / kCount, 0, error);
  EXPECT_NEAR(squares / kCount, 1, error * std::sqrt(2.0));
}

TEST(Random, BelowAndShuffleAreUniform) {
  Random random(4);
  std::vector<int> counts(7), first(5);
  for (int i = 0; i < 70000; ++i) ++counts[static_cast<size_t>(random.Below(7))];
  for (const int n : counts) EXPECT_NEAR(n, 10000, 5 * std::sqrt(10000.0));
  for (int i = 0; i < 10000; ++i) {
    std::vector<int> values = {0, 1, 2, 3, 4};
    random.Shuffle(values);
    ++first[static_cast<size_t>(values[0])];
    std::sort(values.begin(), values.end());
    ASSERT_EQ(values, (std::vector<int>{0, 1, 2, 3, 4}));
  }
  for (const int n : first) EXPECT_NEAR(n, 2000, 5 * std::sqrt(2000.0));
  EXPECT_EQ(random.Below(1), 0);
}

}  // namespace
}  // namespace permafrost
