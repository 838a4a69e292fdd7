// The worked example of docs/add_a_method.md: a method made of hooks alone. The document holds what
// stands between the markers, word for word.
#include <filesystem>

#include "engine/optim/optimizer.h"
#include "peft/trainer.h"
#include "tests/util/golden_forward.h"
#include "tests/util/golden_world.h"
#include "tests/util/merged_hooks.h"

namespace permafrost {
namespace {

// [method]
// y = s_a (W_o x + b_o): how loud each attention a is, one trained number s_a for each, 1 at first.
class OutputScale : public Method {
 public:
  OutputScale(int task, const Model& model)
      : Method(task), parameter_(model.linears().size(), kNone) {
    for (const LinearPlace& place : model.linears()) {
      if (place.site.projection != Projection::kOutput) continue;
      parameter_[static_cast<size_t>(place.index)] = parameters_.size();
      parameters_.Add(place.module + ".output_scale", Tensor::From({1, 1}, {1}));
    }
  }

  Var OnLinear(Context& c, const LinearPlace& place, const Var&, Var y,
               const PlaceRows& rows) override {
    const size_t parameter = parameter_[static_cast<size_t>(place.index)];
    const std::vector<TaskSpan> own = Own(rows.spans);
    if (parameter == kNone || own.empty()) return y;
    Var mine = TakeRows(c, y, own);
    const Tensor ones({mine.rows(), 1});
    std::fill_n(ones.f32(), ones.count(), 1.0f);
    const Var factors = MatMulTransposed(c, Var(ones), parameters_[parameter].var());  // [R, 1]
    mine = ScaleRows(c, std::move(mine), factors);
    return PutRows(c, std::move(y), mine, own);
  }

  std::vector<int64_t> FileShape(const Parameter&) const override { return {1}; }

  bool mergeable() const override { return true; }
  void MergeInto(const Model& model, std::vector<Tensor>& values) const override {
    for (const LinearPlace& place : model.linears()) {
      const size_t parameter = parameter_[static_cast<size_t>(place.index)];
      if (parameter == kNone) continue;
      for (const TensorId id : {place.weight, place.bias}) {
        if (id == kNoTensor) continue;
        const Tensor& t = values[static_cast<size_t>(id)];
        for (int64_t i = 0; i < t.count(); ++i)
          t.f32()[i] *= parameters_[parameter].value().f32()[0];
      }
    }
  }

 private:
  static constexpr size_t kNone = ~size_t{0};
  std::vector<size_t> parameter_;  // by linear index
};
// [method]

// [training]
// The loss of each step.
std::vector<double> TrainSteps(Context& c, const Model& model, Method& method, int64_t steps,
                               const std::vector<TokenLine>& lines) {
  Optimizer optimizer({.learning_rate = 0.01}, method.parameters());
  std::vector<double> losses;
  for (int64_t step = 0; step < steps; ++step) {
    method.SetRandom(/*seed=*/1, static_cast<uint32_t>(step));
    losses.push_back(AccumulateGradients(c, model, method, {{lines}}, /*z_loss=*/0).loss);
    optimizer.Step(c, /*multiplier=*/1);
  }
  return losses;
}

absl::Status SaveParameters(const std::string& path, const Method& method) {
  const std::vector<FileTensor> tensors = method.FileTensors();
  std::vector<TensorView> views;
  for (const FileTensor& t : tensors) views.push_back(F32View(t.name, t.shape, t.value.values()));
  return WriteSafetensors(path, views);
}
// [training]

// The lines between two lines that say `marker`.
std::string Between(const std::string& text, const std::string& marker) {
  const size_t begin = text.find(marker);
  if (begin == std::string::npos) return "";
  const size_t first = begin + marker.size(), end = text.find(marker, first);
  return end == std::string::npos ? "" : text.substr(first, end - first);
}

TEST(AddedMethod, TheDocumentHoldsThisCode) {
  const std::string root = PERMAFROST_SOURCE_DIR;
  const auto code = ReadFile(root + "/tests/peft/added_method_test.cc");
  const auto document = ReadFile(root + "/docs/add_a_method.md");
  ASSERT_TRUE(code.ok() && document.ok());
  for (const std::string part : {"method", "training"}) {
    const std::string own = Between(*code, "// [" + part + "]\n");
    EXPECT_GT(own.size(), 400u) << part;
    EXPECT_NE(document->find("```cpp\n" + own + "```\n"), std::string::npos)
        << "docs/add_a_method.md: the code of '" << part << "' differs from this file's";
  }
}

class AddedMethodTest : public testing::TestWithParam<std::string> {
 protected:
  AddedMethodTest() : w_(OpenGoldenWorld(GetParam())), method_(0, *w_.model) {}

  Forward Run(Hooks& hooks, absl::Span<const TokenLine> lines) {
    return RunForward(*w_.context, *w_.model, hooks, lines, Outputs::kAll);
  }

  GoldenWorld w_;
  OutputScale method_;
};

TEST_P(AddedMethodTest, HasANumberForEachAttentionAndStartsAsTheBase) {
  const ModelInfo& info = w_.model->info();
  EXPECT_EQ(method_.parameters().count(),
            info.encoder_decoder ? info.layers + 2 * info.decoder_layers : info.layers);
  Hooks none;
  EXPECT_EQ(Run(method_, w_.lines).logits, Run(none, w_.lines).logits);
}

TEST_P(AddedMethodTest, MergedIsUnmerged) {
  MoveParameters(method_, 0.3);
  Merged merged(*w_.context, *w_.model, method_);
  EXPECT_LE(RelativeMaxDifference(Run(method_, w_.lines).logits, Run(merged, w_.lines).logits),
            2 * kLogitBound);
}

TEST_P(AddedMethodTest, GradientsAreDifferencesOfTheLoss) {
  MoveParameters(method_, 0.3);
  const auto loss = [&] {
    method_.parameters().ZeroGradients();
    return AccumulateGradients(*w_.context, *w_.model, method_, {{w_.lines}}, 0).loss;
  };
  loss();
  std::vector<float> gradients;
  for (const Parameter& p : method_.parameters()) gradients.push_back(p.gradient().f32()[0]);
  for (size_t i = 0; i < gradients.size(); ++i) {
    constexpr float kStep = 0.01f;
    float& s = method_.parameters()[i].value().f32()[0];
    const float before = s;
    s = before + kStep;
    const double above = loss();
    s = before - kStep;
    const double below = loss();
    s = before;
    EXPECT_NEAR(gradients[i], (above - below) / (2 * static_cast<double>(kStep)),
                2e-2 * std::abs(static_cast<double>(gradients[i])) + 2e-4)
        << method_.parameters()[i].name();
  }
}

TEST_P(AddedMethodTest, TrainsSavesAndLoads) {
  const std::vector<double> losses = TrainSteps(*w_.context, *w_.model, method_, 3, w_.lines);
  EXPECT_LT(losses[1], losses[0]);
  EXPECT_LT(losses[2], losses[1]);
  const std::string path = testing::TempDir() + "/added_" + GetParam() + ".safetensors";
  ASSERT_TRUE(SaveParameters(path, method_).ok());
  OutputScale loaded(0, *w_.model);
  ASSERT_TRUE(ReadParameters(path, loaded).ok());
  EXPECT_EQ(Run(loaded, w_.lines).logits, Run(method_, w_.lines).logits);
  OutputScale fresh(0, *w_.model);
  EXPECT_NE(Run(fresh, w_.lines).logits, Run(method_, w_.lines).logits);
  std::filesystem::remove(path);
}

TEST_P(AddedMethodTest, SharesABatchWithALoraAndTheBase) {
  auto scale = std::make_shared<OutputScale>(1, *w_.model);
  const Adapter lora = FreshAdapter(LoraConfigOf({"all-linear"}, 2), 0, *w_.context, *w_.model);
  MoveParameters(*scale, 0.3);
  MoveParameters(*lora.method, 0.1);
  AdapterSet set;
  set.Add("lora", lora.method);
  set.Add("scale", scale);
  for (size_t i = 0; i < w_.lines.size(); ++i) {
    w_.lines[i].task = std::vector<int>{0, 1, kNoTask}[i % 3];
  }
  const Forward together = Run(set, w_.lines);
  for (size_t i = 0; i < w_.lines.size(); ++i) {
    Hooks none;
    Hooks& own = i % 3 == 0 ? *lora.method : i % 3 == 1 ? static_cast<Hooks&>(*scale) : none;
    const double alone = Run(own, {&w_.lines[i], 1}).losses[0];
    EXPECT_NEAR(together.losses[i], alone, kLossBound * std::abs(alone) + 1e-7) << "line " << i;
  }
  Hooks none;
  EXPECT_NE(Run(none, {&w_.lines[1], 1}).logits, Run(set, {&w_.lines[1], 1}).logits);
}

INSTANTIATE_TEST_SUITE_P(Models, AddedMethodTest, testing::Values("t5-v1_1-1", "llama-1", "gpt2-1"),
                         TestName);

}  // namespace
}  // namespace permafrost
