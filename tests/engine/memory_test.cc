// The memory pool: alignment, counters by tag, and that a steady step asks the system for nothing.
#include "engine/memory.h"

#include <cstring>
#include <thread>

#include "engine/optim/optimizer.h"
#include "gtest/gtest.h"
#include "tests/util/gradcheck.h"

namespace permafrost {
namespace {

TEST(Memory, BlocksAreAlignedAndApart) {
  Random random(1);
  std::vector<std::unique_ptr<Storage>> blocks;
  for (int i = 0; i < 300; ++i) {
    const size_t bytes = static_cast<size_t>(random.Below(5000));
    blocks.push_back(std::make_unique<Storage>(bytes, MemoryTag::kWorkspace));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(blocks.back()->data()) % 64, 0u);
    EXPECT_EQ(blocks.back()->bytes(), bytes);
    std::memset(blocks.back()->data(), i % 251, bytes);
    if (i % 3 == 2) {  // holes of all sizes
      const size_t victim = static_cast<size_t>(random.Below(static_cast<int64_t>(blocks.size())));
      blocks[victim].reset();
      blocks.erase(blocks.begin() + static_cast<int64_t>(victim));
    }
  }
  for (const auto& block : blocks) {
    for (size_t i = 1; i < block->bytes(); ++i) {
      ASSERT_EQ(block->data()[i], block->data()[0]);  // nobody wrote into it
    }
  }
}

TEST(Memory, CountersFollowTags) {
  for (const MemoryTag tag : {MemoryTag::kWeight, MemoryTag::kActivation, MemoryTag::kGradient,
                              MemoryTag::kOptimizer, MemoryTag::kWorkspace}) {
    EXPECT_STRNE(MemoryTagName(tag), "");
    const int64_t before = MemoryOf(tag).live;
    ResetPeakMemory();
    {
      const Storage a(1000, tag);
      { const Storage b(24, tag); }
      EXPECT_EQ(MemoryOf(tag).live, before + 1000);
    }
    EXPECT_EQ(MemoryOf(tag).live, before);
    EXPECT_EQ(MemoryOf(tag).peak, before + 1024);
    ResetPeakMemory();
    EXPECT_EQ(MemoryOf(tag).peak, before);
  }
}

TEST(Memory, IdsNameContents) {
  const Storage a(8, MemoryTag::kWorkspace);
  Storage b(8, MemoryTag::kWorkspace);
  EXPECT_NE(a.id(), b.id());
  const uint64_t before = b.id();
  b.Renew();
  EXPECT_NE(b.id(), before);
  EXPECT_NE(b.id(), a.id());
}

TEST(Memory, FreedBlocksAreReusedWhole) {
  // Two neighbours that are freed serve a request of both sizes: free blocks merge.
  constexpr size_t kBytes = size_t{20} << 20;
  { const Storage warm(3 * kBytes, MemoryTag::kWorkspace); }
  const PoolStatistics before = MemoryPoolStatistics();
  for (int i = 0; i < 10; ++i) {
    { const Storage a(kBytes, MemoryTag::kWorkspace), b(kBytes, MemoryTag::kWorkspace); }
    const Storage both(2 * kBytes + 64, MemoryTag::kWorkspace);
  }
  EXPECT_EQ(MemoryPoolStatistics().requests, before.requests);
  EXPECT_EQ(MemoryPoolStatistics().bytes, before.bytes);
}

TEST(Memory, ThreadsMayAllocateAtOnce) {
  const int64_t before = MemoryOf(MemoryTag::kWorkspace).live;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      Random random(7, static_cast<uint32_t>(t));
      for (int i = 0; i < 500; ++i) {
        const size_t bytes = 1 + static_cast<size_t>(random.Below(3000));
        const Storage s(bytes, MemoryTag::kWorkspace);
        std::memset(s.data(), t, bytes);
        ASSERT_EQ(s.data()[bytes - 1], static_cast<std::byte>(t));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(MemoryOf(MemoryTag::kWorkspace).live, before);
}

// Training steps of varying lengths: after the first round nothing more is asked of the system,
// and every tag is back at its level after each step.
TEST(Memory, ASteadyTrainingStepAllocatesNothing) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    Context c(2, precision);
    c.training = true;
    c.tape.mode = TapeMode::kRecord;
    Random random(2);
    ParameterList list;
    list.Add("a", RandomTensor(random, {4, 64}));
    list.Add("b", RandomTensor(random, {64, 4}));
    Optimizer optimizer({.learning_rate = 1e-3}, list);
    const Weight w = Weight::FromF32(c, RandomTensor(random, {64, 64}), DType::kF32);
    const Tensor scale = RandomTensor(random, {1, 64});
    uint32_t number = 0;
    const auto step = [&](int64_t rows) {
      const LowRank options{.scale = 1, .dropout = 0.1f, .mask = {0, number++, 0}};
      const std::vector<TaskSpan> spans = {{0, rows, 0}};
      Var x = RandomTensor(random, {rows, 64});
      for (int i = 0; i < 3; ++i) {
        const Var n = RmsNorm(c, x, scale, 1e-6f);
        Var y = AddLowRank(c, Linear(c, n, w), n, list[0].var(), list[1].var(), options, spans);
        x = Add(c, std::move(x), Activate(c, Activation::kSilu, std::move(y)));
      }
      Backward(c, x, RandomTensor(random, {rows, 64}));
      optimizer.Step(c, 1);
    };
    const std::vector<int64_t> lengths = {300, 17, 220, 1, 299};
    for (const int64_t rows : lengths) step(rows);
    const int64_t requests = MemoryPoolStatistics().requests;
    std::vector<int64_t> live;
    for (int round = 0; round < 3; ++round) {
      for (const int64_t rows : lengths) {
        step(rows);
        live.push_back(MemoryOf(MemoryTag::kActivation).live + MemoryOf(MemoryTag::kGradient).live +
                       MemoryOf(MemoryTag::kWorkspace).live);
      }
    }
    EXPECT_EQ(MemoryPoolStatistics().requests, requests);
    for (const int64_t bytes : live) EXPECT_EQ(bytes, live[0]);
  }
}

}  // namespace
}  // namespace permafrost
