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
  static const std::vector<std::string> kNames = {"prompt",
                                                  "ptuning",
                                                  "ptuning-lstm",
                                                  "prefix",
                                                  "prefix-network",
                                                  "lora",
                                                  "dora",
                                                  "ia3",
                                                  "houlsby",
                                                  "pfeiffer",
                                                  "parallel",
                                                  "bitfit",
                                                  "norm",
                                                  "head",
                                                  "top-layers",
                                                  "unipelt",
                                                  "mam",
                                                  "multitask-prompt",
                                                  "full"};
  return kNames;
}
// A LoRA that starts from the base's weights, and one with all that it can train beside linears.
inline const std::vector<std::string>& LoraFormNames() {
  static const std::vector<std::string> kNames = {"lora-pissa", "lora-everything"};
  return kNames;
}
inline BottleneckConfig BottleneckNamed(const std::string& method) {
  BottleneckConfig adapter = method == "houlsby"    ? HoulsbyConfig()
                             : method == "pfeiffer" ? PfeifferConfig()
                                                    : ParallelConfig();
  adapter.width = 5;
  return adapter;
}
// Prefix, LoRA and adapter with gates, or He et al.'s prefix and parallel adapter without.
inline UniPeltConfig UnionNamed(const std::string& method, const std::string& model_type) {
  GateConfig gate;
  if (method == "unipelt") gate.kind = GateConfig::Kind::kRunning;
  gate.shared = false;
  PrefixTuningConfig prefix;
  prefix.virtual_tokens = 3;
  prefix.encoder = prefix.cross = model_type == "t5";
  prefix.peft_layout = prefix.text_after_prefix = false;
  prefix.positions = PrefixTuningConfig::Positions::kNone;
  prefix.gate = gate;
  BottleneckConfig adapter = BottleneckNamed(method == "mam" ? "parallel" : "pfeiffer");
  adapter.gate = gate;
  UniPeltConfig config;
  config.parts = {prefix, adapter};
  if (method == "mam") return config;
  LoraConfig lora = LoraConfigOf(DefaultLoraTargets(model_type), 2);
  lora.gate = gate;
  config.parts.emplace_back(lora);
  return config;
}
inline AdapterConfig ConfigNamed(const std::string& method, const std::string& model_type) {
  if (method == "prompt") return PromptConfig(5);
  if (method == "ptuning") return PTuningConfig{.virtual_tokens = 5, .encoder_width = 7};
  if (method == "ptuning-lstm") {
    return PTuningConfig{.virtual_tokens = 5, .encoder_width = 7, .encoder = PromptEncoder::kLstm};
  }
  if (method == "ia3") return DefaultIa3Config(model_type, {});
  if (method.starts_with("prefix")) {
    PrefixTuningConfig prefix;
    prefix.virtual_tokens = 4;
    prefix.layers = model_type == "t5" ? 3 : 0;  // the larger of the golden bases' stacks
    prefix.projection = method == "prefix-network";
    prefix.projection_width = 6;
    return prefix;
  }
  if (method == "houlsby" || method == "pfeiffer" || method == "parallel") {
    return BottleneckNamed(method);
  }
  if (method == "bitfit") return BitFitConfig();
  if (method == "norm")
    return FullConfig{.part = FullConfig::Part::kNorms, .layers = 0, .norms = {}};
  if (method == "head")
    return FullConfig{.part = FullConfig::Part::kHead, .layers = 0, .norms = {}};
  if (method == "top-layers")
    return FullConfig{.part = FullConfig::Part::kTopLayers, .layers = 1, .norms = {}};
  if (method == "unipelt" || method == "mam") return UnionNamed(method, model_type);
  if (method == "full") return FullConfig();
  if (method == "multitask-prompt") {
    return MultitaskPromptConfig{.virtual_tokens = 5, .tasks = 2, .ranks = 2};
  }
  LoraConfig lora = LoraConfigOf({"all-linear"}, 3);
  lora.dropout = 0.1;
  lora.dora = method == "dora";
  if (method == "lora-pissa") lora.init = LoraInit::kPissa;
  if (method == "lora-everything") {
    lora.targets.modules.push_back(model_type == "gpt2" ? "wte" : "embed_tokens");
    lora.bias = LoraBias::kAll;
    lora.modules_to_save = {"lm_head", model_type == "gpt2" ? "ln_f" : "norm"};
  }
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
