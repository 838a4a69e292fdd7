// Fields of PEFT's adapter_config.json that decide which linears get which rank, and refusals.
#include "peft/adapter_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/random.h"
#include "peft/lora.h"
#include "peft/trainer.h"

namespace permafrost {
namespace {

using ::testing::HasSubstr;

class AdapterConfigTest : public ::testing::Test {
 protected:
  void Open(const std::string& name) {
    auto model = OpenModel(c_, PERMAFROST_GOLDEN "/models/" + name);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }
  absl::StatusOr<AdapterConfig> Lora(const std::string& fields) {
    return Parse(R"({"peft_type": "LORA", "r": 4, )" + fields + "}");
  }
  absl::StatusOr<AdapterConfig> Parse(const std::string& text) {
    return ParseAdapterConfig(text, "config", *model_);
  }
  // Ranks by module of the adapter that the fields describe.
  std::map<std::string, int64_t> Ranks(const std::string& fields) {
    std::map<std::string, int64_t> ranks;
    const auto config = Lora(fields);
    EXPECT_TRUE(config.ok()) << config.status();
    if (!config.ok()) return ranks;
    Random random(1);
    const auto lora =
        permafrost::Lora::Create(0, std::get<LoraConfig>(*config), c_, *model_, random);
    EXPECT_TRUE(lora.ok()) << lora.status();
    if (!lora.ok()) return ranks;
    constexpr absl::string_view kPrefix = "base_model.model.", kSuffix = ".lora_A.weight";
    for (const Parameter& p : (*lora)->parameters()) {
      if (!absl::EndsWith(p.name(), kSuffix)) continue;
      const std::string& n = p.name();
      ranks[n.substr(kPrefix.size(), n.size() - kPrefix.size() - kSuffix.size())] =
          p.value().rows();
    }
    return ranks;
  }
  void ExpectRefused(const absl::StatusOr<AdapterConfig>& config, const std::string& field) {
    ASSERT_FALSE(config.ok()) << field;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(field));
  }

  Context c_;
  std::unique_ptr<Model> model_;
};

constexpr char kQuery0[] = "model.layers.0.self_attn.q_proj";
constexpr char kValue0[] = "model.layers.0.self_attn.v_proj";

TEST_F(AdapterConfigTest, TheFirstPatternOfTheFileDecides) {
  Open("llama-1");
  const std::string targets = R"("target_modules": ["q_proj", "v_proj"], )";
  const std::string narrow = R"("layers.0.*q_proj": 5)", wide = R"("q_proj|a": 2)";
  EXPECT_EQ(Ranks(targets + R"("rank_pattern": {)" + narrow + ", " + wide + "}")[kQuery0], 5);
  auto ranks = Ranks(targets + R"("rank_pattern": {)" + wide + ", " + narrow + "}");
  EXPECT_EQ(ranks[kQuery0], 2);
  EXPECT_EQ(ranks[kValue0], 4);

  // Written and read again, the order is the same.
  const auto config = Lora(targets + R"("alpha_pattern": {"q_proj": 2, "layers.0.*": 7})");
  ASSERT_TRUE(config.ok()) << config.status();
  const auto again = Parse(AdapterConfigJson(*config, *model_));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(std::get<LoraConfig>(*again).alpha_pattern,
            std::get<LoraConfig>(*config).alpha_pattern);
  EXPECT_EQ(std::get<LoraConfig>(*again).alpha_pattern.front().first, "q_proj");
}

TEST_F(AdapterConfigTest, ExcludedByARegularExpression) {
  Open("llama-1");
  const auto ranks = Ranks(
      R"("target_modules": "all-linear", "exclude_modules": ".*mlp.*|.*layers\\.0\\..*q_proj")");
  EXPECT_EQ(ranks.count(kQuery0), 0);
  EXPECT_EQ(ranks.count(kValue0), 1);
  EXPECT_EQ(ranks.count("model.layers.0.mlp.up_proj"), 0);
}

TEST_F(AdapterConfigTest, OnlyTheLayersListIsALayersPattern) {
  const std::string layers = R"("target_modules": ["q", "v"], "layers_to_transform": [0], )";
  Open("t5-v1_1-1");
  EXPECT_EQ(Ranks(layers + R"("layers_pattern": "block")"), Ranks(layers + R"("bias": "none")"));
  EXPECT_FALSE(Ranks(layers + R"("layers_pattern": ["block"])").empty());
  ExpectRefused(Lora(layers + R"("layers_pattern": "layer")"), "layers_pattern");
}

TEST_F(AdapterConfigTest, RefusesSizesOutOfRange) {
  Open("llama-1");
  Random random(1);
  for (const std::string field : {R"("r": 1000000000000)", R"("rank_pattern": {".*": 100000})"}) {
    const auto config =
        Parse(R"({"peft_type": "LORA", "target_modules": ["q_proj"], )" + field + "}");
    ASSERT_TRUE(config.ok()) << config.status();
    const auto lora =
        permafrost::Lora::Create(0, std::get<LoraConfig>(*config), c_, *model_, random);
    ASSERT_FALSE(lora.ok());
    EXPECT_THAT(std::string(lora.status().message()), HasSubstr("rank"));
  }
  const std::string prompt = R"({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": )";
  ExpectRefused(Parse(prompt + "2000000000}"), "num_virtual_tokens");
  ExpectRefused(Parse(prompt + R"(5, "num_transformer_submodules": 2})"),
                "num_transformer_submodules");
}

// An adapter's lora_dropout is for training: `forward --gradients` works without it, as PEFT does.
TEST_F(AdapterConfigTest, DropoutActsInTrainingOnly) {
  Open("llama-1");
  const auto config = Lora(R"("target_modules": "all-linear", "lora_dropout": 0.5)");
  ASSERT_TRUE(config.ok()) << config.status();
  Random random(1);
  const auto lora = permafrost::Lora::Create(0, std::get<LoraConfig>(*config), c_, *model_, random);
  ASSERT_TRUE(lora.ok()) << lora.status();
  for (Parameter& p : (*lora)->parameters()) {
    for (int64_t i = 0; i < p.count(); ++i) {
      p.value().f32()[i] = 0.1f * static_cast<float>(random.Normal());
    }
  }
  const std::vector<std::vector<TokenLine>> lines = {
      {{.input_ids = {5, 6, 7, 8}, .labels = {5, 6, 7, 8}, .task = 0}}};
  const auto loss = [&](bool training, uint32_t step) {
    c_.training = training;
    (*lora)->SetRandom(0, step);
    return AccumulateGradients(c_, *model_, **lora, lines, 0).loss;
  };
  EXPECT_EQ(loss(false, 1), loss(false, 2));
  EXPECT_NE(loss(true, 1), loss(true, 2));
}

}  // namespace
}  // namespace permafrost
