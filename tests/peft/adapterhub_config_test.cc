// AdapterHub's adapter_config.json and tensor names, on folders that the library wrote.
#include "peft/adapterhub_config.h"

#include <gmock/gmock.h>

#include <random>

#include "absl/strings/str_replace.h"
#include "peft/adapterhub_tensors.h"
#include "tests/util/hub_golden.h"

namespace permafrost {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::string ConfigText(const HubGolden& hub, const std::string& adapter) {
  const auto text = ReadFile(hub.golden.adapter(adapter) + "/adapter_config.json");
  EXPECT_TRUE(text.ok()) << text.status();
  return *text;
}

class AdapterHubTest : public testing::TestWithParam<std::string> {
 protected:
  AdapterHubTest() : hub_(OpenHubGolden(GetParam())) {
    auto model = OpenModel(c_, hub_.base);
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
  }
  absl::StatusOr<AdapterHubConfig> Parse(const json& object) {
    return ParseAdapterHubConfig(object, "config", model_->info());
  }

  Context c_;
  HubGolden hub_;
  std::unique_ptr<Model> model_;
};

// Every tensor that the library wrote is asked for by its name and shape, and no other.
TEST_P(AdapterHubTest, TensorsAreThoseOfTheLibrary) {
  for (const std::string& adapter : hub_.names) {
    const json object = json::parse(ConfigText(hub_, adapter));
    EXPECT_TRUE(IsAdapterHubConfig(object));
    const auto config = Parse(object);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->name, adapter);
    const auto tensors = HubTensorsOf(*config, *model_);
    ASSERT_TRUE(tensors.ok()) << adapter << ": " << tensors.status();
    const auto values =
        ReadHubTensors(hub_.golden.adapter(adapter) + "/adapter.safetensors", *tensors);
    ASSERT_TRUE(values.ok()) << adapter << ": " << values.status();
    int64_t parameters = 0;
    for (const Tensor& t : *values) parameters += t.count();
    EXPECT_EQ(parameters, hub_.golden.settings["adapters"][adapter]["parameters"]) << adapter;
  }
}

// The library's own text comes back field by field.
TEST_P(AdapterHubTest, WritesWhatItRead) {
  for (const std::string& adapter : hub_.names) {
    json object = json::parse(ConfigText(hub_, adapter));
    const auto config = Parse(object);
    ASSERT_TRUE(config.ok()) << config.status();
    json written = json::parse(AdapterHubConfigJson(*config, model_->info()));
    written["model_name"] = object["model_name"];
    if (object["config"].value("selfattn_lora", true) == false) {  // a list without effect
      written["config"]["attn_matrices"] = object["config"]["attn_matrices"];
    }
    EXPECT_EQ(written, object) << adapter;
  }
}

INSTANTIATE_TEST_SUITE_P(Bases, AdapterHubTest, testing::ValuesIn(HubGoldenNames()), TestName);

class AdapterHubConfigTest : public testing::Test {
 protected:
  AdapterHubConfigTest() {
    hub_ = OpenHubGolden("gpt2-1");
    info_.model_type = "gpt2";
    info_.width = 30;
  }
  // The error after `change` of the fields of an adapter's method; "" if there is none.
  std::string Error(const std::string& adapter, const json& change) {
    json object = json::parse(ConfigText(hub_, adapter));
    object["config"].update(change);
    return ErrorOf(object);
  }
  std::string ErrorOf(const json& object) {
    const auto config = ParseAdapterHubConfig(object, "config", info_);
    return config.ok() ? "" : std::string(config.status().message());
  }

  HubGolden hub_;
  ModelInfo info_;
};

TEST_F(AdapterHubConfigTest, WhatIsNotImplementedIsRefusedByName) {
  const std::vector<std::tuple<std::string, json, std::string>> cases = {
      {"bottleneck_lost", {{"phm_layer", true}}, "phm_layer"},
      {"bottleneck_lost", {{"inv_adapter", "nice"}}, "inv_adapter"},
      {"bottleneck_lost", {{"stochastic_depth", 0.1}}, "stochastic_depth"},
      {"bottleneck_lost", {{"residual_before_ln", "post_add"}}, "residual_before_ln"},
      {"bottleneck_lost", {{"scaling", "rows"}}, "scaling"},
      {"bottleneck_lost", {{"reduction_factor", 0}}, "reduction_factor"},
      {"bottleneck_lost", {{"reduction_factor", {{"first", 2}}}}, "reduction_factor"},
      {"bottleneck_lost", {{"reduction_factor", nullptr}}, "reduction_factor"},
      {"bottleneck_lost", {{"non_linearity", nullptr}}, "non_linearity"},
      {"bottleneck_lost", {{"new_field", 3}}, "new_field"},
      {"bottleneck_lost", {{"architecture", "reft"}}, "reft"},
      {"bottleneck_lost", {{"architecture", "prompt_tuning"}}, "prompt_tuning"},
      {"lora", {{"use_dora", true}}, "use_dora"},
      {"lora", {{"vera_d", 0.0}}, "vera_d"},
      {"lora", {{"dtype", "bfloat16"}}, "dtype"},
      {"lora", {{"attn_matrices", {"q", "o"}}}, "attn_matrices"},
      {"lora", {{"r", 0}}, "config: r"},
      {"lora", {{"composition_mode", "mix"}}, "composition_mode"},
      {"lora", {{"alpha", "8"}}, "alpha"},
      {"ia3", {{"alpha", 2}}, "alpha"},
      {"ia3", {{"use_gating", true}}, "use_gating"},
      {"prefix_flat", {{"prefix_length", 0}}, "prefix_length"},
      {"prefix_flat", {{"dropout", 1.0}}, "dropout"},
      {"unipelt", {{"configs", json::array()}}, "configs"},
      {"unipelt", {{"configs", {{{"architecture", "union"}}}}}, "architecture"},
  };
  for (const auto& [adapter, change, field] : cases) {
    EXPECT_THAT(Error(adapter, change), HasSubstr(field)) << change;
  }
  EXPECT_EQ(Error("bottleneck_lost", {{"new_field", nullptr}, {"stochastic_depth", 0}}), "");
}

TEST_F(AdapterHubConfigTest, AdaptersOfOtherLibrariesAndBasesAreRefused) {
  json object = json::parse(ConfigText(hub_, "lora"));
  EXPECT_EQ(ErrorOf(object), "");
  const auto with = [&](const char* field, const json& value) {
    json changed = object;
    changed[field] = value;
    return ErrorOf(changed);
  };
  EXPECT_THAT(with("version", "3.2.1"), HasSubstr("version: expected adapters."));
  EXPECT_THAT(with("version", nullptr), HasSubstr("version: expected adapters."));
  EXPECT_THAT(with("model_type", "bert"), HasSubstr("expected gpt2"));
  EXPECT_THAT(with("hidden_size", 768), HasSubstr("expected 30"));
  EXPECT_THAT(with("name", "a.b"), HasSubstr("name"));
  EXPECT_THAT(with("name", nullptr), HasSubstr("name"));
  EXPECT_THAT(with("config", "pfeiffer"), HasSubstr("expected an object"));
  EXPECT_EQ(with("model_type", nullptr), "");
  EXPECT_FALSE(IsAdapterHubConfig(json{{"peft_type", "LORA"}, {"config", {}}}));
}

// adapters/loading.py, _fix_backward_compat.
TEST_F(AdapterHubConfigTest, LoraOfVersionsBeforeTheScalingFixHasScaleOne) {
  json object = json::parse(ConfigText(hub_, "lora"));  // r 3, alpha 5
  const auto alpha = [&](const char* version) {
    object["version"] = version;
    const auto config = ParseAdapterHubConfig(object, "config", info_);
    EXPECT_TRUE(config.ok()) << config.status();
    return std::get<HubLora>(config->parts[0]).alpha;
  };
  for (const char* old :
       {"adapters.0.2.1", "adapters.1.0.0", "adapters.1.0.1", "adapters.1.1.0.dev0"}) {
    EXPECT_EQ(alpha(old), 3) << old;
  }
  for (const char* later : {"adapters.1.1.0", "adapters.1.1.1", "adapters.1.3.0", "adapters.2.0"}) {
    EXPECT_EQ(alpha(later), 5) << later;
  }
}

// Only the fields that differ from the library's defaults.
TEST_F(AdapterHubConfigTest, ShortConfigsHaveTheLibrarysDefaults) {
  const auto parse = [&](const char* text) {
    const auto config = ParseAdapterHubConfig(json::parse(text), "config", info_);
    EXPECT_TRUE(config.ok()) << config.status();
    return config->parts[0];
  };
  const auto lora = std::get<HubLora>(
      parse(R"({"version": "adapters.1.3.0", "name": "a", "config": {"architecture": "lora"}})"));
  EXPECT_TRUE(lora.query && !lora.key && lora.value && !lora.intermediate && !lora.output);
  EXPECT_EQ(lora.rank, 8);
  EXPECT_EQ(lora.alpha, 8);
  const auto prefix = std::get<HubPrefix>(parse(
      R"({"version": "adapters.1.3.0", "name": "a", "config": {"architecture": "prefix_tuning"}})"));
  EXPECT_TRUE(prefix.encoder && prefix.cross && !prefix.flat && prefix.shared_gate);
  EXPECT_EQ(prefix.length, 30);
  EXPECT_EQ(prefix.bottleneck, 512);
  const auto bottleneck = std::get<HubBottleneck>(
      parse(R"({"version": "adapters.1.3.0", "name": "a", "config": {"mh_adapter": true,
            "output_adapter": true, "reduction_factor": 16, "non_linearity": "swish"}})"));
  EXPECT_TRUE(!bottleneck.original_before && bottleneck.original_after &&
              bottleneck.residual_before_norm && !bottleneck.parallel);
}

// max(1, int(d // factor)) by Python 3.11.
TEST(HubBottleneckWidth, IsPythons) {
  const std::vector<std::tuple<int64_t, double, int64_t>> cases = {
      {512, 512 / 5.0, 4}, {768, 16, 48}, {25, 8, 3},      {25, 5.5, 4},
      {28, 7.5, 3},        {512, 96, 5},  {30, 100, 1},    {1, 3, 1},
      {33, 1.1, 29},       {49, 0.7, 70}, {100, 0.3, 333}, {768, 0.1, 7679}};
  for (const auto& [width, factor, expected] : cases) {
    EXPECT_EQ(HubBottleneckWidth(width, factor), expected) << width << " " << factor;
  }
  for (const int64_t width : {25, 512, 768, 1024, 4096}) {
    for (int64_t b = 1; b <= width; ++b) {
      EXPECT_EQ(HubBottleneckWidth(width, HubReductionFactor(width, b)), b) << width;
    }
  }
}

// No text crashes the parser, and what it accepts it writes in a form that it accepts.
TEST_F(AdapterHubConfigTest, SurvivesBrokenConfigs) {
  std::mt19937 random(7);
  const std::vector<std::string> values = {"null",       "true", "-1", "1e308",
                                           "\"q\"",      "[]",   "{}", "9223372036854775807",
                                           "[1, \"a\"]", "0.5"};
  for (const std::string& adapter : hub_.names) {
    const json original = json::parse(ConfigText(hub_, adapter));
    for (int i = 0; i < 300; ++i) {
      json object = original;
      // One or two leaves anywhere are replaced.
      json flat = object.flatten();
      std::vector<std::string> paths;
      for (const auto& [path, value] : flat.items()) paths.push_back(path);
      for (unsigned changes = 1 + random() % 2; changes > 0; --changes) {
        const json::json_pointer at(paths[random() % paths.size()]);
        object[at] = json::parse(values[random() % values.size()]);
      }
      const auto config = ParseAdapterHubConfig(object, "config", info_);
      if (!config.ok()) {
        EXPECT_THAT(std::string(config.status().message()), HasSubstr("config"));
        continue;
      }
      const auto again =
          ParseAdapterHubConfig(json::parse(AdapterHubConfigJson(*config, info_)), "again", info_);
      EXPECT_TRUE(again.ok()) << again.status();
    }
  }
}

}  // namespace
}  // namespace permafrost
