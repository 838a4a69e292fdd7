// A golden base with a fresh adapter on its lines: what the property tests of methods run on.
#ifndef PERMAFROST_TESTS_UTIL_GOLDEN_WORLD_H_
#define PERMAFROST_TESTS_UTIL_GOLDEN_WORLD_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "peft/adapter_file.h"
#include "peft/prompt_init.h"
#include "tests/util/golden_case.h"

namespace permafrost {

struct GoldenWorld {
  std::unique_ptr<Context> context;
  std::unique_ptr<Model> model;
  Adapter adapter;  // of task 0, as are the lines
  std::vector<TokenLine> lines;

  Hooks& hooks() { return *adapter.method; }
};

inline AdapterConfig PromptConfig(int64_t virtual_tokens) {
  return PromptTuningConfig{.virtual_tokens = virtual_tokens, .submodules = 1};
}

inline LoraConfig LoraConfigOf(std::vector<std::string> targets, int64_t rank) {
  LoraConfig config;
  config.rank = rank;
  config.alpha = 2 * static_cast<double>(rank);
  config.targets.modules = std::move(targets);
  return config;
}

// Every method, by the name of `--method` (and its variant): what the tests of properties that all
// methods share run on.
inline const std::vector<std::string>& MethodNames() {
  static const std::vector<std::string> kNames = {"prompt", "ptuning", "ptuning-lstm",    "lora",
                                                  "ia3",    "full",    "multitask-prompt"};
  return kNames;
}
inline AdapterConfig ConfigNamed(const std::string& method, const std::string& model_type) {
  if (method == "prompt") return PromptConfig(5);
  if (method == "ptuning") return PTuningConfig{.virtual_tokens = 5, .encoder_width = 7};
  if (method == "ptuning-lstm") {
    return PTuningConfig{.virtual_tokens = 5, .encoder_width = 7, .encoder = PromptEncoder::kLstm};
  }
  if (method == "ia3") return DefaultIa3Config(model_type, {});
  if (method == "full") return FullConfig();
  if (method == "multitask-prompt") {
    return MultitaskPromptConfig{.virtual_tokens = 5, .tasks = 2, .ranks = 2};
  }
  LoraConfig lora = LoraConfigOf({"all-linear"}, 3);
  lora.dropout = 0.1;
  return lora;
}

inline Adapter FreshAdapter(const AdapterConfig& config, int task, Context& c, const Model& model) {
  Random random(7);
  auto adapter = CreateAdapter(config, task, c, model, random);
  EXPECT_TRUE(adapter.ok()) << adapter.status();
  return *std::move(adapter);
}

// The golden base `name` (its lines belong to task 0) without an adapter.
inline GoldenWorld OpenGoldenWorld(const std::string& name, Precision precision = Precision::kF32,
                                   int threads = 1) {
  GoldenWorld world;
  GoldenCase golden = OpenGoldenCase(name);
  world.lines = std::move(golden.lines);
  for (TokenLine& line : world.lines) line.task = 0;
  world.context = std::make_unique<Context>(threads, precision);
  auto model = OpenModel(*world.context, golden.folder);
  EXPECT_TRUE(model.ok()) << model.status();
  world.model = *std::move(model);
  return world;
}

// Every parameter moved off its initial value, so that no term of a method is zero.
inline void MoveParameters(Method& method, double deviation) {
  Random random(13);
  for (Parameter& p : method.parameters()) {
    for (int64_t i = 0; i < p.count(); ++i) {
      p.value().f32()[i] += static_cast<float>(deviation * random.Normal());
    }
  }
}

}  // namespace permafrost

#endif  // PERMAFROST_TESTS_UTIL_GOLDEN_WORLD_H_
