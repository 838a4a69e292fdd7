#include "io/metrics_log.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <string>

#include "gtest/gtest.h"
#include "io/file.h"
#include "io/json.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

std::string Path(const std::string& name) {
  return testing::TempDir() + "/metrics_log_test_" + name;
}

TEST(MetricsLine, KeepsOrderAndEscapes) {
  EXPECT_EQ(MetricsLine(
                {{"step", int64_t{3}}, {"loss", 0.1}, {"note", std::string("a\"\n")}, {"a", 2.0}}),
            "{\"step\": 3, \"loss\": 0.1, \"note\": \"a\\\"\\n\", \"a\": 2.0}");
  EXPECT_EQ(MetricsLine({}), "{}");
}

TEST(MetricsLine, WhatJsonLacksIsNull) {
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(MetricsLine({{"a", std::nan("")}, {"b", infinity}, {"c", -infinity}}),
            "{\"a\": null, \"b\": null, \"c\": null}");
}

TEST(MetricsLine, DoublesComeBackExactly) {
  for (const double value : {1e-300, 5e-324, 1.0 / 3.0, 1e22, -0.0, 1.7976931348623157e308, 3e-5}) {
    const auto object = ParseJson(MetricsLine({{"x", value}}), "test");
    ASSERT_TRUE(object.ok()) << object.status();
    EXPECT_TRUE((*object)["x"].is_number_float()) << value;
    EXPECT_EQ((*object)["x"].get<double>(), value);
  }
}

TEST(MetricsLog, AppendsWholeLines) {
  const std::string path = Path("a.jsonl");
  auto log = MetricsLog::Create(path);
  ASSERT_TRUE(log.ok()) << log.status();
  ASSERT_TRUE(log->Append({{"step", int64_t{1}}}).ok());
  EXPECT_EQ(*ReadFile(path), "{\"step\": 1}\n");  // Visible at once, without closing.
  ASSERT_TRUE(log->Append({{"step", int64_t{2}}}).ok());
  EXPECT_EQ(*ReadFile(path), "{\"step\": 1}\n{\"step\": 2}\n");
  ASSERT_TRUE(MetricsLog::Create(path).ok());
  EXPECT_EQ(*ReadFile(path), "");
}

TEST(MetricsLog, ResumeDropsLaterStepsAndTornLines) {
  const std::string path = Path("b.jsonl");
  std::ofstream(path) << "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2, \"x\": null}\n"
                         "{\"step\": 2, \"eval_loss\": 1.0}\n{\"step\": 3}\n{\"step\": 2, \"lo";
  auto log = MetricsLog::Resume(path, 2);
  ASSERT_TRUE(log.ok()) << log.status();
  ASSERT_TRUE(log->Append({{"step", int64_t{3}}, {"loss", 1.5}}).ok());
  EXPECT_EQ(*ReadFile(path),
            "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2, \"x\": null}\n"
            "{\"step\": 2, \"eval_loss\": 1.0}\n{\"step\": 3, \"loss\": 1.5}\n");
}

TEST(MetricsLog, ResumeWithoutALogStartsOne) {
  const std::string path = Path("c.jsonl");
  std::remove(path.c_str());
  auto log = MetricsLog::Resume(path, 5);
  ASSERT_TRUE(log.ok()) << log.status();
  ASSERT_TRUE(log->Append({{"step", int64_t{6}}}).ok());
  EXPECT_EQ(*ReadFile(path), "{\"step\": 6}\n");
}

TEST(MetricsLog, Errors) {
  const auto missing = MetricsLog::Create(Path("no_such_folder/x.jsonl"));
  EXPECT_NE(missing.status().message().find("no_such_folder"), std::string::npos);
  EXPECT_FALSE(MetricsLog::Create(testing::TempDir()).ok());
}

}  // namespace
}  // namespace permafrost
