// Config fields of a base that decide about more than a size.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "io/json.h"
#include "models/model.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

class BaseConfigTest : public ::testing::Test {
 protected:
  // A copy of a golden base without generation_config.json, its config changed by `fields`.
  std::string Copy(const std::string& name, const nlohmann::json& fields) {
    const std::string from = PERMAFROST_GOLDEN "/models/" + name;
    const std::string to = testing::TempDir() + "base_config_" + name;
    std::filesystem::remove_all(to);
    std::filesystem::create_directories(to);
    std::filesystem::copy(from + "/model.safetensors", to);
    auto config = ReadJsonFile(from + "/config.json");
    EXPECT_TRUE(config.ok()) << config.status();
    config->update(fields);
    std::ofstream(to + "/config.json") << *config;
    return to;
  }
  std::vector<int32_t> EndTokens(const std::string& folder) {
    const auto model = OpenModel(c_, folder);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? (*model)->info().end_tokens : std::vector<int32_t>{};
  }

  Context c_;
};

TEST_F(BaseConfigTest, EndTokensOfTheGenerationConfigGoFirst) {
  for (const std::string name : {"llama-1", "t5-v1_1-1"}) {
    SCOPED_TRACE(name);
    const std::string folder = Copy(name, {{"eos_token_id", 2}});
    EXPECT_EQ(EndTokens(folder), std::vector<int32_t>({2}));
    const std::string generation = folder + "/generation_config.json";
    std::ofstream(generation) << R"({"eos_token_id": [2, 5, 7]})";
    EXPECT_EQ(EndTokens(folder), std::vector<int32_t>({2, 5, 7}));
    std::ofstream(generation) << R"({"max_length": 20})";
    EXPECT_EQ(EndTokens(folder), std::vector<int32_t>({2}));
    std::ofstream(generation) << R"({"eos_token_id": "x"})";
    const auto model = OpenModel(c_, folder);
    ASSERT_FALSE(model.ok());
    EXPECT_NE(model.status().message().find("generation_config.json"), std::string::npos);
  }
}

// transformers' Mistral and Qwen2 have fixed biases and read neither field.
TEST_F(BaseConfigTest, OnlyLlamaReadsBiasFields) {
  const nlohmann::json fields = {{"attention_bias", true}, {"mlp_bias", true}};
  for (const std::string name : {"mistral-1", "qwen2-1"}) {
    EXPECT_TRUE(OpenModel(c_, Copy(name, fields)).ok()) << name;
  }
  EXPECT_FALSE(OpenModel(c_, Copy("llama-1", fields)).ok());
}

}  // namespace
}  // namespace permafrost
