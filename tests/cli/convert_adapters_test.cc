// convert --combine and --extract-lora, as a user runs them.
#include <cmath>
#include <map>

#include "io/safetensors.h"
#include "tests/cli/command_test_util.h"

namespace permafrost {
namespace {

using nlohmann::json;

class ConvertAdapters : public CommandTest {
 protected:
  static std::vector<float> Values(const SafetensorsFile& file, const std::string& name) {
    const TensorView* t = file.Find(name);
    EXPECT_NE(t, nullptr) << name;
    if (t == nullptr) return {};
    std::vector<float> values(static_cast<size_t>(t->num_elements()));
    EXPECT_TRUE(ReadAsF32(*t, 0, absl::MakeSpan(values)).ok());
    return values;
  }
  SafetensorsFile OpenFile(const std::string& path) const {
    auto file = SafetensorsFile::Open(path);
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  }
  // The logits of the model's lines, one after the other.
  std::vector<float> Logits(const std::string& base, const std::string& adapter,
                            const std::string& data) const {
    Output(Forward(base, data, adapter.empty() ? "" : "--adapter " + Quoted(adapter)));
    const SafetensorsFile file = OpenFile(Path("out.safetensors"));
    std::vector<float> all;
    for (const TensorView& t : file.tensors()) {
      if (!t.name.starts_with("logits")) continue;
      const std::vector<float> values = Values(file, t.name);
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }
  static double Distance(const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    double difference = 0, largest = 0;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      difference = std::max(difference, std::abs(static_cast<double>(a[i]) - b[i]));
      largest = std::max(largest, std::abs(static_cast<double>(b[i])));
    }
    return difference / largest;
  }
};

// A LoRA that was merged comes out again: all of it at its rank, the best part of it below.
TEST_F(ConvertAdapters, ExtractsAMergedLora) {
  for (const char* name : {"llama-1", "gpt2-1", "t5-v1_1-1"}) {
    SCOPED_TRACE(name);
    const std::string base = GoldenModel(name), data = base + "/data.jsonl", lora = Path("lora"),
                      merged = Path("merged"),
                      convert = "convert --threads 1 --base " + Quoted(base);
    Output(
        "train --quiet --threads 1 --method lora --rank 3 --targets all-linear --steps 4 --lr 0.05 "
        "--base " +
        Quoted(base) + " --data " + Quoted(data) + " --out " + Quoted(lora));
    Output(convert + " --adapter " + Quoted(lora) + " --out " + Quoted(merged));
    const auto extract = [&](int rank, const std::string& more) {
      return JsonLines(Output(convert + " --extract-lora " + std::to_string(rank) + " --tuned " +
                              Quoted(merged) + " --out " + Quoted(Path("extracted")) + more));
    };
    const std::vector<json> exact = extract(3, "");
    EXPECT_LT(exact.back()["total_error"].get<double>(), 1e-4);
    EXPECT_EQ(exact.back()["change_outside_of_targets"], 0);
    EXPECT_EQ(json::parse(Read("extracted/adapter_config.json"))["r"], 3);
    const std::vector<float> tuned = Logits(merged, "", data);
    EXPECT_LE(Distance(Logits(base, Path("extracted"), data), tuned), 1e-4);
    EXPECT_GT(Distance(Logits(base, "", data), tuned), 1e-2);

    const std::vector<json> best = extract(1, "");
    EXPECT_GT(best.back()["total_error"].get<double>(), 1e-3);
    EXPECT_LT(best.back()["total_error"].get<double>(), 1);
    EXPECT_EQ(best.size(), exact.size());
    const std::string some = std::string(name) == "gpt2-1"    ? "c_attn"
                             : std::string(name) == "llama-1" ? "q_proj,v_proj"
                                                              : "q,v";
    const std::vector<json> part = extract(3, " --targets " + some);
    EXPECT_LT(part.size(), exact.size());
    EXPECT_LT(part.back()["total_error"].get<double>(), 1e-4);
    EXPECT_GT(part.back()["change_outside_of_targets"].get<double>(), 0.1);
  }
}

// The errors are those of the file that was written, and the best that a rank can have.
TEST_F(ConvertAdapters, ReportsTheErrorOfAFullyTunedModel) {
  const std::string base = GoldenModel("llama-1"), data = base + "/data.jsonl";
  Output("train --quiet --threads 1 --method full --steps 3 --lr 0.01 --base " + Quoted(base) +
         " --data " + Quoted(data) + " --out " + Quoted(Path("full")));
  Output("convert --threads 1 --base " + Quoted(base) + " --adapter " + Quoted(Path("full")) +
         " --out " + Quoted(Path("tuned")));
  const std::vector<json> lines =
      JsonLines(Output("convert --threads 1 --base " + Quoted(base) + " --extract-lora 4 --tuned " +
                       Quoted(Path("tuned")) + " --out " + Quoted(Path("out"))));
  const SafetensorsFile before = OpenFile(base + "/model.safetensors"),
                        after = OpenFile(Path("tuned/model.safetensors")),
                        lora = OpenFile(Path("out/adapter_model.safetensors"));
  double left = 0, change = 0, elsewhere = 0;
  std::map<std::string, bool> targeted;
  for (size_t i = 0; i + 1 < lines.size(); ++i) {
    const std::string module = lines[i]["module"], name = module + ".weight";
    targeted[name] = true;
    const std::vector<float> w0 = Values(before, name), w1 = Values(after, name),
                             a = Values(lora, "base_model.model." + module + ".lora_A.weight"),
                             b = Values(lora, "base_model.model." + module + ".lora_B.weight");
    const size_t columns = a.size() / 4;
    double own_left = 0, own_change = 0;
    for (size_t k = 0; k < w0.size(); ++k) {
      const double delta = static_cast<double>(w1[k]) - w0[k];
      double rest = delta;
      for (size_t r = 0; r < 4; ++r) {
        rest -= static_cast<double>(b[k / columns * 4 + r]) * a[r * columns + k % columns];
      }
      own_left += rest * rest;
      own_change += delta * delta;
    }
    EXPECT_NEAR(lines[i]["error"].get<double>(), std::sqrt(own_left / own_change), 1e-4) << module;
    EXPECT_NEAR(lines[i]["change"].get<double>(), std::sqrt(own_change),
                1e-4 * std::sqrt(own_change));
    left += own_left;
    change += own_change;
  }
  for (const TensorView& t : after.tensors()) {
    if (targeted.count(t.name) != 0) continue;
    const std::vector<float> w0 = Values(before, t.name), w1 = Values(after, t.name);
    for (size_t k = 0; k < w0.size(); ++k) {
      elsewhere += std::pow(static_cast<double>(w1[k]) - w0[k], 2);
    }
  }
  EXPECT_NEAR(lines.back()["total_error"].get<double>(), std::sqrt(left / change), 1e-4);
  EXPECT_GT(lines.back()["total_error"].get<double>(), 0.01);
  EXPECT_NEAR(lines.back()["change_outside_of_targets"].get<double>(),
              std::sqrt(elsewhere / (elsewhere + change)), 1e-4);
  EXPECT_GT(elsewhere, 0);
}

TEST_F(ConvertAdapters, CombinesFolders) {
  const std::string base = GoldenModel("llama-1"), lora = GoldenAdapter("llama-1", "lora"),
                    prompt = GoldenAdapter("llama-1", "prompt"), data = base + "/data.jsonl",
                    convert = "convert --base " + Quoted(base) + " --out " + Quoted(Path("out")) +
                              " --combine ";
  const auto pair = [](const std::string& a, const std::string& b) {
    return " --adapter " + Quoted(a) + " --adapter " + Quoted(b);
  };
  // Half and half of one LoRA is that LoRA.
  const std::vector<float> expected = Logits(base, lora, data);
  for (const char* how : {"average", "average --weights 1,3", "cat --weights 0.25,0.75"}) {
    Output(convert + how + pair(lora, lora));
    EXPECT_LE(Distance(Logits(base, Path("out"), data), expected), 2e-5) << how;
  }
  Output(convert + "linear" + pair(lora, lora));  // weights of 1
  EXPECT_GT(Distance(Logits(base, Path("out"), data), expected), 1e-3);
  Output(convert + "average" + pair(prompt, prompt));
  EXPECT_LE(Distance(Logits(base, Path("out"), data), Logits(base, prompt, data)), 2e-5);
  Output(convert + "cat" + pair(prompt, prompt));
  EXPECT_EQ(json::parse(Read("out/adapter_config.json"))["num_virtual_tokens"], 10);

  ExpectBad(convert + "linear" + pair(lora, prompt), {"LoRA and prompt tuning"});
  ExpectBad(convert + "linear --adapter " + Quoted(lora), {"two or more", "found 1"}, 2);
  ExpectBad(convert + "linear --weights 1" + pair(lora, lora), {"expected 2", "found 1"}, 2);
  ExpectBad(convert + "linear --weights 1,x" + pair(lora, lora), {"'x'"}, 2);
  ExpectBad(convert + "linear --weights 1,nan" + pair(lora, lora), {"'nan'"}, 2);
  ExpectBad(convert + "average --weights 1,-1" + pair(lora, lora), {"sum other than 0"});
  ExpectBad(convert + "sum" + pair(lora, lora), {"sum"}, 2);
}

TEST_F(ConvertAdapters, WrongCommandLines) {
  const std::string base = GoldenModel("llama-1"), lora = GoldenAdapter("llama-1", "lora"),
                    convert = "convert --base " + Quoted(base) + " --out " + Quoted(Path("out"));
  ExpectBad(convert + " --adapter " + Quoted(lora) + " --adapter " + Quoted(lora),
            {"one --adapter", "found 2"}, 2);
  ExpectBad(convert + " --extract-lora 2", {"--tuned"}, 2);
  ExpectBad(convert + " --tuned " + Quoted(base), {"--extract-lora"}, 2);
  ExpectBad(convert + " --weights 1,1", {"--combine"}, 2);
  ExpectBad(convert + " --extract-lora 2 --tuned " + Quoted(base) + " --combine cat", {"several"},
            2);
  const std::string extract = convert + " --extract-lora 2 --tuned ";
  ExpectBad(extract + Quoted(base), {"differ", "found none"});
  ExpectBad(extract + Quoted(GoldenModel("llama-2")), {"another architecture"});
  ExpectBad(extract + Quoted(GoldenModel("gpt2-1")), {"expected llama, found gpt2"});
  ExpectBad(extract + Quoted(GoldenModel("mistral-1")) + " --targets q_proj",
            {"expected llama, found mistral"});
  EXPECT_FALSE(Exists("out"));
}

}  // namespace
}  // namespace permafrost
