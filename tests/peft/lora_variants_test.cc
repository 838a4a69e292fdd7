// LoRA's settings beyond PEFT's goldens: starts from the base's weights, LoRA+, what is refused.
#include <unistd.h>

#include <filesystem>

#include "absl/strings/match.h"
#include "engine/optim/optimizer.h"
#include "peft/adapter_config.h"
#include "tests/util/golden_adapter.h"
#include "tests/util/golden_world.h"
#include "tests/util/merged_hooks.h"

namespace permafrost {
namespace {

double Dot(const Tensor& a, int64_t i, const Tensor& b, int64_t j) {
  double sum = 0;
  for (int64_t k = 0; k < a.columns(); ++k) sum += static_cast<double>(a.row(i)[k]) * b.row(j)[k];
  return sum;
}

Tensor Turned(const Tensor& t) {
  Tensor out({t.columns(), t.rows()});
  for (int64_t i = 0; i < t.rows(); ++i) {
    for (int64_t j = 0; j < t.columns(); ++j) out.row(j)[i] = t.row(i)[j];
  }
  return out;
}

// W - scale B A
Tensor Rest(const Tensor& w, const LowRankPair& pair, double scale) {
  Tensor rest = w.Clone();
  for (int64_t n = 0; n < w.rows(); ++n) {
    for (int64_t k = 0; k < w.columns(); ++k) {
      double sum = 0;
      for (int64_t r = 0; r < pair.a.rows(); ++r) {
        sum += static_cast<double>(pair.b.row(n)[r]) * pair.a.row(r)[k];
      }
      rest.row(n)[k] -= static_cast<float>(scale * sum);
    }
  }
  return rest;
}

double LargestSingularValue(const Tensor& w, Random& random) {
  Tensor v = NormalTensor({1, w.columns()}, 1, random);
  double norm = 0;
  for (int round = 0; round < 300; ++round) {
    Tensor next = Tensor::Zeros(v.shape());
    for (int64_t n = 0; n < w.rows(); ++n) {
      const double along = Dot(w, n, v, 0);
      for (int64_t k = 0; k < w.columns(); ++k) {
        next.f32()[k] += static_cast<float>(along * w.row(n)[k]);
      }
    }
    norm = std::sqrt(Dot(next, 0, next, 0));
    for (int64_t k = 0; k < w.columns(); ++k) v.f32()[k] = static_cast<float>(next.f32()[k] / norm);
  }
  return std::sqrt(norm);
}

// s B A is the best approximation of rank r: its factors are orthogonal to what it leaves, which
// has no singular value above its own (Eckart and Young 1936).
TEST(LoraInit, PissaIsTheBestApproximation) {
  Context c;
  constexpr double kScale = 1.7;
  for (const Shape shape : {Shape{42, 30}, Shape{17, 61}, Shape{5, 5}}) {
    for (const int64_t rank : {1, 4}) {
      Random random(3);
      const Tensor w = NormalTensor(shape, 1, random);
      const LowRankPair pair =
          PissaPair(c, Weight::FromF32(c, w, DType::kF32), rank, kScale, random);
      const Tensor b = Turned(pair.b), rest = Rest(w, pair, kScale), turned = Turned(rest);
      double smallest = HUGE_VAL;
      for (int64_t r = 0; r < rank; ++r) {
        // Both halves carry the root of the singular value over s.
        const double value = kScale * Dot(b, r, b, r);
        EXPECT_NEAR(value, kScale * Dot(pair.a, r, pair.a, r), 1e-4 * value);
        smallest = std::min(smallest, value);
        for (int64_t q = 0; q < r; ++q) {
          EXPECT_NEAR(Dot(b, r, b, q), 0, 1e-4 * value);
          EXPECT_NEAR(Dot(pair.a, r, pair.a, q), 0, 1e-4 * value);
        }
        for (int64_t n = 0; n < w.rows(); ++n) EXPECT_NEAR(Dot(rest, n, pair.a, r), 0, 2e-3);
        for (int64_t k = 0; k < w.columns(); ++k) EXPECT_NEAR(Dot(turned, k, b, r), 0, 2e-3);
      }
      EXPECT_LE(LargestSingularValue(rest, random), smallest * (1 + 1e-3));
    }
  }
}

TEST(LoraInit, OloraIsTheQrDecomposition) {
  Context c;
  Random random(4);
  const Tensor w = NormalTensor({23, 14}, 1, random);
  const LowRankPair pair = OloraPair(c, Weight::FromF32(c, w, DType::kF32), 5);
  const Tensor q = Turned(pair.b), rest = Rest(w, pair, 1);
  for (int64_t r = 0; r < 5; ++r) {
    for (int64_t s = 0; s < 5; ++s) EXPECT_NEAR(Dot(q, r, q, s), r == s, 1e-5);
    for (int64_t k = 0; k < r; ++k) EXPECT_NEAR(pair.a.row(r)[k], 0, 1e-5);  // R is triangular
    for (int64_t n = 0; n < 23; ++n) EXPECT_NEAR(rest.row(n)[r], 0, 1e-5);   // Q R is W there
  }
}

class LoraStart : public testing::TestWithParam<std::tuple<std::string, LoraInit>> {};

// At the start it is the base; after training the file is a plain LoRA of twice the rank that
// computes the same, as does the merged base.
TEST_P(LoraStart, IsTheBaseAndAPlainLora) {
  const auto& [name, init] = GetParam();
  GoldenWorld w = OpenGoldenWorld(name);
  Context& c = *w.context;
  for (const bool rslora : {false, true}) {
    LoraConfig config = LoraConfigOf({"all-linear"}, 3);
    config.init = init;
    config.rslora = rslora;
    config.alpha_pattern = {{".*0.*", 5}};
    const Adapter adapter = FreshAdapter(config, 0, c, *w.model);
    Hooks none;
    const Forward base = RunForward(c, *w.model, none, w.lines, Outputs::kAll);
    const Forward start = RunForward(c, *w.model, *adapter.method, w.lines, Outputs::kAll);
    EXPECT_LE(RelativeMaxDifference(start.logits, base.logits), 2 * kLogitBound);

    MoveParameters(*adapter.method, 0.02);
    const Forward moved = RunForward(c, *w.model, *adapter.method, w.lines, Outputs::kAll);
    EXPECT_GT(RelativeMaxDifference(moved.logits, base.logits), 100 * kLogitBound);
    const std::string folder = absl::StrCat(testing::TempDir(), "/lora_start_", getpid());
    ASSERT_TRUE(SaveAdapter(folder, adapter, *w.model).ok());
    const auto loaded = LoadAdapter(folder, 0, c, *w.model);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(std::get<LoraConfig>(loaded->config).rank, 6);
    EXPECT_EQ(std::get<LoraConfig>(loaded->config).init, LoraInit::kDefault);
    const Forward again = RunForward(c, *w.model, *loaded->method, w.lines, Outputs::kAll);
    EXPECT_LE(RelativeMaxDifference(again.logits, moved.logits), 2 * kLogitBound);
    Merged merged(c, *w.model, *adapter.method);
    const Forward whole = RunForward(c, *w.model, merged, w.lines, Outputs::kAll);
    EXPECT_LE(RelativeMaxDifference(whole.logits, moved.logits), 2 * kLogitBound);
    std::filesystem::remove_all(folder);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, LoraStart,
                         testing::Combine(testing::Values("llama-1", "gpt2-1", "t5-v1_1-1"),
                                          testing::Values(LoraInit::kPissa, LoraInit::kOlora)));

TEST(LoraInit, GaussianHasADeviationOfOneOverTheRank) {
  GoldenWorld w = OpenGoldenWorld("llama-1");
  LoraConfig config = LoraConfigOf({"all-linear"}, 8);
  config.init = LoraInit::kGaussian;
  const Adapter adapter = FreshAdapter(config, 0, *w.context, *w.model);
  double sum = 0, count = 0;
  for (const Parameter& p : adapter.method->parameters()) {
    const bool a = absl::EndsWith(p.name(), "lora_A.weight");
    for (const float v : p.value().values()) {
      if (a) {
        sum += static_cast<double>(v) * v;
      } else {
        EXPECT_EQ(v, 0) << p.name();
      }
    }
    if (a) count += static_cast<double>(p.count());
  }
  EXPECT_NEAR(std::sqrt(sum / count), 1.0 / 8, 0.01);
}

// LoRA+: with plain SGD a step moves B `ratio` times as far as without, and A as far.
TEST(LoraPlus, MovesBFurther) {
  std::vector<Tensor> moved[2];
  for (const double ratio : {1.0, 16.0}) {
    GoldenWorld w = OpenGoldenWorld("llama-1");
    const Adapter adapter = FreshAdapter(LoraConfigOf({"all-linear"}, 3), 0, *w.context, *w.model);
    MoveParameters(*adapter.method, 0.1);
    SetLoraPlusRatio(*adapter.method, ratio);
    ParameterList& parameters = adapter.method->parameters();
    std::vector<Tensor> before;
    for (const Parameter& p : parameters) before.push_back(p.value().Clone());
    Optimizer optimizer(
        {.kind = OptimizerKind::kSgd, .learning_rate = 0.01, .beta1 = 0, .weight_decay = 0},
        parameters);
    AddGradient(*w.context, *w.model, *adapter.method, w.lines);
    optimizer.Step(*w.context, 1);
    for (size_t i = 0; i < parameters.size(); ++i) {
      for (int64_t j = 0; j < before[i].count(); ++j) {
        before[i].f32()[j] = parameters[i].value().f32()[j] - before[i].f32()[j];
      }
    }
    for (size_t i = 0; ratio == 16 && i < before.size(); ++i) {
      const double expected = absl::EndsWith(parameters[i].name(), "lora_B.weight") ? 16 : 1;
      double norm = 0, plain = 0;
      for (const float v : before[i].values()) norm += static_cast<double>(v) * v;
      for (const float v : moved[0][i].values()) plain += static_cast<double>(v) * v;
      EXPECT_NEAR(std::sqrt(norm / plain), expected, 1e-2 * expected) << parameters[i].name();
    }
    moved[ratio == 16] = std::move(before);
  }
}

class LoraRefusals : public testing::Test {
 protected:
  void Expect(const LoraConfig& config, const std::vector<std::string>& parts) {
    Random random(1);
    const auto adapter = CreateAdapter(config, 0, *w_.context, *w_.model, random);
    ASSERT_FALSE(adapter.ok());
    for (const std::string& part : parts) {
      EXPECT_NE(adapter.status().message().find(part), absl::string_view::npos)
          << part << ": " << adapter.status();
    }
  }
  void ExpectParse(const std::string& fields, const std::vector<std::string>& parts) {
    const auto config = ParseAdapterConfig("{" + fields + "}", "config", *w_.model);
    ASSERT_FALSE(config.ok()) << fields;
    for (const std::string& part : parts) {
      EXPECT_NE(config.status().message().find(part), absl::string_view::npos)
          << part << ": " << config.status();
    }
  }
  void Open(const std::string& name) { w_ = OpenGoldenWorld(name); }
  static LoraConfig With(std::vector<std::string> modules) {
    LoraConfig config = LoraConfigOf({"all-linear"}, 2);
    config.modules_to_save = std::move(modules);
    return config;
  }

  GoldenWorld w_ = OpenGoldenWorld("llama-1");
};

TEST_F(LoraRefusals, ModulesToSave) {
  Expect(With({"classifier"}), {"modules_to_save classifier", "lm_head", "embed_tokens", "norm"});
  Expect(With({""}), {"modules_to_save", "matches no module"});
  Expect(With({"q_proj"}), {"q_proj", "both"});
  LoraConfig both = LoraConfigOf({"q_proj", "embed_tokens"}, 2);
  both.modules_to_save = {"embed_tokens"};
  Expect(both, {"embed_tokens", "both"});
  Open("gpt2-1");
  Expect(With({"c_fc"}), {"c_fc", "transposed"});
  Open("t5-v1_0-1");
  Expect(With({"shared"}), {"shared", "embedding of its own"});
  Expect(LoraConfigOf({"q", "shared"}, 2), {"target shared", "embed_tokens"});
}

TEST_F(LoraRefusals, Combinations) {
  LoraConfig dora = LoraConfigOf({"q_proj"}, 2);
  dora.dora = true;
  dora.lora_bias = true;
  Expect(dora, {"lora_bias", "DoRA"});
  dora.lora_bias = false;
  dora.init = LoraInit::kPissa;
  Expect(dora, {"start", "DoRA"});
  dora = LoraConfigOf({"embed_tokens"}, 2);
  dora.dora = true;
  Expect(dora, {"embedding", "DoRA"});
  LoraConfig pissa = LoraConfigOf({"q_proj"}, 1000);
  pissa.init = LoraInit::kPissa;
  Expect(pissa, {"rank", "at most 30", "1000"});
}

// Each field of PEFT 0.21's LoraConfig that would change what is computed.
TEST_F(LoraRefusals, FieldsThatAreNotImplemented) {
  const std::string start = R"("peft_type": "LORA", "target_modules": ["q_proj"], )";
  for (const std::string field :
       {"layer_replication", "megatron_config", "alora_invocation_tokens", "use_qalora",
        "use_bdlora", "target_parameters", "trainable_token_indices", "velora_config",
        "monteclora_config", "arrow_config", "kasa_config", "ensure_weight_tying"}) {
    for (const std::string value : {"true", "[1]", R"({"a": 1})"}) {
      ExpectParse(absl::StrCat(start, "\"", field, "\": ", value), {field, "not implemented"});
    }
  }
  for (const std::string init : {"pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga"}) {
    ExpectParse(absl::StrCat(start, R"("init_lora_weights": ")", init, "\""),
                {"init_lora_weights", init, "changes the base"});
  }
  ExpectParse(start + R"("bias": "some")", {"bias", "lora_only", "some"});
}

TEST_F(LoraRefusals, AdaLoraFields) {
  const std::string start =
      R"("peft_type": "ADALORA", "target_modules": ["q_proj"], "init_r": 3, )";
  ExpectParse(start + R"("use_rslora": true)", {"use_rslora"});
  ExpectParse(start + R"("alpha_pattern": {"q_proj": 3})", {"alpha_pattern"});
  ExpectParse(start + R"("bias": "all")", {"bias", "none"});
  ExpectParse(start + R"("lora_alpha": 0)", {"lora_alpha", "more than 0"});
  ExpectParse(R"("peft_type": "ADALORA", "init_r": 99999999)", {"init_r"});
  for (const std::string pattern :
       {R"([true])", R"({"M.lora_E": [true, false]})", R"({"M.lora_E": [true, false, 1]})",
        R"({"M": [true, false, true]})", R"({"M.lora_E": 2})"}) {
    ExpectParse(absl::StrCat(start, R"("rank_pattern": )", pattern),
                {"rank_pattern", "init_r = 3"});
  }
  const auto config = ParseAdapterConfig(
      absl::StrCat("{", start, R"("rank_pattern": {"elsewhere.lora_E": [true, true, true]}})"),
      "config", *w_.model);
  ASSERT_TRUE(config.ok()) << config.status();
  Random random(1);
  const auto adapter = CreateAdapter(*config, 0, *w_.context, *w_.model, random);
  ASSERT_FALSE(adapter.ok());
  EXPECT_NE(adapter.status().message().find("elsewhere"), absl::string_view::npos);
}

}  // namespace
}  // namespace permafrost
