// permafrost convert, as a user runs it: a GGUF base as a folder gives the same logits and the same
// token ids bit for bit, a merged LoRA what the adapter gives within rounding, a prompt survives
// the way to .npy and back.
#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/file.h"
#include "io/npy.h"
#include "io/safetensors.h"

namespace permafrost {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Outcome {
  int status = -1;
  std::string text;  // stdout and stderr
};

// `arguments` go through the shell; every path in them is quoted by Quoted.
Outcome RunCommand(const std::string& arguments) {
  FILE* pipe = popen((std::string(PERMAFROST_BINARY) + " " + arguments + " 2>&1").c_str(), "r");
  Outcome outcome;
  if (pipe == nullptr) return outcome;
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
    outcome.text.append(buffer, n);
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status)) outcome.status = WEXITSTATUS(status);
  return outcome;
}

std::string Quoted(const std::string& path) { return "'" + path + "'"; }

std::string ModelFolder(const std::string& name) {
  return std::string(PERMAFROST_GOLDEN) + "/models/" + name;
}

std::string Stories() {
  return std::string(PERMAFROST_SOURCE_DIR) + "/examples/data/stories260k/stories260K.gguf";
}

class ConvertTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "permafrost_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }

  void Expect(const std::string& arguments) {
    const Outcome outcome = RunCommand(arguments);
    EXPECT_EQ(outcome.status, 0) << arguments << "\n" << outcome.text;
  }

  // The file of `permafrost forward`.
  absl::StatusOr<SafetensorsFile> Forward(const std::string& base, const std::string& data,
                                          const std::string& adapter, const std::string& name) {
    Expect("forward --threads 1 --base " + Quoted(base) + " --data " + Quoted(data) + " --out " +
           Quoted(Path(name)) + (adapter.empty() ? "" : " --adapter " + Quoted(adapter)));
    return SafetensorsFile::Open(Path(name));
  }

 private:
  std::string folder_;
};

std::vector<float> Values(const TensorView& t) {
  std::vector<float> values(static_cast<size_t>(t.num_elements()));
  EXPECT_TRUE(ReadAsF32(t, 0, absl::MakeSpan(values)).ok());
  return values;
}

float LargestMagnitude(const std::vector<float>& v) {
  float largest = 0;
  for (const float x : v) largest = std::max(largest, std::abs(x));
  return largest;
}

void ExpectSameBits(const SafetensorsFile& a, const SafetensorsFile& b) {
  ASSERT_EQ(a.tensors().size(), b.tensors().size());
  for (size_t i = 0; i < a.tensors().size(); ++i) {
    EXPECT_EQ(a.tensors()[i].name, b.tensors()[i].name);
    EXPECT_EQ(a.tensors()[i].shape, b.tensors()[i].shape);
    EXPECT_TRUE(std::ranges::equal(a.tensors()[i].bytes, b.tensors()[i].bytes))
        << a.tensors()[i].name;
  }
}

TEST_F(ConvertTest, GgufFolderGivesTheSameLogitsAndIds) {
  const std::string data = Path("data.jsonl"), texts = Path("texts.jsonl"), out = Path("base");
  ASSERT_TRUE(WriteFileAtomically(data, std::string_view("{\"input_ids\": [1, 403, 407, 261, 378, "
                                                         "432], \"labels\": [1, 403, 407, 261, "
                                                         "378, 432]}\n"))
                  .ok());
  ASSERT_TRUE(
      WriteFileAtomically(
          texts, std::string_view("{\"text\": \"Once upon a time, there was a dog.\"}\n"
                                  "{\"text\": \"  two  spaces, 123\\n\\t caf\u00e9 \u6f22\"}\n"
                                  "{\"text\": \"aaaaaaaaaaa\"}\n{\"text\": \"\"}\n"))
          .ok());
  Expect("convert --base " + Quoted(Stories()) + " --out " + Quoted(out));
  const auto expected = Forward(Stories(), data, "", "a.safetensors");
  const auto found = Forward(out, data, "", "b.safetensors");
  ASSERT_TRUE(expected.ok() && found.ok());
  ExpectSameBits(*expected, *found);
  for (const char* flag : {"", " --plain"}) {
    const std::string tail = " --data " + Quoted(texts) + flag;
    const Outcome ids = RunCommand("tokenize --base " + Quoted(Stories()) + tail);
    EXPECT_THAT(ids.text, StartsWith("{\"ids\":["));
    EXPECT_EQ(ids.text, RunCommand("tokenize --base " + Quoted(out) + tail).text);
  }
}

TEST_F(ConvertTest, FolderGivesTheSameLogitsAndTensors) {
  for (const char* name : {"gpt2-1", "llama-1", "llama-2", "qwen2-2", "t5-v1_0-1", "t5-v1_1-1"}) {
    SCOPED_TRACE(name);
    const std::string base = ModelFolder(name), data = base + "/data.jsonl", out = Path(name);
    Expect("convert --base " + Quoted(base) + " --out " + Quoted(out));
    const auto expected = Forward(base, data, "", "a.safetensors");
    const auto found = Forward(out, data, "", "b.safetensors");
    ASSERT_TRUE(expected.ok() && found.ok());
    ExpectSameBits(*expected, *found);
    const auto from = SafetensorsFile::Open(base + "/model.safetensors");
    const auto to = SafetensorsFile::Open(out + "/model.safetensors");
    ASSERT_TRUE(from.ok() && to.ok());
    for (const TensorView& t : to->tensors()) {  // GPT-2's matrices in their stored orientation
      const TensorView* original = from->Find(t.name);
      ASSERT_NE(original, nullptr) << t.name;
      EXPECT_EQ(original->shape, t.shape) << t.name;
      EXPECT_EQ(Values(*original), Values(t)) << t.name;
    }
  }
}

// Merging changes the order of a few roundings per output and layer: W x + s B (A x) becomes
// (W + s B A) x. With inner sizes of at most about 100, each product is off by at most 100 x 2^-24
// of its operands' norms; over up to 4 layers 2e-5 of the largest logit, contract.md's bound.
TEST_F(ConvertTest, MergedLoraGivesWhatTheAdapterGives) {
  constexpr double kBound = 2e-5;
  for (const char* name : {"gpt2-1", "llama-1", "mistral-1", "qwen2-1", "t5-v1_0-1", "t5-v1_1-1"}) {
    SCOPED_TRACE(name);
    const std::string base = ModelFolder(name), data = base + "/data.jsonl", out = Path(name),
                      lora = base + "/adapters/lora";
    Expect("convert --base " + Quoted(base) + " --adapter " + Quoted(lora) + " --out " +
           Quoted(out));
    const auto expected = Forward(base, data, lora, "a.safetensors");
    const auto found = Forward(out, data, "", "b.safetensors");
    const auto bare = Forward(base, data, "", "c.safetensors");
    ASSERT_TRUE(expected.ok() && found.ok() && bare.ok());
    for (const TensorView& t : expected->tensors()) {
      if (!t.name.starts_with("logits")) continue;
      ASSERT_NE(found->Find(t.name), nullptr);
      const std::vector<float> a = Values(t), b = Values(*found->Find(t.name)),
                               c = Values(*bare->Find(t.name));
      ASSERT_EQ(a.size(), b.size());
      float difference = 0, effect = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        difference = std::max(difference, std::abs(a[i] - b[i]));
        effect = std::max(effect, std::abs(a[i] - c[i]));
      }
      EXPECT_LE(difference, kBound * LargestMagnitude(a)) << t.name;
      EXPECT_GT(effect, 100 * kBound * LargestMagnitude(a)) << t.name;
    }
  }
}

TEST_F(ConvertTest, PromptsGoToNpyAndBack) {
  for (const char* name : {"llama-1", "t5-v1_0-1"}) {
    SCOPED_TRACE(name);
    const std::string base = Quoted(ModelFolder(name)),
                      prompt = ModelFolder(name) + "/adapters/prompt", npy = Path("prompt.npy"),
                      out = Path(name);
    Expect("convert --base " + base + " --adapter " + Quoted(prompt) + " --to-npy " + Quoted(npy));
    Expect("convert --base " + base + " --prompt-npy " + Quoted(npy) + " --out " + Quoted(out));
    const auto array = ReadNpy(npy);
    const auto original = SafetensorsFile::Open(prompt + "/adapter_model.safetensors");
    const auto back = SafetensorsFile::Open(out + "/adapter_model.safetensors");
    ASSERT_TRUE(array.ok() && original.ok() && back.ok());
    std::vector<float> expected = Values(*original->Find("prompt_embeddings"));
    ASSERT_GE(expected.size(), array->values.size());
    expected.resize(array->values.size());  // PEFT's second half is never read
    EXPECT_EQ(array->values, expected);
    EXPECT_EQ(back->Find("prompt_embeddings")->shape, array->shape);
    EXPECT_EQ(Values(*back->Find("prompt_embeddings")), expected);
  }
}

TEST_F(ConvertTest, ErrorsAreOneLineAndLeaveNothing) {
  const std::string base = ModelFolder("llama-1"), prompt = base + "/adapters/prompt",
                    lora = base + "/adapters/lora", out = Path("out");
  const auto expect = [&](const std::string& arguments, const std::string& message) {
    const Outcome outcome = RunCommand("convert --base " + Quoted(base) + arguments);
    EXPECT_EQ(outcome.status, 1) << arguments;
    EXPECT_THAT(outcome.text, StartsWith("error: "));
    EXPECT_THAT(outcome.text, HasSubstr(message));
    EXPECT_EQ(std::count(outcome.text.begin(), outcome.text.end(), '\n'), 1) << outcome.text;
    EXPECT_FALSE(std::filesystem::exists(out));
  };
  expect("", "--out DIR or --to-npy FILE");
  expect(" --adapter " + Quoted(prompt) + " --out " + Quoted(out), "cannot be merged");
  expect(" --adapter " + Quoted(lora) + " --to-npy " + Quoted(Path("x.npy")), "a prompt adapter");
  expect(" --prompt-npy " + Quoted(Path("none.npy")) + " --out " + Quoted(out), "none.npy");
  expect(" --out " + Quoted(base), "another folder");
  expect(
      " --adapter " + Quoted(ModelFolder("llama-2") + "/adapters/lora") + " --out " + Quoted(out),
      "expected [");
}

}  // namespace
}  // namespace permafrost
