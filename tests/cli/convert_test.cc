// permafrost convert, as a user runs it: a GGUF base as a folder gives the same logits and the same
// token ids bit for bit, a merged LoRA what the adapter gives within rounding, a prompt survives
// the way to .npy and back.
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "io/file.h"
#include "io/npy.h"
#include "io/safetensors.h"
#include "tests/cli/command_test_util.h"

namespace permafrost {
namespace {

using ::testing::StartsWith;

// Rounding only: contract.md's bound on logits over up to 4 layers, of the largest logit.
constexpr double kBound = 2e-5;

std::string ModelFolder(const std::string& name) { return GoldenModel(name); }

class ConvertTest : public CommandTest {
 protected:
  void Expect(const std::string& arguments) const { Output(arguments); }

  // The file of `permafrost forward`.
  absl::StatusOr<SafetensorsFile> ForwardFile(const std::string& base, const std::string& data,
                                              const std::string& adapter,
                                              const std::string& name) const {
    Expect("forward --threads 1 --base " + Quoted(base) + " --data " + Quoted(data) + " --out " +
           Quoted(Path(name)) + (adapter.empty() ? "" : " --adapter " + Quoted(adapter)));
    return SafetensorsFile::Open(Path(name));
  }
  // The logits of `base` with `adapter` are those of the `merged` base within kBound, and not
  // those of the bare base.
  void ExpectMerged(const std::string& base, const std::string& adapter, const std::string& merged,
                    const std::string& data) const;
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
  const auto expected = ForwardFile(Stories(), data, "", "a.safetensors");
  const auto found = ForwardFile(out, data, "", "b.safetensors");
  ASSERT_TRUE(expected.ok() && found.ok());
  ExpectSameBits(*expected, *found);
  for (const char* flag : {"", " --plain"}) {
    const std::string tail = " --data " + Quoted(texts) + flag;
    const std::string ids = Output("tokenize --base " + Quoted(Stories()) + tail);
    EXPECT_THAT(ids, StartsWith("{\"ids\":["));
    EXPECT_EQ(ids, Output("tokenize --base " + Quoted(out) + tail));
  }
}

TEST_F(ConvertTest, FolderGivesTheSameLogitsAndTensors) {
  for (const char* name : {"gpt2-1", "llama-1", "llama-2", "qwen2-2", "t5-v1_0-1", "t5-v1_1-1"}) {
    SCOPED_TRACE(name);
    const std::string base = ModelFolder(name), data = base + "/data.jsonl", out = Path(name);
    Expect("convert --base " + Quoted(base) + " --out " + Quoted(out));
    const auto expected = ForwardFile(base, data, "", "a.safetensors");
    const auto found = ForwardFile(out, data, "", "b.safetensors");
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

void ConvertTest::ExpectMerged(const std::string& base, const std::string& adapter,
                               const std::string& merged, const std::string& data) const {
  const auto expected = ForwardFile(base, data, adapter, "a.safetensors");
  const auto found = ForwardFile(merged, data, "", "b.safetensors");
  const auto bare = ForwardFile(base, data, "", "c.safetensors");
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

// Merging changes the order of a few roundings per output and layer: W x + s B (A x) becomes
// (W + s B A) x. With inner sizes of at most about 100, each product is off by at most 100 x 2^-24
// of its operands' norms.
TEST_F(ConvertTest, MergedLoraGivesWhatTheAdapterGives) {
  for (const char* name : {"gpt2-1", "llama-1", "mistral-1", "qwen2-1", "t5-v1_0-1", "t5-v1_1-1"}) {
    SCOPED_TRACE(name);
    const std::string base = ModelFolder(name), lora = GoldenAdapter(name, "lora");
    Expect("convert --base " + Quoted(base) + " --adapter " + Quoted(lora) + " --out " +
           Quoted(Path(name)));
    ExpectMerged(base, lora, Path(name), base + "/data.jsonl");
  }
}

TEST_F(ConvertTest, MergedFormsOfLoraGiveWhatTheAdapterGives) {
  for (const char* name : {"dora/gpt2-1", "dora/llama-1", "dora/t5-v1_1-2", "dora-patterns/gpt2-1",
                           "adalora-pruned/llama-1", "bias-all/gpt2-1", "lora_bias/gpt2-1",
                           "embedding/llama-1", "modules_to_save/llama-1"}) {
    SCOPED_TRACE(name);
    const std::string kind = name, world = kind.substr(kind.find('/') + 1);
    const std::string base = ModelFolder(world),
                      adapter = std::string(PERMAFROST_GOLDEN) + "/adapters/" + kind;
    std::filesystem::remove_all(Path("merged"));
    Expect("convert --base " + Quoted(base) + " --adapter " + Quoted(adapter) + " --out " +
           Path("merged"));
    ExpectMerged(base, adapter, Path("merged"), base + "/data.jsonl");
  }
}

// A fully trained model as a base of its own, in the tensors' stored orientation; a tied head
// stays tied.
TEST_F(ConvertTest, MergedFullModelGivesWhatTheAdapterGives) {
  for (const char* name : {"gpt2-1", "llama-2", "t5-v1_0-1", "t5-v1_1-1"}) {
    SCOPED_TRACE(name);
    const std::string base = ModelFolder(name), data = base + "/data.jsonl", full = Path("full"),
                      out = Path(name);
    Expect("train --quiet --threads 1 --method full --steps 3 --batch-size 4 --lr 0.01 --base " +
           Quoted(base) + " --data " + Quoted(data) + " --out " + full);
    Expect("convert --base " + Quoted(base) + " --adapter " + full + " --out " + Quoted(out));
    ExpectMerged(base, full, out, data);
    const auto from = SafetensorsFile::Open(base + "/model.safetensors");
    const auto to = SafetensorsFile::Open(out + "/model.safetensors");
    ASSERT_TRUE(from.ok() && to.ok());
    for (const TensorView& t : to->tensors()) EXPECT_EQ(from->Find(t.name)->shape, t.shape);
    // Merged once, nothing of it is left to merge.
    Expect("convert --base " + Quoted(out) + " --out " + Quoted(Path("again")));
    ExpectSameBits(*to, *SafetensorsFile::Open(Path("again/model.safetensors")));
    std::filesystem::remove_all(full);
    std::filesystem::remove_all(Path("again"));
  }
}

TEST_F(ConvertTest, LoraMergedIntoAGguf) {
  const std::string base = Quoted(Stories());
  Expect(
      "train --quiet --threads 1 --method lora --rank 4 --targets all-linear --steps 3 "
      "--batch-size 4 --lr 0.05 --task sms_spam --base " +
      base + " --data " + Quoted(SmsSpam("eval.tsv")) + " --out " + Path("lora"));
  Expect("convert --base " + base + " --adapter " + Path("lora") + " --out " + Path("merged"));
  ExpectMerged(Stories(), Path("lora"), Path("merged"),
               Write("ids.jsonl", "{\"input_ids\": [1, 403, 407, 261, 378, 432]}\n"));
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

// From AdapterHub's format to PEFT's and back, and from PEFT's: the same logits to the bit.
TEST_F(ConvertTest, AdaptersBetweenLibraries) {
  const std::string hub = std::string(PERMAFROST_GOLDEN) + "/adapterhub/";
  for (const auto& [name, adapter] : std::map<std::string, std::string>{
           {"gpt2-1", "lora"}, {"t5-v1_1-1", "lora_all"}, {"mistral-1", "lora_output"}}) {
    SCOPED_TRACE(name);
    const std::string base = ModelFolder(name), data = hub + name + "/data.jsonl";
    const std::string theirs = hub + name + "/adapters/" + adapter;
    const std::string own = ModelFolder(name) + "/adapters/lora";
    const std::string to_peft = Path(name + "-peft"), to_hub = Path(name + "-hub"),
                      own_hub = Path(name + "-own");
    const std::string convert = "convert --base " + Quoted(base) + " --adapter ";
    Expect(convert + Quoted(theirs) + " --to-peft " + Quoted(to_peft));
    Expect(convert + Quoted(to_peft) + " --to-adapterhub " + Quoted(to_hub) +
           " --adapter-name again");
    Expect(convert + Quoted(own) + " --to-adapterhub " + Quoted(own_hub));
    const auto expected = ForwardFile(base, data, theirs, "a.safetensors");
    for (const std::string& folder : {to_peft, to_hub}) {
      const auto found = ForwardFile(base, data, folder, "b.safetensors");
      ASSERT_TRUE(expected.ok() && found.ok());
      ExpectSameBits(*expected, *found);
    }
    const auto before = ForwardFile(base, data, own, "a.safetensors");
    const auto after = ForwardFile(base, data, own_hub, "b.safetensors");
    ASSERT_TRUE(before.ok() && after.ok());
    for (const TensorView& t : before->tensors()) {
      const std::vector<float> values = Values(t), found = Values(*after->Find(t.name));
      for (size_t i = 0; i < values.size(); ++i) {
        // GPT-2's LoRA over q, k and v is three that repeat its A: the sum has another order.
        EXPECT_NEAR(found[i], values[i], kBound * LargestMagnitude(values)) << t.name;
      }
    }
  }
}

TEST_F(ConvertTest, ErrorsAreOneLineAndLeaveNothing) {
  const std::string base = ModelFolder("llama-1"), prompt = base + "/adapters/prompt",
                    lora = base + "/adapters/lora", out = Path("out");
  const auto expect = [&](const std::string& arguments, const std::string& message) {
    ExpectBad("convert --base " + Quoted(base) + arguments, {message});
    EXPECT_FALSE(Exists("out"));
  };
  expect(" --adapter " + Quoted(prompt) + " --out " + Quoted(out), "cannot be merged");
  expect(" --adapter " + Quoted(lora) + " --to-npy " + Quoted(Path("x.npy")), "a prompt adapter");
  expect(" --prompt-npy " + Quoted(Path("none.npy")) + " --out " + Quoted(out), "none.npy");
  expect(" --adapter " + Quoted(prompt) + " --to-adapterhub " + Quoted(out), "AdapterHub");
  expect(" --adapter " + Quoted(lora) + " --adapter-name a.b --to-adapterhub " + Quoted(out),
         "without dots");
  ExpectBad("convert --base " + Quoted(ModelFolder("llama-2")) + " --adapter " +
                Quoted(ModelFolder("llama-2") + "/adapters/lora") + " --to-adapterhub " +
                Quoted(out),
            {"AdapterHub has no config for an adapter of model.layers.0.self_attn.o_proj"});
  expect(" --out " + Quoted(base), "another folder");
  expect(
      " --adapter " + Quoted(ModelFolder("llama-2") + "/adapters/lora") + " --out " + Quoted(out),
      "expected [");
}

}  // namespace
}  // namespace permafrost
