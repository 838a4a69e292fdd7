// Properties that every method has on every golden base: doing nothing is the base bit for bit, an
// adapter touches the lines of its own task only, merging is the adapter, files keep every bit.
#include <unistd.h>

#include <cstring>

#include "tests/util/golden_forward.h"
#include "tests/util/golden_world.h"
#include "tests/util/merged_hooks.h"

namespace permafrost {
namespace {

// Hooks whose every place is overridden and returns what it got.
class PassThrough : public Hooks {
 public:
  Var OnEmbedding(Context&, Stack, const Batch&, Var x) override {
    ++calls;
    return x;
  }
  Var OnLinear(Context&, const LinearPlace&, const Var&, Var y, const PlaceRows&) override {
    ++calls;
    return y;
  }
  Var OnLinearInput(Context&, const LinearPlace&, Var x, const PlaceRows&) override {
    ++calls;
    return x;
  }
  Var OnSublayerOutput(Context&, const SiteId&, const Var&, Var y, const PlaceRows&) override {
    ++calls;
    return y;
  }
  int calls = 0;
};

class HooksTest : public testing::TestWithParam<std::string> {
 protected:
  void ExpectSame(const Forward& a, const Forward& b, const std::string& what) {
    EXPECT_EQ(a.losses, b.losses) << what;
    ASSERT_EQ(a.logits.size(), b.logits.size()) << what;
    EXPECT_EQ(std::memcmp(a.logits.data(), b.logits.data(), a.logits.size() * sizeof(float)), 0)
        << what;
  }
};

TEST_P(HooksTest, DoingNothingIsTheBase) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    GoldenWorld w = OpenGoldenWorld(GetParam(), precision);
    Context& c = *w.context;
    Hooks none;
    const Forward base = RunForward(c, *w.model, none, w.lines, Outputs::kAll);
    PassThrough pass;
    ExpectSame(RunForward(c, *w.model, pass, w.lines, Outputs::kAll), base, "pass-through");
    EXPECT_GT(pass.calls, 0);
    AdapterSet empty;
    ExpectSame(RunForward(c, *w.model, empty, w.lines, Outputs::kAll), base, "empty set");
    // A LoRA's B is zero, an IA3's vectors are one.
    for (const std::string method : {"lora", "dora", "ia3"}) {
      const Adapter fresh =
          FreshAdapter(ConfigNamed(method, w.model->info().model_type), 0, c, *w.model);
      ExpectSame(RunForward(c, *w.model, *fresh.method, w.lines, Outputs::kAll), base, method);
    }
  }
}

// Lines of no task in a batch with every method that can share one on the others: their losses have
// the bits they have alone on the bare base.
TEST_P(HooksTest, LinesWithoutAdapterAreTheBase) {
  const std::vector<std::string> methods = {"prompt", "lora", "ia3", "dora"};
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    GoldenWorld w = OpenGoldenWorld(GetParam(), precision);
    Context& c = *w.context;
    AdapterSet set;
    for (size_t task = 0; task < methods.size(); ++task) {
      const AdapterConfig config = ConfigNamed(methods[task], w.model->info().model_type);
      const Adapter a = FreshAdapter(config, static_cast<int>(task), c, *w.model);
      MoveParameters(*a.method, 0.1);
      set.Add(methods[task], a.method);
    }
    std::vector<TokenLine> mixed, bare;
    for (size_t i = 0; i < w.lines.size(); ++i) {
      for (const int task : {kNoTask, 0, 1, 2, 3}) {  // every line under each adapter
        mixed.push_back(w.lines[i]);
        mixed.back().task = task;
      }
      bare.push_back(w.lines[i]);
      bare.back().task = kNoTask;
    }
    Hooks none;
    const Forward expected = RunForward(c, *w.model, none, bare, Outputs::kAll);
    const Forward together = RunForward(c, *w.model, set, mixed, Outputs::kAll);
    for (size_t i = 0; i < bare.size(); ++i) {
      EXPECT_EQ(together.losses[5 * i], expected.losses[i]) << "line " << i;
      if (expected.losses[i] == 0) continue;  // nothing labelled
      for (size_t task = 0; task < methods.size(); ++task) {
        EXPECT_NE(together.losses[5 * i + 1 + task], expected.losses[i])
            << "line " << i << ", " << methods[task];
      }
    }
  }
}

TEST_P(HooksTest, FilesKeepEveryBit) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/hooks_test_", getpid());
  GoldenWorld w = OpenGoldenWorld(GetParam());
  for (const std::string& method : MethodNames()) {
    const Adapter saved =
        FreshAdapter(ConfigNamed(method, w.model->info().model_type), 0, *w.context, *w.model);
    MoveParameters(*saved.method, 0.1);
    ASSERT_TRUE(SaveAdapter(folder, saved, *w.model).ok());
    const auto loaded = LoadAdapter(folder, 0, *w.context, *w.model);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    // What P-tuning saves is a prompt.
    const bool same_method = loaded->config.index() == saved.config.index();
    EXPECT_EQ(same_method, method.rfind("ptuning", 0) != 0) << method;
    const std::vector<FileTensor> a = saved.method->FileTensors(),
                                  b = loaded->method->FileTensors();
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].name, b[i].name);
      ASSERT_EQ(a[i].shape, b[i].shape) << a[i].name;
      EXPECT_EQ(std::memcmp(a[i].value.raw(), b[i].value.raw(), a[i].value.bytes()), 0)
          << a[i].name;
    }
    ExpectSame(RunForward(*w.context, *w.model, *loaded->method, w.lines, Outputs::kAll),
               RunForward(*w.context, *w.model, *saved.method, w.lines, Outputs::kAll), "forward");
    std::filesystem::remove_all(folder);
  }
}

// One linear, element by element. Both forms add the same products, W x + s B (A x) or
// (W + s B A) x, in different orders: an output of `in` inputs and rank r differs by at most
// (in + r + 4) roundings of the sum of absolute products on either side.
TEST_P(HooksTest, AMergedLinearIsTheLoraWithinItsRoundings) {
  GoldenWorld w = OpenGoldenWorld(GetParam());
  Context& c = *w.context;
  const Adapter adapter = FreshAdapter(LoraConfigOf({"all-linear"}, 3), 0, c, *w.model);
  MoveParameters(*adapter.method, 0.1);
  Lora& lora = static_cast<Lora&>(*adapter.method);
  Random random(3);
  constexpr int64_t kRows = 5;
  const std::vector<TaskSpan> spans = {{0, kRows, 0}};
  const StackRows stack;
  const PlaceRows rows{stack, spans, false, nullptr};
  const Merged all(c, *w.model, lora);
  for (const LinearPlace& place : w.model->linears()) {
    const Weight& base = *w.model->tensors()[static_cast<size_t>(place.weight)].weight;
    const Tensor x = NormalTensor({kRows, place.inputs}, 1, random);
    const Var unmerged = lora.OnLinear(c, place, x, Linear(c, x, base), rows);
    const Tensor& merged = all.value(place.weight);
    const Tensor plain = base.ToF32(c);
    const Parameter *a = nullptr, *b = nullptr;
    for (const Parameter& p : lora.parameters()) {
      if (p.name() == absl::StrCat("base_model.model.", place.module, ".lora_A.weight")) a = &p;
      if (p.name() == absl::StrCat("base_model.model.", place.module, ".lora_B.weight")) b = &p;
    }
    ASSERT_TRUE(a != nullptr && b != nullptr) << place.module;
    const double scale = 2;  // alpha = 2 r
    double largest = 0;      // the LoRA's term over the bound
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t n = 0; n < place.outputs; ++n) {
        double exact = 0, size = 0, delta = 0;
        for (int64_t k = 0; k < place.inputs; ++k) {
          double absolute = std::abs(static_cast<double>(plain.row(n)[k])), product = 0;
          for (int64_t r = 0; r < a->value().rows(); ++r) {
            const double ba = scale * b->value().row(n)[r] * a->value().row(r)[k];
            absolute += std::abs(ba);
            product += ba;
          }
          exact += static_cast<double>(merged.row(n)[k]) * x.row(i)[k];
          delta += product * x.row(i)[k];
          size += absolute * std::abs(static_cast<double>(x.row(i)[k]));
        }
        const double bound =
            static_cast<double>(place.inputs + a->value().rows() + 4) * std::exp2(-24) * size;
        ASSERT_NEAR(unmerged.value().row(i)[n], exact, bound) << place.module;
        largest = std::max(largest, std::abs(delta) / bound);
      }
    }
    EXPECT_GT(largest, 1000) << "the check has no power";
  }
}

// The whole model: each form may be kLogitBound from the exact function, as the golden files ask.
TEST_P(HooksTest, AMergedModelIsTheAdaptedOne) {
  GoldenWorld w = OpenGoldenWorld(GetParam());
  Context& c = *w.context;
  Hooks none;
  const Forward base = RunForward(c, *w.model, none, w.lines, Outputs::kAll);
  for (const std::string method : {"lora", "dora", "ia3"}) {
    const Adapter adapter =
        FreshAdapter(ConfigNamed(method, w.model->info().model_type), 0, c, *w.model);
    MoveParameters(*adapter.method, 0.02);
    Merged merged(c, *w.model, *adapter.method);
    const Forward unmerged = RunForward(c, *w.model, *adapter.method, w.lines, Outputs::kAll);
    const Forward other = RunForward(c, *w.model, merged, w.lines, Outputs::kAll);
    EXPECT_LE(RelativeMaxDifference(other.logits, unmerged.logits), 2 * kLogitBound) << method;
    EXPECT_GT(RelativeMaxDifference(base.logits, unmerged.logits), 100 * kLogitBound) << method;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, HooksTest, testing::ValuesIn(GoldenModelNames()), TestName);

}  // namespace
}  // namespace permafrost
