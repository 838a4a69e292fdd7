// Generation against transformers' goldens, against forward passes without a cache, and beam search
// against exhaustive search.
#include "models/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/random.h"
#include "io/json.h"
#include "models/beam_search.h"
#include "models/cached_decoder.h"
#include "models/uncached_decoder.h"
#include "nlohmann/json.hpp"
#include "peft/adapter_file.h"
#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

using Ids = std::vector<int32_t>;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GenerateTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    folder_ = std::string(PERMAFROST_GOLDEN "/models/") + GetParam();
    auto model = OpenModel(c_, folder_);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    auto json = ReadJsonFile(folder_ + "/case.json");
    ASSERT_TRUE(json.ok()) << json.status();
    golden_ = json->at("generate");
  }

  std::shared_ptr<Method> LoadMethod(const std::string& kind) {
    auto adapter = LoadAdapter(folder_ + "/adapters/" + kind, 0, c_, *model_);
    EXPECT_TRUE(adapter.ok()) << adapter.status();
    return adapter.ok() ? std::move(adapter->method) : nullptr;
  }

  Ids Run(Hooks& hooks, int task, const Ids& prompt, const GenerateOptions& options) {
    auto ids = Generate(c_, *model_, hooks, task, prompt, options, nullptr);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.ok() ? *ids : Ids{};
  }

  // Logits [V] after `prompt` and `tokens`, from a forward pass over all of them.
  std::vector<float> FullLogits(Hooks& hooks, int task, const Ids& prompt, const Ids& tokens) {
    TokenLine line{.input_ids = prompt, .labels = {}, .task = task};
    if (model_->info().encoder_decoder) {
      line.labels = tokens;
      line.labels.push_back(0);
    } else {
      line.input_ids.insert(line.input_ids.end(), tokens.begin(), tokens.end());
    }
    Batch batch = MakeBatch(model_->layout(hooks), {line}, Outputs::kLabelled);
    batch.outputs = {static_cast<int32_t>(batch.decoder.rows.count() - 1)};
    batch.output_spans = GatherTaskSpans(batch.decoder.spans, batch.outputs);
    const Var hidden = model_->Decode(c_, batch, model_->Encode(c_, batch, hooks), hooks, nullptr);
    const Tensor logits = model_->Logits(c_, hidden, batch.output_spans, hooks).value();
    return {logits.values().begin(), logits.values().end()};
  }

  void ExpectArgMax(Hooks& hooks, int task) {
    const Ids prompt = golden_.at("prompts").at(0).get<Ids>();
    const Ids found = Run(hooks, task, prompt, {.max_new_tokens = 12});
    Ids expected;
    while (expected.size() < found.size()) {
      const std::vector<float> logits = FullLogits(hooks, task, prompt, expected);
      expected.push_back(
          static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    }
    EXPECT_EQ(found, expected);
  }

  template <class Decoder>
  void CompareWithFull(Hooks& hooks, int task, const Ids& prompt);

  Context c_;
  std::string folder_;
  std::unique_ptr<Model> model_;
  nlohmann::json golden_;
};

TEST_P(GenerateTest, AgreesWithTransformers) {
  const auto prompts = golden_.at("prompts").get<std::vector<Ids>>();
  for (const std::string kind : {"none", "prompt", "lora", "ia3"}) {
    Hooks plain;
    std::shared_ptr<Method> method;
    if (kind != "none") {
      method = LoadMethod(kind);
      ASSERT_NE(method, nullptr);
    }
    Hooks& hooks = method ? *method : plain;
    for (size_t i = 0; i < prompts.size(); ++i) {
      GenerateOptions options;
      options.max_new_tokens = golden_.at("max_new_tokens");
      EXPECT_EQ(Run(hooks, method ? 0 : kNoTask, prompts[i], options),
                golden_.at(kind).at("greedy").at(i).get<Ids>())
          << kind << " greedy " << i;
      options.beams = golden_.at("beams");
      options.length_penalty = golden_.at("length_penalty");
      EXPECT_EQ(Run(hooks, method ? 0 : kNoTask, prompts[i], options),
                golden_.at(kind).at("beam").at(i).get<Ids>())
          << kind << " beam " << i;
    }
  }
}

// Three beams take random tokens and change places; each one's logits are those of a forward pass
// over its whole history.
template <class Decoder>
void GenerateTest::CompareWithFull(Hooks& hooks, int task, const Ids& prompt) {
  constexpr int kBeams = 3, kSteps = 40;  // more steps than the first reservation holds
  Random random(7);
  Decoder decoder(c_, *model_, hooks, task, kBeams);
  const auto expect_equal = [&](const float* found, const Ids& history) {
    const std::vector<float> full = FullLogits(hooks, task, prompt, history);
    double norm = 0, difference = 0;
    for (size_t i = 0; i < full.size(); ++i) {
      norm += static_cast<double>(full[i]) * full[i];
      difference += std::pow(static_cast<double>(full[i]) - found[i], 2);
    }
    // The same sums in another order: some hundred rounding steps of 2^-24, scaled up by the sharp
    // softmax of these models.
    EXPECT_LE(std::sqrt(difference), 2e-5 * std::sqrt(norm)) << history.size() << " new tokens";
  };
  expect_equal(decoder.Prefill(prompt).row(0), {});
  std::vector<Ids> histories(kBeams);
  for (int step = 0; step < kSteps; ++step) {
    Ids tokens, parents;
    std::vector<Ids> next;
    for (int b = 0; b < kBeams; ++b) {
      tokens.push_back(static_cast<int32_t>(random.Below(model_->info().vocabulary)));
      parents.push_back(step % 2 == 0 ? b : static_cast<int32_t>(random.Below(kBeams)));
      next.push_back(histories[static_cast<size_t>(parents.back())]);
      next.back().push_back(tokens.back());
    }
    histories = std::move(next);
    const Tensor logits = decoder.Step(tokens, step % 4 == 0 ? Ids{} : parents);
    if (step > 4 && step < 29) continue;
    for (int b = 0; b < kBeams; ++b) expect_equal(logits.row(b), histories[static_cast<size_t>(b)]);
  }
}

TEST_P(GenerateTest, CachedLogitsAreThoseOfAFullForward) {
  Hooks plain;
  CompareWithFull<CachedDecoder>(plain, kNoTask, {5, 9, 77, 9, 31});
}

TEST_P(GenerateTest, CachedLogitsWithVirtualTokens) {
  const std::shared_ptr<Method> prompt = LoadMethod("prompt");
  ASSERT_NE(prompt, nullptr);
  CompareWithFull<CachedDecoder>(*prompt, 0, {5, 9, 77, 9, 31});
  if (!model_->info().encoder_decoder) CompareWithFull<CachedDecoder>(*prompt, 0, {});
}

// Prefixes move positions, gates carry running means in the cache.
TEST_P(GenerateTest, CachedLogitsWithPrefixesAdaptersAndGates) {
  for (const std::string method : {"prefix", "houlsby", "bitfit", "unipelt"}) {
    const Adapter adapter =
        FreshAdapter(ConfigNamed(method, model_->info().model_type), 0, c_, *model_);
    MoveParameters(*adapter.method, 0.2);
    CompareWithFull<CachedDecoder>(*adapter.method, 0, {5, 9, 77, 9, 31});
  }
}

// AdapterHub's: T5's text is moved away from the prefix; a gate sees all of a text, so that nothing
// can be kept while it grows.
TEST_P(GenerateTest, LogitsWithShiftedPrefixesAndGatesOverTheWholeText) {
  const std::string& type = model_->info().model_type;
  UniPeltConfig config = UnionNamed("unipelt", type);
  for (const GateConfig::Kind kind : {GateConfig::Kind::kNone, GateConfig::Kind::kWhole}) {
    std::get<PrefixTuningConfig>(config.parts[0]).positions =
        PrefixTuningConfig::Positions::kShifted;
    std::get<PrefixTuningConfig>(config.parts[0]).gate.kind = kind;
    std::get<BottleneckConfig>(config.parts[1]).gate.kind = kind;
    std::get<LoraConfig>(config.parts[2]).gate.kind = kind;
    const Adapter adapter = FreshAdapter(config, 0, c_, *model_);
    MoveParameters(*adapter.method, 0.2);
    const bool whole = kind == GateConfig::Kind::kWhole;
    EXPECT_EQ(adapter.method->ReadsFuture(0), whole);
    if (!whole) CompareWithFull<CachedDecoder>(*adapter.method, 0, {5, 9, 77, 9, 31});
    CompareWithFull<UncachedDecoder>(*adapter.method, 0, {5, 9, 77, 9, 31});
    ExpectArgMax(*adapter.method, 0);
  }
}

TEST_P(GenerateTest, GreedyIsArgMaxOfFullForwards) {
  Hooks hooks;
  ExpectArgMax(hooks, kNoTask);
}

TEST_P(GenerateTest, SamplingIsReproducibleAndDegeneratesToGreedy) {
  Hooks hooks;
  const Ids prompt = golden_.at("prompts").at(1).get<Ids>();
  const Ids greedy = Run(hooks, kNoTask, prompt, {});
  EXPECT_EQ(Run(hooks, kNoTask, prompt, {.temperature = 5, .top_k = 1, .seed = 3}), greedy);
  EXPECT_EQ(Run(hooks, kNoTask, prompt, {.temperature = 5, .top_p = 1e-9, .seed = 3}), greedy);
  EXPECT_EQ(Run(hooks, kNoTask, prompt, {.temperature = 1e-300, .seed = 3}), greedy);
  const Ids first = Run(hooks, kNoTask, prompt, {.temperature = 1.5, .seed = 3});
  EXPECT_EQ(Run(hooks, kNoTask, prompt, {.temperature = 1.5, .seed = 3}), first);
  bool other = false;  // some other seed gives another text
  for (uint64_t seed = 4; seed < 12; ++seed) {
    other = other || Run(hooks, kNoTask, prompt, {.temperature = 1.5, .seed = seed}) != first;
  }
  EXPECT_TRUE(other);
}

TEST_P(GenerateTest, CallerStopsAndModeIsRestored) {
  Hooks hooks;
  c_.tape.mode = TapeMode::kRecord;
  c_.training = true;
  Ids seen;
  auto ids = Generate(c_, *model_, hooks, kNoTask, {5, 9}, {}, [&](int32_t id) {
    seen.push_back(id);
    return seen.size() < 2;
  });
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_LE(ids->size(), 2u);
  EXPECT_EQ(*ids, seen);
  EXPECT_EQ(c_.tape.mode, TapeMode::kRecord);
  EXPECT_TRUE(c_.training);
  EXPECT_TRUE(c_.tape.nodes().empty());
}

TEST_P(GenerateTest, RepetitionPenaltyForbidsWhatWasSeen) {
  Hooks hooks;
  Ids ids = Run(hooks, kNoTask, {5, 9}, {.repetition_penalty = 1e30});
  std::sort(ids.begin(), ids.end());
  EXPECT_EQ(std::adjacent_find(ids.begin(), ids.end()), ids.end());
}

TEST_P(GenerateTest, Errors) {
  Hooks hooks;
  const auto error = [&](const Ids& prompt, const GenerateOptions& options) {
    return std::string(
        Generate(c_, *model_, hooks, kNoTask, prompt, options, nullptr).status().message());
  };
  EXPECT_THAT(error({}, {}), HasSubstr("at least one token"));
  EXPECT_THAT(error({5, 131}, {}), HasSubstr("token 1"));
  EXPECT_THAT(error({-1}, {}), HasSubstr("token 0"));
  EXPECT_THAT(error({5}, {.max_new_tokens = 0}), HasSubstr("max_new_tokens"));
  EXPECT_THAT(error({5}, {.temperature = -1}), HasSubstr("temperature"));
  EXPECT_THAT(error({5}, {.temperature = NAN}), HasSubstr("temperature"));
  EXPECT_THAT(error({5}, {.top_k = -1}), HasSubstr("top_k"));
  EXPECT_THAT(error({5}, {.top_p = 0}), HasSubstr("top_p"));
  EXPECT_THAT(error({5}, {.repetition_penalty = 0}), HasSubstr("repetition_penalty"));
  EXPECT_THAT(error({5}, {.beams = 0}), HasSubstr("beams"));
  EXPECT_THAT(error({5}, {.temperature = 1, .beams = 2}), HasSubstr("temperature"));
  if (model_->info().max_positions > 0) {
    EXPECT_THAT(error({5}, {.max_new_tokens = model_->info().max_positions}),
                HasSubstr(model_->info().position_limit));
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, GenerateTest,
                         ::testing::Values("gpt2-1", "gpt2-2", "llama-1", "llama-2", "mistral-1",
                                           "mistral-2", "qwen2-1", "qwen2-2", "t5-v1_0-1",
                                           "t5-v1_0-2", "t5-v1_1-1", "t5-v1_1-2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// A made-up model whose logits depend on the whole history.
std::vector<float> HistoryLogits(const Ids& history, int64_t vocabulary) {
  uint64_t seed = 17;
  for (const int32_t id : history) seed = seed * 31 + static_cast<uint64_t>(id) + 1;
  Random random(seed);
  std::vector<float> logits;
  for (int64_t i = 0; i < vocabulary; ++i) logits.push_back(static_cast<float>(random.Normal()));
  return logits;
}

struct Scored {
  double score = -1e300;
  Ids tokens;
};

// The best finished sequence of all there are.
void Exhaust(const Ids& history, double sum, int64_t vocabulary, const BeamSearchOptions& options,
             Scored& best) {
  const std::vector<float> logits = HistoryLogits(history, vocabulary);
  double total = 0;
  for (const float x : logits) total += std::exp(static_cast<double>(x));
  for (int32_t token = 0; token < vocabulary; ++token) {
    Ids longer = history;
    longer.push_back(token);
    const double s = sum + logits[static_cast<size_t>(token)] - std::log(total);
    const bool ends = token == options.end_tokens[0] ||
                      static_cast<int64_t>(longer.size()) == options.max_new_tokens;
    if (!ends) {
      Exhaust(longer, s, vocabulary, options, best);
      continue;
    }
    const double score = s / std::pow(static_cast<double>(longer.size()), options.length_penalty);
    if (score > best.score) best = {score, longer};
  }
}

TEST(BeamSearchTest, WithEnoughBeamsFindsTheBestOfAllSequences) {
  constexpr int64_t kVocabulary = 4;
  constexpr int kBeams = 64;  // more than the 40 sequences that end within three tokens
  for (const double penalty : {0.0, 0.5, 1.0, 3.0, -1.0}) {
    for (const int32_t end : {0, 1, 2, 3}) {
      const BeamSearchOptions options{.beams = kBeams,
                                      .max_new_tokens = 3,
                                      .length_penalty = penalty,
                                      .repetition_penalty = 1,
                                      .end_tokens = {&end, 1},
                                      .prompt_ids = {}};
      std::vector<Ids> histories(kBeams);
      const auto found =
          BeamSearch(Tensor::From({1, kVocabulary}, HistoryLogits({}, kVocabulary)), options,
                     [&](absl::Span<const int32_t> tokens, absl::Span<const int32_t> parents) {
                       std::vector<Ids> next;
                       Tensor logits({kBeams, kVocabulary});
                       for (size_t b = 0; b < kBeams; ++b) {
                         next.push_back(histories[static_cast<size_t>(parents[b])]);
                         next.back().push_back(tokens[b]);
                         const std::vector<float> row = HistoryLogits(next.back(), kVocabulary);
                         std::copy(row.begin(), row.end(), logits.row(static_cast<int64_t>(b)));
                       }
                       histories = std::move(next);
                       return logits;
                     });
      ASSERT_TRUE(found.ok()) << found.status();
      Scored best;
      Exhaust({}, 0, kVocabulary, options, best);
      EXPECT_EQ(*found, best.tokens) << "length penalty " << penalty << ", end " << end;
    }
  }
}

TEST(BeamSearchTest, TooManyEndTokensForTheVocabulary) {
  const Ids ends = {0, 1, 2};
  const BeamSearchOptions options{.beams = 2, .end_tokens = ends, .prompt_ids = {}};
  const auto found = BeamSearch(Tensor::From({1, 3}, {0, 0, 0}), options, nullptr);
  EXPECT_THAT(std::string(found.status().message()), HasSubstr("end tokens"));
}

}  // namespace
}  // namespace permafrost
