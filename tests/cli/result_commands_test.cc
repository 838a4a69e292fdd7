// inspect, eval, predict and bench: the figures they print agree with forward, with each other and
// with what the files hold.
#include <cmath>

#include "io/safetensors.h"
#include "tests/cli/command_test_util.h"

namespace permafrost {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class ResultCommands : public CommandTest {
 protected:
  // loss.i of forward.
  std::vector<float> Losses(const std::string& base, const std::string& data,
                            const std::string& more = "") const {
    EXPECT_EQ(Run(Forward(base, data, more)).status, 0);
    const auto file = SafetensorsFile::Open(Path("out.safetensors"));
    std::vector<float> losses;
    for (size_t i = 0; file.ok(); ++i) {
      const TensorView* t = file->Find("loss." + std::to_string(i));
      if (t == nullptr) break;
      EXPECT_TRUE(ReadAsF32(*t, 0, absl::MakeSpan(&losses.emplace_back(), 1)).ok());
    }
    return losses;
  }
  std::string SmallSms(const std::string& name, size_t lines) const {
    std::string text;
    for (const std::string& line : Lines(ReadWhole(SmsSpam("eval.tsv")))) {
      if (lines-- == 0) break;
      text += line + "\n";
    }
    return Write(name, text);
  }
};

TEST_F(ResultCommands, InspectBase) {
  const json report = Json("inspect --json --base " + Quoted(GoldenModel("llama-1")));
  const json& base = report["base"];
  EXPECT_EQ(base["model_type"], "llama");
  EXPECT_EQ(base["layers"], 3);
  EXPECT_EQ(base["width"], 30);
  EXPECT_EQ(base["heads"], 6);
  EXPECT_EQ(base["key_heads"], 2);
  EXPECT_EQ(base["vocabulary"], 131);
  EXPECT_EQ(base["max_positions"], 192);
  EXPECT_EQ(base["head"], "separate");
  // 2 V D, and a layer of q, k, v, o, gate, up, down and two norms, and the last norm.
  const int layer = 30 * 48 * 2 + 30 * 16 * 2 + 3 * 30 * 37 + 2 * 30;
  EXPECT_EQ(base["parameters"], 2 * 131 * 30 + 3 * layer + 30);
  ASSERT_EQ(report["modules"].size(), 7u);
  EXPECT_EQ(report["modules"][0]["target"], "q_proj");
  EXPECT_EQ(report["modules"][0]["outputs"], 48);
  EXPECT_EQ(report["modules"][0]["inputs"], 30);
  EXPECT_EQ(report["modules"][0]["count"], 3);
  EXPECT_EQ(report["tokenizer"], nullptr);
  EXPECT_EQ(Json("inspect --json --base " + Quoted(Stories()))["tokenizer"]["ids"], 512);
  const json t5 = Json("inspect --json --base " + Quoted(GoldenModel("t5-v1_0-1")));
  EXPECT_EQ(t5["base"]["encoder_layers"], 3);
  EXPECT_EQ(t5["base"]["decoder_layers"], 2);
  const std::string text = Output("inspect --base " + Quoted(GoldenModel("llama-1")));
  for (const char* part : {"model_type", "llama", "q_proj", "down_proj", "activation_bytes"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
}

TEST_F(ResultCommands, InspectAdapterDataAndMemory) {
  const std::string base = GoldenModel("llama-1");
  const std::string inspect = "inspect --json --base " + Quoted(base) + " --adapter " +
                              Quoted(GoldenAdapter("llama-1", "lora")) + " --data " +
                              Quoted(base + "/data.jsonl");
  const json report = Json(inspect + " --batch-size 4");
  const int trainable = 3 * (4 * 30 + 48 * 4 + 4 * 30 + 16 * 4);  // q and v of 3 layers, rank 4
  EXPECT_EQ(report["adapter"]["parameters"], trainable);
  EXPECT_EQ(report["adapter"]["tensors"].size(), 12u);
  EXPECT_EQ(report["adapter"]["config"]["peft_type"], "LORA");
  EXPECT_EQ(report["data"]["lines"], 7);
  EXPECT_EQ(report["data"]["labelled_lines"], 6);
  EXPECT_EQ(report["data"]["input_tokens"]["min"], 1);
  const json& memory = report["memory"];
  EXPECT_EQ(memory["batch_size"], 4);
  EXPECT_EQ(memory["tokens"], report["data"]["input_tokens"]["max"]);
  EXPECT_EQ(memory["adapter_bytes"], 4 * trainable);
  EXPECT_EQ(memory["gradient_bytes"], 4 * trainable);
  EXPECT_EQ(memory["adamw_bytes"], 8 * trainable);
  EXPECT_EQ(memory["total_bytes"].get<int64_t>(), memory["weight_bytes"].get<int64_t>() +
                                                      16 * trainable +
                                                      memory["activation_bytes"].get<int64_t>());
  EXPECT_LT(memory["recompute_layers_total_bytes"], memory["total_bytes"]);
  const json plan = Json(inspect + " --batch-size 8 --tokens 40")["memory"];
  const json half = Json(inspect + " --batch-size 4 --tokens 40")["memory"];
  EXPECT_EQ(plan["activation_bytes"], 2 * half["activation_bytes"].get<int64_t>());
  const json sms = Json("inspect --json --base " + Quoted(Stories()) + " --task sms_spam --data " +
                        SmallSms("s.tsv", 9));
  EXPECT_EQ(sms["data"]["lines"], 8);
  EXPECT_EQ(sms["data"]["labels"][0]["label"], "ham");
  EXPECT_EQ(
      sms["data"]["labels"][0]["lines"].get<int>() + sms["data"]["labels"][1]["lines"].get<int>(),
      8);
}

// Each gate's weights are those of the file; what has no formula is said to have none.
TEST_F(ResultCommands, InspectGatesAndMemoryOfOtherMethods) {
  const std::string base = GoldenModel("gpt2-1");
  const std::string data = Write("d.jsonl", "{\"input_ids\": [5, 6, 7], \"labels\": [5, 6, 7]}\n");
  const auto inspect = [&](const std::string& method, const std::string& more) {
    Output(Train(base, data, "--steps 2 --method " + method));
    return "inspect --base " + Quoted(base) + " --adapter " + Quoted(Path("out")) + " " + more;
  };
  const std::string command =
      inspect("unipelt --virtual-tokens 3 --rank 2 --bottleneck 4 --separate-gates --lr 0.1", "");
  const json report = Json(command + " --json");
  const int layers = report["base"]["layers"], width = report["base"]["width"];
  const json& gates = report["adapter"]["gates"];
  ASSERT_EQ(gates.size(), 4u * static_cast<size_t>(layers));  // keys', values', LoRA's, adapter's
  const auto file = SafetensorsFile::Open(Path("out/adapter_model.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  size_t found = 0;
  for (const json& gate : gates) {
    std::string name = gate["name"];
    size_t row = 0;
    if (name.ends_with(".0") || name.ends_with(".1")) {
      row = static_cast<size_t>(name.back() - '0');
      name.resize(name.size() - 2);
    }
    const TensorView* weight = file->Find(name + ".weight");
    const TensorView* bias = file->Find(name + ".bias");
    ASSERT_TRUE(weight != nullptr && bias != nullptr) << name;
    std::vector<float> w(static_cast<size_t>(weight->num_elements()));
    std::vector<float> b(static_cast<size_t>(bias->num_elements()));
    ASSERT_TRUE(ReadAsF32(*weight, 0, absl::MakeSpan(w)).ok());
    ASSERT_TRUE(ReadAsF32(*bias, 0, absl::MakeSpan(b)).ok());
    double squares = 0;
    for (size_t i = 0; i < static_cast<size_t>(width); ++i) {
      const double value = static_cast<double>(w[row * static_cast<size_t>(width) + i]);
      squares += value * value;
    }
    EXPECT_NEAR(gate["norm"].get<double>(), std::sqrt(squares), 1e-6) << name;
    EXPECT_EQ(gate["bias"].get<double>(), static_cast<double>(b[row])) << name;
    found += gate["bias"] != 0.0 ? 1 : 0;
  }
  EXPECT_GT(found, 0u);
  EXPECT_GT(report["memory"]["activation_bytes"].get<int64_t>(), 0);
  const std::string text = Output(command);
  for (const char* part : {"gates", "norm", "bias", "self_prefix.0.gate.0", "total_bytes"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }

  const json top = Json(inspect("top-layers", "--json"));
  const json norm = Json(inspect("norm", "--json"));
  EXPECT_FALSE(top["adapter"].contains("gates"));
  EXPECT_LT(top["memory"]["activation_bytes"].get<int64_t>(),
            norm["memory"]["activation_bytes"].get<int64_t>());
  const std::string copies = inspect("lora --bias all", "");
  const json memory = Json(copies + " --json")["memory"];
  EXPECT_EQ(memory["activation_bytes"], "not estimated");
  EXPECT_FALSE(memory.contains("total_bytes"));
  EXPECT_THAT(Output(copies), HasSubstr("not estimated"));
}

TEST_F(ResultCommands, EvalLossIsThatOfForward) {
  for (const char* model : {"llama-1", "t5-v1_1-1"}) {
    const std::string base = GoldenModel(model), data = base + "/data.jsonl";
    for (const std::string& adapter :
         {std::string(), " --adapter " + Quoted(GoldenAdapter(model, "prompt"))}) {
      SCOPED_TRACE(model + adapter);
      const std::vector<float> losses = Losses(base, data, adapter);
      const std::vector<json> lines = JsonLines(ReadWhole(data));
      ASSERT_EQ(losses.size(), lines.size());
      double sum = 0;
      int count = 0;
      for (size_t i = 0; i < lines.size(); ++i) {
        // A decoder without a prompt does not predict the first label.
        const bool first = model[0] == 't' || !adapter.empty();
        int labelled = 0;
        for (size_t t = first ? 0 : 1; t < lines[i]["labels"].size(); ++t) {
          labelled += lines[i]["labels"][t] != -100;
        }
        sum += static_cast<double>(losses[i]) * labelled;
        count += labelled;
      }
      const json object = Json("eval --json --threads 1 --base " + Quoted(base) + " --data " +
                               Quoted(data) + adapter);
      EXPECT_EQ(object["examples"], lines.size());
      EXPECT_NEAR(object["loss"], sum / count, 1e-5 * sum / count);
      EXPECT_EQ(object.size(), 2u);  // no label words, no metric
    }
  }
}

TEST_F(ResultCommands, EvalAndPredictAgree) {
  const std::string data = SmallSms("s.tsv", 31);
  const std::string flags =
      " --threads 1 --base " + Quoted(Stories()) + " --task sms_spam --data " + data;
  const std::vector<std::string> rows = Lines(Read("s.tsv"));
  std::vector<std::string> labels;
  for (const char* score : {"sum", "mean", "first"}) {
    SCOPED_TRACE(score);
    const std::string more = flags + " --score " + score;
    const std::vector<json> lines = JsonLines(Output("predict" + more));
    ASSERT_EQ(lines.size(), 30u);
    int right = 0;
    for (size_t i = 0; i < lines.size(); ++i) {
      EXPECT_EQ(lines[i].size(), 2u);
      const json& scores = lines[i]["scores"];
      ASSERT_EQ(scores.size(), 2u);
      const double ham = scores["ham"], spam = scores["spam"];
      EXPECT_NEAR(ham + spam, 1, 1e-12);
      EXPECT_EQ(lines[i]["label"], ham >= spam ? "ham" : "spam");
      const std::string label = lines[i]["label"];
      right += rows[i + 1].substr(rows[i + 1].find('\t') + 1) == label;
    }
    const json object = Json("eval --json" + more);
    EXPECT_EQ(object["examples"], 30);
    EXPECT_NEAR(object["accuracy"], right / 30.0, 1e-12);
    EXPECT_TRUE(object["loss"].is_number());
    EXPECT_TRUE(object["f1"].is_number());
    const std::string text = Output("eval" + more);
    EXPECT_THAT(text, HasSubstr("examples 30\n"));
    EXPECT_THAT(text, HasSubstr("\naccuracy 0."));
  }
}

// The labels by word and by index, and without the column.
TEST_F(ResultCommands, LabelColumn) {
  const std::string head =
      "--base " + Quoted(Stories()) + " --input 'sms: {text}' --label-words ham,spam --data ";
  const std::string words = Write("w.csv", "text,label\n\"free, now\",spam\nsee you,ham\n");
  const std::string index = Write("i.csv", "text,label\n\"free, now\",1\nsee you,0\n");
  const std::string none = Write("n.jsonl", "{\"text\": \"free, now\"}\n{\"text\": \"see you\"}\n");
  EXPECT_EQ(Output("eval --json " + head + words), Output("eval --json " + head + index));
  EXPECT_EQ(Output("predict " + head + words), Output("predict " + head + none));
}

TEST_F(ResultCommands, PredictGenerates) {
  const std::string data = Write("t.tsv", "text\nOnce upon a time\nThe dog\n");
  const std::vector<json> lines =
      JsonLines(Output("predict --base " + Quoted(Stories()) + " --input '{text}' --data " + data +
                       " --max-new-tokens 7"));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1], Json("generate --json --max-new-tokens 7 --prompt 'The dog' --base " +
                           Quoted(Stories())));
  const std::string ids = Write("ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
  const json untold = Json("predict --base " + Quoted(GoldenModel("llama-1")) + " --data " + ids +
                           " --max-new-tokens 3");
  EXPECT_EQ(untold.size(), 1u);  // no tokenizer, no text
  EXPECT_EQ(untold["ids"].size(), 3u);
}

// An ensemble of one is that one; of several the mean of their probabilities.
TEST_F(ResultCommands, Ensemble) {
  const std::string base = Quoted(Stories()), data = SmallSms("s.tsv", 7);
  const std::string predict =
      "predict --threads 1 --task sms_spam --base " + base + " --data " + data;
  std::vector<std::vector<json>> alone;
  std::string all = " --ensemble";
  for (const char* seed : {"1", "2"}) {
    ASSERT_EQ(Output("train --quiet --base " + base + " --data " + data +
                     " --task sms_spam --method prompt --virtual-tokens 3 --steps 1 --out " +
                     Path(seed) + " --seed " + seed),
              "");
    alone.push_back(JsonLines(Output(predict + " --adapter " + Path(seed))));
    all += std::string(" --adapter s") + seed + "=" + Path(seed);
  }
  const std::vector<json> together = JsonLines(Output(predict + all));
  ASSERT_EQ(together.size(), 6u);
  for (size_t i = 0; i < together.size(); ++i) {
    const double a = alone[0][i]["scores"]["spam"], b = alone[1][i]["scores"]["spam"];
    EXPECT_NEAR(together[i]["scores"]["spam"], (a + b) / 2, 1e-5);
  }
}

TEST_F(ResultCommands, BenchStep) {
  const json row = Json(
      "bench step --shape t5-small --method prompt --virtual-tokens 3 --batch-size 2 --lengths 3:5 "
      "--target-tokens 2 --precision f32 --threads 1 --steps 2 --warmup 0");
  for (const char* key :
       {"wall_median", "wall_min", "cpu_median", "cpu_min", "minor_faults", "weights_mb",
        "peak_rss_mb", "trainable", "loss", "probe_gflops", "model_gflop", "activation_mb"}) {
    EXPECT_TRUE(row.contains(key)) << key;
    EXPECT_TRUE(row[key].is_number()) << key;
  }
  EXPECT_EQ(row["trainable"], 3 * 512);
  EXPECT_LE(row["wall_min"], row["wall_median"]);
  EXPECT_NEAR(row["loss"], std::log(32128.0), 3);  // random weights
  EXPECT_GE(row["text_tokens"], 6);
  EXPECT_LE(row["text_tokens"], 10);
}

TEST_F(ResultCommands, BenchGemm) {
  const json row = Json("bench gemm --m 64 --n 48 --k 32 --precision f32 --weights packed");
  for (const char* key : {"gflops", "probe_gflops", "fraction"}) {
    ASSERT_TRUE(row[key].is_number()) << key;
    EXPECT_GT(row[key], 0) << key;
  }
  EXPECT_NEAR(row["fraction"].get<double>(),
              row["gflops"].get<double>() / row["probe_gflops"].get<double>(), 1e-9);
}

}  // namespace
}  // namespace permafrost
