// Properties that every method has on every base: what is the base at first is the base, a batch
// that mixes all methods gives each line what it gets alone, merged is unmerged, the number of
// trained values is the formula's.
#include <numeric>

#include "tests/util/golden_forward.h"
#include "tests/util/golden_world.h"
#include "tests/util/merged_hooks.h"

namespace permafrost {
namespace {

class MethodsTest : public testing::TestWithParam<std::string> {
 protected:
  MethodsTest() : w_(OpenGoldenWorld(GetParam())) {}

  Adapter Fresh(const std::string& method, int task = 0) {
    return FreshAdapter(ConfigNamed(method, w_.model->info().model_type), task, *w_.context,
                        *w_.model);
  }
  Forward Run(Hooks& hooks, absl::Span<const TokenLine> lines) {
    return RunForward(*w_.context, *w_.model, hooks, lines, Outputs::kAll);
  }

  GoldenWorld w_;
};

double MaxDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, largest = 0;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(a[i]) - b[i]));
    largest = std::max(largest, std::abs(static_cast<double>(a[i])));
  }
  return difference / largest;
}

// By their papers' initialisations these start as the base. Copies of weights run through another
// product than packed ones, so the sums' order differs.
TEST_P(MethodsTest, SomeStartAsTheBase) {
  Hooks none;
  const Forward base = Run(none, w_.lines);
  for (const std::string method :
       {"lora", "ia3", "parallel", "bitfit", "norm", "head", "top-layers", "full"}) {
    EXPECT_LE(MaxDifference(base.logits, Run(*Fresh(method).method, w_.lines).logits), kLogitBound)
        << method;
  }
}

TEST_P(MethodsTest, ABatchOfAllMethodsGivesEachLineWhatItGetsAlone) {
  AdapterSet set;
  std::vector<Adapter> adapters;
  for (const std::string& method : MethodNames()) {
    if (method == "full") continue;  // owns T5's table of position biases, which all rows share
    const int task = static_cast<int>(adapters.size());
    adapters.push_back(Fresh(method, task));
    MoveParameters(*adapters.back().method, 0.05);
    set.Add(method, adapters.back().method);
  }
  std::vector<TokenLine> mixed;
  for (size_t i = 0; i < 4 * adapters.size(); ++i) {
    mixed.push_back(w_.lines[i % 5]);
    const size_t task = i % adapters.size();
    mixed.back().task = static_cast<int>(task);
    mixed.back().prompt = static_cast<int>(static_cast<int64_t>(i / adapters.size()) %
                                           adapters[task].method->Prompts());
  }
  const Forward together = Run(set, mixed);
  for (size_t task = 0; task < adapters.size(); ++task) {
    for (size_t i = task; i < mixed.size(); i += adapters.size()) {
      const Forward alone = Run(*adapters[task].method, {&mixed[i], 1});
      EXPECT_NEAR(together.losses[i], alone.losses[0],
                  kLossBound * std::abs(alone.losses[0]) + 1e-7)
          << MethodNames()[task] << ", line " << i;
    }
  }
}

// Each form is within kLogitBound of the exact function.
TEST_P(MethodsTest, MergedIsUnmerged) {
  for (const std::string& method : MethodNames()) {
    const Adapter adapter = Fresh(method);
    MoveParameters(*adapter.method, 0.05);
    const bool into_linears = method == "lora" || method == "dora" || method == "ia3" ||
                              method == "norm" || method == "head" || method == "top-layers" ||
                              method == "full";
    const BitFit* bitfit = dynamic_cast<const BitFit*>(adapter.method.get());
    ASSERT_EQ(adapter.method->mergeable(),
              into_linears || (bitfit != nullptr && bitfit->added() == 0))
        << method;
    if (!adapter.method->mergeable()) continue;
    Merged merged(*w_.context, *w_.model, *adapter.method);
    EXPECT_LE(MaxDifference(Run(*adapter.method, w_.lines).logits, Run(merged, w_.lines).logits),
              2 * kLogitBound)
        << method;
  }
}

// peft-survey 1.10's formulas, here in the golden bases' sizes. Attentions: all that have queries.
TEST_P(MethodsTest, TrainedValuesAreCounted) {
  const ModelInfo& info = w_.model->info();
  const bool t5 = info.encoder_decoder;
  const int64_t d = info.width, kv = info.key_heads * info.head_size;
  const int64_t layers = info.decoder_layers + (t5 ? info.layers : 0);
  const int64_t attentions = layers + (t5 ? info.decoder_layers : 0);
  const auto count = [&](const std::string& method) {
    return Fresh(method).method->parameters().count();
  };
  EXPECT_EQ(count("prompt"), 5 * d);
  EXPECT_EQ(count("prefix"), 4 * 2 * (t5 ? 3 : info.decoder_layers) * kv);
  const int64_t site = 2 * d * 5 + 5 + d;
  EXPECT_EQ(count("pfeiffer"), layers * site);
  EXPECT_EQ(count("houlsby"), 2 * layers * site);
  EXPECT_EQ(count("parallel"), layers * site);
  EXPECT_EQ(count("mam"), 3 * 2 * attentions * kv + layers * site);
  int64_t lora = 0, lora_gates = 0;
  for (const LinearPlace& place : w_.model->linears()) {
    const std::vector<std::string> targets = DefaultLoraTargets(info.model_type);
    const std::string leaf = place.module.substr(place.module.rfind('.') + 1);
    if (std::find(targets.begin(), targets.end(), leaf) == targets.end()) continue;
    lora += 2 * (place.inputs + place.outputs);
    lora_gates += place.inputs + 1;
  }
  EXPECT_EQ(count("unipelt"), 3 * 2 * attentions * kv + attentions * 2 * (d + 1) + layers * site +
                                  layers * (d + 1) + lora + lora_gates);
  EXPECT_EQ(count("full"), w_.model->parameter_count());
}

INSTANTIATE_TEST_SUITE_P(Models, MethodsTest, testing::ValuesIn(GoldenModelNames()), TestName);

}  // namespace
}  // namespace permafrost
