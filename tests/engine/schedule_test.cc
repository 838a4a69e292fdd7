// Learning-rate schedules against transformers 5.23.0's get_*_schedule_with_warmup, step by step
// (warm-up 3, total 11).
#include <vector>

#include "engine/optim/optimizer.h"
#include "gtest/gtest.h"

namespace permafrost {
namespace {

void ExpectMultipliers(const Schedule& schedule, const std::vector<double>& expected) {
  for (size_t s = 0; s < expected.size(); ++s) {
    EXPECT_NEAR(schedule.Multiplier(static_cast<int64_t>(s)), expected[s], 1e-14) << "step " << s;
  }
}

TEST(Schedule, Constant) {
  ExpectMultipliers({ScheduleKind::kConstant, 3, 11}, {0, 1.0 / 3, 2.0 / 3, 1, 1, 1, 1});
  ExpectMultipliers({ScheduleKind::kConstant, 0, 11}, {1, 1, 1});
}

TEST(Schedule, Linear) {
  ExpectMultipliers({ScheduleKind::kLinear, 3, 11},
                    {0, 1.0 / 3, 2.0 / 3, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0, 0, 0});
  ExpectMultipliers({ScheduleKind::kLinear, 0, 11},
                    {1, 0.90909090909090906, 0.81818181818181823, 0.72727272727272729});
}

TEST(Schedule, Cosine) {
  ExpectMultipliers({ScheduleKind::kCosine, 3, 11},
                    {0, 1.0 / 3, 2.0 / 3, 1, 0.96193976625564337, 0.85355339059327373,
                     0.69134171618254492, 0.5, 0.30865828381745514, 0.14644660940672627,
                     0.038060233744356631, 0, 0.038060233744356575, 0.14644660940672616});
}

TEST(Schedule, InverseSqrt) {
  ExpectMultipliers({ScheduleKind::kInverseSqrt, 3, 11},
                    {0, 1.0 / 3, 2.0 / 3, 1, 0.86602540378443871, 0.7745966692414834,
                     0.70710678118654746, 0.65465367070797709, 0.61237243569579447});
  ExpectMultipliers({ScheduleKind::kInverseSqrt, 0, 11},
                    {1, 0.99995000374968768, 0.99990001499750059, 0.99985003374156478});
}

}  // namespace
}  // namespace permafrost
