// Arithmetic on adapters: LoRAs against PEFT's add_weighted_adapter (tests/golden/combine), prompts
// against sums by hand.
#include "peft/combine.h"

#include <unistd.h>

#include <filesystem>

#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

class CombineTest : public testing::TestWithParam<std::string> {
 protected:
  CombineTest() : world_(OpenGoldenWorld(GetParam())) {
    for (const char* name : {"first", "second", "third"}) {
      const std::string folder =
          name == std::string("first") ? OpenGoldenCase(GetParam()).adapter("lora") : Golden(name);
      auto adapter = LoadAdapter(folder, 0, *world_.context, *world_.model);
      EXPECT_TRUE(adapter.ok()) << adapter.status();
      adapters_.push_back(*std::move(adapter));
    }
  }
  std::string Golden(const std::string& name) const {
    return absl::StrCat(PERMAFROST_GOLDEN, "/combine/", GetParam(), "/", name);
  }
  absl::StatusOr<Adapter> Combine(Combination how, std::vector<WeightedAdapter> parts) const {
    return CombineAdapters(how, parts, *world_.context, *world_.model);
  }
  // The update of every linear.
  std::vector<Tensor> Updates(const Adapter& adapter) const {
    std::vector<Tensor> values;
    for (const BaseTensor& t : world_.model->tensors()) {
      values.push_back(t.weight != nullptr
                           ? Tensor::Zeros({t.weight->outputs(), t.weight->inputs()})
                           : t.vector.Clone());
    }
    adapter.method->MergeInto(*world_.model, values);
    return values;
  }
  void ExpectGoldenTensors(const Adapter& adapter, const std::string& name) const {
    const auto file = SafetensorsFile::Open(Golden(name) + ".safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->tensors().size(), adapter.method->parameters().size());
    for (const Parameter& p : adapter.method->parameters()) {
      const TensorView* view = file->Find(p.name());
      ASSERT_NE(view, nullptr) << p.name();
      std::vector<float> expected(static_cast<size_t>(view->num_elements()));
      ASSERT_TRUE(ReadAsF32(*view, 0, absl::MakeSpan(expected)).ok());
      EXPECT_LE(RelativeNormDifference(p.value().values(), expected), 1e-6) << p.name();
    }
  }

  GoldenWorld world_;
  std::vector<Adapter> adapters_;
};

TEST_P(CombineTest, LinearIsThatOfPeft) {
  const auto result = Combine(Combination::kLinear, {{&adapters_[0], 0.7}, {&adapters_[1], -0.4}});
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectGoldenTensors(*result, "linear");
  const LoraConfig& config = std::get<LoraConfig>(result->config);
  EXPECT_EQ(config.alpha, static_cast<double>(config.rank));
  EXPECT_FALSE(config.rslora);
}

TEST_P(CombineTest, CatIsThatOfPeft) {
  const auto result = Combine(Combination::kCat,
                              {{&adapters_[0], 0.7}, {&adapters_[2], -0.4}, {&adapters_[1], 1.5}});
  ASSERT_TRUE(result.ok()) << result.status();
  // All three meet at the default targets, so that the largest sum of ranks is the sum of all.
  const int64_t rank = std::get<LoraConfig>(result->config).rank;
  EXPECT_EQ(rank, 3 * std::get<LoraConfig>(adapters_[0].config).rank + 2);
  ExpectGoldenTensors(*result, "cat");
}

// The mean of the tensors, by hand: B A of the mean factors.
TEST_P(CombineTest, AverageIsTheMeanOfTheFactors) {
  const auto result = Combine(Combination::kAverage, {{&adapters_[0], 1}, {&adapters_[1], 3}});
  ASSERT_TRUE(result.ok()) << result.status();
  int both = 0;
  for (const LinearPlace& place : world_.model->linears()) {
    const auto term = [&](const Adapter& a) {
      return static_cast<const Lora&>(*a.method).TermOf(place.index);
    };
    const auto x = term(adapters_[0]), y = term(adapters_[1]), mean = term(*result);
    EXPECT_EQ(mean.has_value(), x.has_value() || y.has_value()) << place.module;
    if (!x.has_value() || !y.has_value()) continue;
    ++both;
    EXPECT_EQ(mean->scale, 1);
    for (int64_t i = 0; i < x->a.count(); ++i) {
      EXPECT_NEAR(
          mean->a.f32()[i],
          0.25 * std::sqrt(x->scale) * x->a.f32()[i] + 0.75 * std::sqrt(y->scale) * y->a.f32()[i],
          1e-6);
    }
    for (int64_t i = 0; i < x->b.count(); ++i) {
      EXPECT_NEAR(
          mean->b.f32()[i],
          0.25 * std::sqrt(x->scale) * x->b.f32()[i] + 0.75 * std::sqrt(y->scale) * y->b.f32()[i],
          1e-6);
    }
  }
  EXPECT_GT(both, 0);
  EXPECT_FALSE(Combine(Combination::kAverage, {{&adapters_[0], 1}, {&adapters_[1], -1}}).ok());
}

// Exactly the weighted sum of the updates, which linear is not.
TEST_P(CombineTest, CatAddsTheUpdates) {
  const std::vector<WeightedAdapter> parts = {{&adapters_[0], 0.7}, {&adapters_[1], -0.4}};
  const std::vector<Tensor> a = Updates(adapters_[0]), b = Updates(adapters_[1]),
                            cat = Updates(*Combine(Combination::kCat, parts)),
                            linear = Updates(*Combine(Combination::kLinear, parts));
  double cat_error = 0, linear_error = 0, size = 0;
  for (const LinearPlace& place : world_.model->linears()) {
    const size_t t = static_cast<size_t>(place.weight);
    for (int64_t i = 0; i < a[t].count(); ++i) {
      const double sum =
          0.7 * static_cast<double>(a[t].f32()[i]) - 0.4 * static_cast<double>(b[t].f32()[i]);
      cat_error = std::max(cat_error, std::abs(cat[t].f32()[i] - sum));
      linear_error = std::max(linear_error, std::abs(linear[t].f32()[i] - sum));
      size = std::max(size, std::abs(sum));
    }
  }
  EXPECT_GT(size, 0);
  EXPECT_LE(cat_error, 1e-6 * size);
  EXPECT_GT(linear_error, 1e-2 * size);
}

// Written and read again it is the same LoRA, whatever its targets are.
TEST_P(CombineTest, TheResultIsAFile) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/combine_", getpid());
  const auto result = Combine(Combination::kCat, {{&adapters_[0], 1}, {&adapters_[1], 1}});
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_TRUE(SaveAdapter(folder, *result, *world_.model).ok());
  const auto loaded = LoadAdapter(folder, 0, *world_.context, *world_.model);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const std::vector<Tensor> a = Updates(*result), b = Updates(*loaded);
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(std::equal(a[i].values().begin(), a[i].values().end(), b[i].values().begin()));
  }
  std::filesystem::remove_all(folder);
}

TEST_P(CombineTest, Errors) {
  EXPECT_FALSE(Combine(Combination::kLinear, {}).ok());
  EXPECT_FALSE(Combine(Combination::kLinear, {{&adapters_[0], 1}, {&adapters_[2], 1}}).ok());
  const Adapter prompt = FreshAdapter(PromptConfig(2), 0, *world_.context, *world_.model);
  EXPECT_FALSE(Combine(Combination::kCat, {{&adapters_[0], 1}, {&prompt, 1}}).ok());
  EXPECT_FALSE(Combine(Combination::kCat, {{&prompt, 1}, {&adapters_[0], 1}}).ok());
  const Adapter ia3 = FreshAdapter(DefaultIa3Config(world_.model->info().model_type, {}), 0,
                                   *world_.context, *world_.model);
  EXPECT_FALSE(Combine(Combination::kLinear, {{&ia3, 1}, {&ia3, 1}}).ok());
}

TEST_P(CombineTest, MoreThanFactorsAtLinearsIsRefused) {
  const std::string& type = world_.model->info().model_type;
  const LoraConfig plain = LoraConfigOf(DefaultLoraTargets(type), 2);
  LoraConfig dora = plain, own_bias = plain, bias = plain, copies = plain, embedding = plain,
             gated = plain;
  dora.dora = true;
  own_bias.lora_bias = true;
  bias.bias = LoraBias::kAll;
  copies.modules_to_save = {"lm_head"};
  embedding.targets.modules.push_back(type == "gpt2" ? "wte" : "embed_tokens");
  gated.gate.kind = GateConfig::Kind::kRunning;
  for (const auto& [config, reason] :
       std::vector<std::pair<LoraConfig, std::string>>{{dora, "DoRA"},
                                                       {own_bias, "lora_bias"},
                                                       {bias, "biases of the base"},
                                                       {copies, "modules_to_save"},
                                                       {embedding, "embedding"},
                                                       {gated, "gates"}}) {
    const Adapter other = FreshAdapter(config, 0, *world_.context, *world_.model);
    const auto result = Combine(Combination::kCat, {{&adapters_[0], 1}, {&other, 1}});
    ASSERT_FALSE(result.ok()) << reason;
    EXPECT_NE(std::string(result.status().message()).find("found one with"), std::string::npos);
    EXPECT_NE(std::string(result.status().message()).find(reason), std::string::npos)
        << result.status();
  }
}

// What PiSSA took from the weights is part of what it adds.
TEST_P(CombineTest, ALoraThatStartedFromTheWeightsIsWhatItAdds) {
  const std::string& type = world_.model->info().model_type;
  const Adapter pissa =
      FreshAdapter(ConfigNamed("lora-pissa", type), 0, *world_.context, *world_.model);
  MoveParameters(*pissa.method, 0.05);
  const auto result = Combine(Combination::kCat, {{&pissa, 0.5}, {&adapters_[0], 2}});
  ASSERT_TRUE(result.ok()) << result.status();
  const std::vector<Tensor> a = Updates(pissa), b = Updates(adapters_[0]), cat = Updates(*result);
  for (const LinearPlace& place : world_.model->linears()) {
    const size_t t = static_cast<size_t>(place.weight);
    for (int64_t i = 0; i < a[t].count(); ++i) {
      EXPECT_NEAR(cat[t].f32()[i], 0.5 * a[t].f32()[i] + 2.0 * b[t].f32()[i], 1e-6);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CombineTest, testing::Values("llama-1", "gpt2-1"), TestName);

TEST(CombinePrompts, SumsAndConcatenations) {
  GoldenWorld w = OpenGoldenWorld("t5-v1_1-1");
  Context& c = *w.context;
  const int64_t width = w.model->info().width;
  Random random(3);
  const Tensor x = NormalTensor({3, width}, 1, random), y = NormalTensor({3, width}, 1, random),
               z = NormalTensor({2, width}, 1, random);
  const Adapter a = PromptAdapter(0, x.Clone()), b = PromptAdapter(0, y.Clone()),
                d = PromptAdapter(0, z.Clone());
  const auto sum = CombineAdapters(Combination::kLinear,
                                   std::vector<WeightedAdapter>{{&a, 0.5}, {&b, -2}}, c, *w.model);
  ASSERT_TRUE(sum.ok()) << sum.status();
  const Tensor added = AsPrompt(*sum)->prompt();
  ASSERT_EQ(added.shape(), x.shape());
  for (int64_t i = 0; i < x.count(); ++i) {
    EXPECT_NEAR(added.f32()[i], 0.5 * x.f32()[i] - 2.0 * y.f32()[i], 1e-6);
  }
  const auto cat = CombineAdapters(Combination::kCat,
                                   std::vector<WeightedAdapter>{{&d, 1}, {&a, 3}}, c, *w.model);
  ASSERT_TRUE(cat.ok()) << cat.status();
  const Tensor joined = AsPrompt(*cat)->prompt();
  ASSERT_EQ(joined.shape(), (Shape{5, width}));
  for (int64_t i = 0; i < joined.count(); ++i) {
    EXPECT_EQ(joined.f32()[i], i < z.count() ? z.f32()[i] : 3 * x.f32()[i - z.count()]);
  }
  // PEFT's second half is not part of a prompt.
  auto stored = LoadAdapter(OpenGoldenCase("t5-v1_1-1").adapter("prompt"), 0, c, *w.model);
  ASSERT_TRUE(stored.ok());
  const auto twice = CombineAdapters(
      Combination::kCat, std::vector<WeightedAdapter>{{&*stored, 1}, {&*stored, 1}}, c, *w.model);
  EXPECT_EQ(AsPrompt(*twice)->prompt().rows(), 2 * AsPrompt(*stored)->prompt().rows());

  const auto refused = [&](Combination how, const Adapter& p, const Adapter& q) {
    return !CombineAdapters(how, std::vector<WeightedAdapter>{{&p, 1}, {&q, 1}}, c, *w.model).ok();
  };
  EXPECT_TRUE(refused(Combination::kLinear, a, d));
  const Adapter anchored = PromptAdapter(0, x.Clone(), "{v*3} {text}");
  EXPECT_TRUE(refused(Combination::kLinear, a, anchored));
  EXPECT_TRUE(refused(Combination::kCat, anchored, anchored));
  const auto kept =
      CombineAdapters(Combination::kLinear,
                      std::vector<WeightedAdapter>{{&anchored, 1}, {&anchored, 1}}, c, *w.model);
  ASSERT_TRUE(kept.ok());
  EXPECT_EQ(kept->method->InputTemplate(), "{v*3} {text}");
}

}  // namespace
}  // namespace permafrost
