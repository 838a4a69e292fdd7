// AdapterHub folders against what the library computes with them, and the way back.
#include "peft/adapterhub.h"

#include "engine/random_tensor.h"
#include "peft/trainer.h"
#include "tests/util/golden_forward.h"
#include "tests/util/hub_golden.h"

namespace permafrost {
namespace {

constexpr int kTask = 0;

// Adapters of one base for which `wanted` holds.
class AdapterHubGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  AdapterHubGoldenTest() : hub_(OpenHubGolden(GetParam())) {
    for (TokenLine& line : hub_.golden.lines) line.task = kTask;
    auto model = OpenModel(c_, hub_.base);
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
  }
  std::string Folder(const std::string& adapter) const { return hub_.golden.adapter(adapter); }
  Adapter Load(const std::string& folder) {
    auto adapter = LoadAdapter(folder, kTask, c_, *model_);
    EXPECT_TRUE(adapter.ok()) << adapter.status();
    return adapter.ok() ? *std::move(adapter) : Adapter{};
  }
  void ExpectForward(const std::string& adapter, Hooks& hooks) {
    for (size_t i = 0; i < hub_.golden.lines.size(); ++i) {
      const Forward f = RunForward(c_, *model_, hooks, {&hub_.golden.lines[i], 1}, Outputs::kAll);
      const std::vector<float> logits = hub_.golden.Expected(absl::StrCat(adapter, ".logits.", i));
      EXPECT_LE(RelativeMaxDifference(f.logits, logits), kLogitBound) << adapter << " line " << i;
      const double loss = hub_.golden.Expected(absl::StrCat(adapter, ".loss.", i))[0];
      EXPECT_NEAR(f.losses[0], loss, kLossBound * std::abs(loss)) << adapter << " line " << i;
    }
  }

  Context c_;
  HubGolden hub_;
  std::unique_ptr<Model> model_;
};

TEST_P(AdapterHubGoldenTest, ForwardAgrees) {
  for (const std::string& adapter : hub_.names) {
    const Adapter loaded = Load(Folder(adapter));
    ASSERT_NE(loaded.method, nullptr) << adapter;
    ExpectForward(adapter, *loaded.method);
  }
}

// By the names of AdapterHub's file; the golden files carry up to 5e-5 of their own.
TEST_P(AdapterHubGoldenTest, GradientsAgree) {
  const std::string path = testing::TempDir() + "hub_gradients.safetensors";
  for (const std::string& adapter : hub_.names) {
    const Adapter loaded = Load(Folder(adapter));
    ASSERT_NE(loaded.method, nullptr) << adapter;
    AccumulateGradients(c_, *model_, *loaded.method,
                        std::vector<std::vector<TokenLine>>{hub_.golden.lines}, 0);
    ASSERT_TRUE(WriteGradients(path, *loaded.method).ok());
    const auto written = SafetensorsFile::Open(path);
    ASSERT_TRUE(written.ok()) << written.status();
    for (const TensorView& t : written->tensors()) {
      std::vector<float> actual(static_cast<size_t>(t.num_elements()));
      ASSERT_TRUE(ReadAsF32(t, 0, absl::MakeSpan(actual)).ok());
      const std::vector<float> expected =
          hub_.golden.Expected(absl::StrCat(adapter, ".grad.", t.name));
      EXPECT_LE(RelativeNormDifference(actual, expected), 1e-4) << adapter << " " << t.name;
    }
  }
}

// Written again, the tensors are the same bytes under the same names, and the config says the same.
TEST_P(AdapterHubGoldenTest, RoundTrip) {
  const std::string folder = testing::TempDir() + "hub_round_trip";
  for (const std::string& adapter : hub_.names) {
    const Adapter loaded = Load(Folder(adapter));
    ASSERT_NE(loaded.method, nullptr) << adapter;
    const absl::Status saved = SaveAdapterHub(folder, adapter, loaded, *model_);
    ASSERT_TRUE(saved.ok()) << adapter << ": " << saved;
    const auto before = SafetensorsFile::Open(Folder(adapter) + "/adapter.safetensors");
    const auto after = SafetensorsFile::Open(folder + "/adapter.safetensors");
    ASSERT_TRUE(before.ok() && after.ok());
    ASSERT_EQ(after->tensors().size(), before->tensors().size()) << adapter;
    for (size_t i = 0; i < before->tensors().size(); ++i) {
      EXPECT_EQ(after->tensors()[i].name, before->tensors()[i].name);
      EXPECT_EQ(after->tensors()[i].shape, before->tensors()[i].shape) << before->tensors()[i].name;
      EXPECT_TRUE(after->tensors()[i].bytes == before->tensors()[i].bytes)
          << adapter << " " << before->tensors()[i].name;
    }
    const Adapter again = Load(folder);
    ASSERT_NE(again.method, nullptr);
    ExpectForward(adapter, *again.method);
  }
}

INSTANTIATE_TEST_SUITE_P(Bases, AdapterHubGoldenTest, testing::ValuesIn(HubGoldenNames()),
                         TestName);

}  // namespace
}  // namespace permafrost
