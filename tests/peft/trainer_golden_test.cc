// Ten steps of the trainer against torch's and transformers' optimizers (tests/golden/trainer),
// with accumulation, warm-up and schedules; and initial prompts against PEFT and numpy.
#include <unistd.h>

#include "peft/trainer.h"
#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

const std::string kFolder = PERMAFROST_GOLDEN "/trainer/";

std::vector<float> ReadTensor(const SafetensorsFile& file, const std::string& name) {
  const TensorView* view = file.Find(name);
  EXPECT_NE(view, nullptr) << name;
  if (view == nullptr) return {};
  std::vector<float> values(static_cast<size_t>(view->num_elements()));
  EXPECT_TRUE(ReadAsF32(*view, 0, absl::MakeSpan(values)).ok()) << name;
  return values;
}

OptimizerKind KindOf(const std::string& optimizer) {
  if (optimizer == "sgd") return OptimizerKind::kSgd;
  return optimizer == "adamw" ? OptimizerKind::kAdamW : OptimizerKind::kAdafactor;
}

ScheduleKind ScheduleOf(const std::string& schedule) {
  if (schedule == "linear") return ScheduleKind::kLinear;
  if (schedule == "cosine") return ScheduleKind::kCosine;
  return schedule == "constant" ? ScheduleKind::kConstant : ScheduleKind::kInverseSqrt;
}

TrainOptions OptionsOf(const nlohmann::json& z) {
  TrainOptions o;
  o.out = absl::StrCat(testing::TempDir(), "/trainer_golden_", getpid());
  o.steps = 10;
  o.batch_size = z["batch_size"];
  o.accumulate = z["accumulate"];
  const std::string optimizer = z["optimizer"];
  o.optimizer.kind = KindOf(optimizer);
  o.optimizer.learning_rate = z["lr"];
  if (z.contains("momentum")) o.optimizer.beta1 = z["momentum"];
  o.optimizer.weight_decay = z["weight_decay"];
  o.optimizer.clip = z["clip"];
  o.optimizer.factored = o.optimizer.scale_parameter = optimizer == "adafactor-factored";
  o.schedule = {.kind = ScheduleOf(z["schedule"]), .warmup = z["warmup"]};
  o.shuffle = false;
  o.z_loss = z["z_loss"];
  return o;
}

class TrainerGoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(TrainerGoldenTest, TenStepsAreTheReferences) {
  const auto text = ReadFile(kFolder + GetParam() + ".json");
  ASSERT_TRUE(text.ok()) << text.status();
  const nlohmann::json golden = nlohmann::json::parse(*text);
  const nlohmann::json& settings = golden["settings"];
  GoldenWorld w = OpenGoldenWorld(settings["model"]);
  const std::string adapters =
      absl::StrCat(PERMAFROST_GOLDEN, "/models/", std::string(settings["model"]), "/adapters/");
  auto adapter = LoadAdapter(adapters + std::string(settings["kind"]), 0, *w.context, *w.model);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  std::vector<Tensor> before;
  for (const Parameter& p : adapter->method->parameters()) before.push_back(p.value().Clone());

  // How far torch's own f32 run ends from its f64 run, relative to the change: a run with other
  // orders of summation is another sample of such roundings.
  const double rounding = 8 * golden["f32_against_f64"].get<double>();
  const TrainOptions options = OptionsOf(settings);
  std::vector<StepReport> reports;
  TrainEvents events;
  events.on_step = [&](const StepReport& r) { reports.push_back(r); };
  const auto result = Train(*w.context, *w.model, *adapter, w.lines, nullptr, options, events);
  ASSERT_TRUE(result.ok()) << result.status();
  std::filesystem::remove_all(options.out);

  ASSERT_EQ(reports.size(), golden["steps"].size());
  for (size_t i = 0; i < reports.size(); ++i) {
    const nlohmann::json& expected = golden["steps"][i];
    const double rate = expected["lr"], norm = expected["grad_norm"],
                 loss = expected["loss_with_z"];
    EXPECT_NEAR(reports[i].learning_rate, rate, 1e-12 * options.optimizer.learning_rate) << i;
    EXPECT_NEAR(reports[i].gradient_norm, norm, (1e-4 + rounding) * norm) << i;
    if (options.z_loss == 0) {
      EXPECT_NEAR(reports[i].loss, loss, (1e-5 + rounding) * loss) << i;
    }
  }
  const auto file = SafetensorsFile::Open(kFolder + GetParam() + ".safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  for (size_t i = 0; i < before.size(); ++i) {
    const Parameter& p = adapter->method->parameters()[i];
    const std::vector<float> expected = ReadTensor(*file, p.name());
    ASSERT_EQ(expected.size(), p.value().values().size()) << p.name();
    double difference = 0, change = 0;
    for (size_t j = 0; j < expected.size(); ++j) {
      difference += std::pow(static_cast<double>(p.value().f32()[j]) - expected[j], 2);
      change += std::pow(static_cast<double>(expected[j]) - before[i].f32()[j], 2);
    }
    EXPECT_GT(change, 0) << p.name();
    EXPECT_LE(std::sqrt(difference), rounding * std::sqrt(change)) << p.name();
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, TrainerGoldenTest,
                         testing::Values("adafactor-prompt", "adafactor-factored", "sgd-lora",
                                         "sgd-prompt", "adamw-prompt"),
                         TestName);

// PEFT's prompt encoders, trained from the same values.
class PTuningGolden : public testing::TestWithParam<std::string> {};

TEST_P(PTuningGolden, TenStepsAreThoseOfPeft) {
  const nlohmann::json golden = nlohmann::json::parse(*ReadFile(kFolder + GetParam() + ".json"));
  const nlohmann::json& settings = golden["settings"];
  const auto file = SafetensorsFile::Open(kFolder + GetParam() + ".safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  GoldenWorld w = OpenGoldenWorld(settings["model"]);
  const PTuningConfig config{
      .virtual_tokens = settings["virtual_tokens"],
      .encoder_width = settings["encoder_width"],
      .encoder = settings["encoder"] == "lstm" ? PromptEncoder::kLstm : PromptEncoder::kMlp,
      .encoder_layers = settings["encoder_layers"]};
  Adapter adapter = FreshAdapter(config, 0, *w.context, *w.model);
  size_t initial = 0;
  for (const TensorView& t : file->tensors()) initial += t.name.rfind("initial.", 0) == 0;
  EXPECT_EQ(adapter.method->parameters().size(), initial);
  for (Parameter& p : adapter.method->parameters()) {
    const std::vector<float> values = ReadTensor(*file, "initial." + p.name());
    ASSERT_EQ(static_cast<int64_t>(values.size()), p.count()) << p.name();
    std::copy(values.begin(), values.end(), p.value().f32());
  }
  const auto table = [&] { return adapter.method->FileTensors()[0].value; };
  const std::vector<float> before = ReadTensor(*file, "table.before"),
                           after = ReadTensor(*file, "table.after");
  EXPECT_LE(RelativeNormDifference(table().values(), before), 1e-6);

  const TrainOptions options = OptionsOf(settings);
  std::vector<StepReport> reports;
  TrainEvents events;
  events.on_step = [&](const StepReport& r) { reports.push_back(r); };
  const auto result = Train(*w.context, *w.model, adapter, w.lines, nullptr, options, events);
  ASSERT_TRUE(result.ok()) << result.status();
  std::filesystem::remove_all(options.out);
  const double rounding = 8 * golden["f32_against_f64"].get<double>();
  for (size_t i = 0; i < reports.size(); ++i) {
    const double norm = golden["steps"][i]["grad_norm"], loss = golden["steps"][i]["loss_with_z"];
    EXPECT_NEAR(reports[i].gradient_norm, norm, (1e-4 + rounding) * norm) << i;
    EXPECT_NEAR(reports[i].loss, loss, (1e-5 + rounding) * loss) << i;
  }
  double difference = 0, change = 0;
  const Tensor now = table();
  for (size_t j = 0; j < after.size(); ++j) {
    difference += std::pow(static_cast<double>(now.f32()[j]) - after[j], 2);
    change += std::pow(static_cast<double>(after[j]) - before[j], 2);
  }
  EXPECT_GT(change, 0);
  EXPECT_LE(std::sqrt(difference), rounding * std::sqrt(change));
}

INSTANTIATE_TEST_SUITE_P(Encoders, PTuningGolden, testing::Values("ptuning", "ptuning-lstm"),
                         TestName);

TEST(InitialPrompt, TextAndLabelsAreThoseOfPeftAndNumpy) {
  GoldenWorld w = OpenGoldenWorld("llama-1");
  Context& c = *w.context;
  const auto file = SafetensorsFile::Open(kFolder + "initial_prompts.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto values = [](const Tensor& t) {
    return std::vector<float>(t.values().begin(), t.values().end());
  };
  EXPECT_EQ(values(TextPrompt(c, *w.model, 5, {7, 30, 99})), ReadTensor(*file, "tiled"));
  EXPECT_EQ(values(TextPrompt(c, *w.model, 5, {1, 2, 3, 4, 5, 6, 7, 8})),
            ReadTensor(*file, "truncated"));

  // Labels first, the rest drawn from the vocabulary as without labels.
  Random random(5), again(5);
  const Tensor prompt = LabelPrompt(c, *w.model, 5, {{4}, {10, 20, 33}}, 5000, random);
  const Tensor sampled = SampledVocabularyPrompt(c, *w.model, 5, 5000, again);
  EXPECT_EQ(values(prompt.RowRange(0, 2)), ReadTensor(*file, "labels"));
  EXPECT_EQ(values(prompt.RowRange(2, 3)), values(sampled.RowRange(2, 3)));

  // More labels than rows: the first ones.
  const Tensor short_prompt = LabelPrompt(c, *w.model, 1, {{4}, {10, 20, 33}}, 5000, random);
  EXPECT_EQ(values(short_prompt), values(prompt.RowRange(0, 1)));
}

TEST(InitialPrompt, FilesGiveTheirRows) {
  GoldenWorld w = OpenGoldenWorld("llama-1");
  Context& c = *w.context;
  const auto npy = ReadPromptFile(kFolder + "prompt.npy", c, *w.model);
  ASSERT_TRUE(npy.ok()) << npy.status();
  const Tensor expected = TextPrompt(c, *w.model, 5, {7, 30, 99});  // what numpy wrote there
  ASSERT_EQ(npy->shape(), expected.shape());
  EXPECT_TRUE(std::equal(npy->values().begin(), npy->values().end(), expected.values().begin()));

  // PEFT's T5 prompts have 2 P rows; a prompt made from one has the P that are read.
  for (const std::string name : {"llama-1", "t5-v1_1-1"}) {
    GoldenWorld v = OpenGoldenWorld(name);
    const std::string folder =
        absl::StrCat(PERMAFROST_GOLDEN, "/models/", name, "/adapters/prompt");
    const auto prompt = ReadPromptFile(folder, *v.context, *v.model);
    ASSERT_TRUE(prompt.ok()) << prompt.status();
    const auto stored = SafetensorsFile::Open(folder + "/adapter_model.safetensors");
    const std::vector<float> rows = ReadTensor(*stored, "prompt_embeddings");
    ASSERT_EQ(prompt->shape(), (Shape{5, v.model->info().width}));
    EXPECT_TRUE(std::equal(prompt->values().begin(), prompt->values().end(), rows.begin()));
  }

  // Another width, and a LoRA, are errors that say so.
  GoldenWorld other = OpenGoldenWorld("llama-2");
  EXPECT_FALSE(ReadPromptFile(kFolder + "prompt.npy", *other.context, *other.model).ok());
  EXPECT_FALSE(ReadPromptFile(PERMAFROST_GOLDEN "/models/llama-1/adapters/lora", c, *w.model).ok());
}

}  // namespace
}  // namespace permafrost
