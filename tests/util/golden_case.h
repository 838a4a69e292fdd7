// A folder of tests/golden/models: the base, its lines, and what transformers and PEFT compute on
// them (tests/golden/README.md says how the files were made).
#ifndef PERMAFROST_TESTS_UTIL_GOLDEN_CASE_H_
#define PERMAFROST_TESTS_UTIL_GOLDEN_CASE_H_

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "io/examples.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "models/model.h"
#include "nlohmann/json.hpp"

namespace permafrost {

inline std::vector<std::string> GoldenModelNames() {
  std::vector<std::string> names;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(PERMAFROST_GOLDEN) + "/models")) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// "llama-1" as part of a test's name: "llama_1".
inline std::string TestName(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}

struct GoldenCase {
  std::string folder;
  std::vector<TokenLine> lines;
  SafetensorsFile expected;
  nlohmann::json settings;  // case.json

  bool encoder_decoder() const { return folder.find("/t5") != std::string::npos; }
  std::string adapter(const std::string& kind) const {
    return absl::StrCat(folder, "/adapters/", kind);
  }
  // A tensor of expected.safetensors; fails the test if it is absent.
  std::vector<float> Expected(const std::string& name) const {
    const TensorView* view = expected.Find(name);
    EXPECT_NE(view, nullptr) << name;
    if (view == nullptr) return {};
    std::vector<float> values(static_cast<size_t>(view->num_elements()));
    EXPECT_TRUE(ReadAsF32(*view, 0, absl::MakeSpan(values)).ok()) << name;
    return values;
  }
};

inline GoldenCase OpenGoldenCase(const std::string& name) {
  GoldenCase golden;
  golden.folder = absl::StrCat(PERMAFROST_GOLDEN, "/models/", name);
  auto examples = ReadTokenExamples(
      golden.folder + "/data.jsonl",
      {.vocabulary = 1 << 20, .equal_length = !golden.encoder_decoder(), .need_labels = true});
  EXPECT_TRUE(examples.ok()) << examples.status();
  for (const TokenExample& e : *examples) golden.lines.push_back({e.input_ids, e.labels, kNoTask});
  auto expected = SafetensorsFile::Open(golden.folder + "/expected.safetensors");
  EXPECT_TRUE(expected.ok()) << expected.status();
  golden.expected = std::move(*expected);
  const auto text = ReadFile(golden.folder + "/case.json");
  EXPECT_TRUE(text.ok()) << text.status();
  auto json = ParseJson(*text, "case.json");
  EXPECT_TRUE(json.ok()) << json.status();
  golden.settings = std::move(*json);
  return golden;
}

// max |actual - expected| / max |expected|; infinite if the sizes differ.
inline double RelativeMaxDifference(absl::Span<const float> actual,
                                    absl::Span<const float> expected) {
  if (actual.size() != expected.size()) return HUGE_VAL;
  double difference = 0, largest = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double d = std::abs(static_cast<double>(actual[i]) - expected[i]);
    if (!(d <= difference)) difference = d;  // keeps a NaN
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
  }
  return difference / largest;
}

// ||actual - expected|| / ||expected||; infinite if the sizes differ.
inline double RelativeNormDifference(absl::Span<const float> actual,
                                     absl::Span<const float> expected) {
  if (actual.size() != expected.size()) return HUGE_VAL;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double d = static_cast<double>(actual[i]) - expected[i];
    difference += d * d;
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

}  // namespace permafrost

#endif  // PERMAFROST_TESTS_UTIL_GOLDEN_CASE_H_
