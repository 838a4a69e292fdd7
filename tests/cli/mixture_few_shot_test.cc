// Mixtures of tasks, worked examples in front of inputs, votes of ensembles and prompts turned into
// text, as a user runs them.
#include "tests/cli/command_test_util.h"

namespace permafrost {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class Mixtures : public CommandTest {
 protected:
  // A token line of `count` equal ids, so that a step's tokens tell which lines it read.
  static std::string LineOf(int id, int count) {
    const std::vector<int> ids(static_cast<size_t>(count), id);
    return json{{"input_ids", ids}, {"labels", ids}}.dump() + "\n";
  }
  std::string Part(const std::string& name, int lines, int tokens) const {
    std::string text;
    for (int i = 0; i < lines; ++i) text += LineOf(5 + i, tokens);
    return Write(name, text);
  }
  std::string TrainMixture(const std::string& more) const {
    return "train --quiet --threads 1 --base " + Quoted(GoldenModel("llama-1")) + " --out " +
           Quoted(Path("out")) + " --method lora --batch-size 1 " + more;
  }
  // How many steps had lines of that many tokens.
  std::map<int, int> Steps() const {
    std::map<int, int> counts;
    for (const json& step : JsonLines(Read("out/metrics.jsonl"))) ++counts[step["tokens"]];
    return counts;
  }
};

TEST_F(Mixtures, ProportionsAndRates) {
  Part("parts/a.jsonl", 3, 2);
  Part("parts/b.jsonl", 9, 4);
  const std::string plain = Write(
      "parts/plain.json", R"([{"data": "a.jsonl"}, {"data": ")" + Path("parts/b.jsonl") + R"("}])");
  const std::string rates = Write(
      "parts/rates.json", R"([{"data": "a.jsonl", "rate": 3}, {"data": "b.jsonl", "rate": 1}])");
  using Counts = std::map<int, int>;
  ASSERT_EQ(Output(TrainMixture("--mixture " + plain)), "");
  EXPECT_EQ(Steps(), (Counts{{2, 3}, {4, 9}}));
  const json run = json::parse(Read("out/run.json"));
  EXPECT_EQ(run["data_files"].size(), 2u);
  ASSERT_EQ(Output(TrainMixture("--epochs 2 --mixture-cap 4 --mixture " + plain)), "");
  EXPECT_EQ(Steps(), (Counts{{2, 6}, {4, 8}}));
  // sqrt(3) : sqrt(9) of 12.
  ASSERT_EQ(Output(TrainMixture("--mixture-temperature 2 --mixture " + plain)), "");
  EXPECT_EQ(Steps(), (Counts{{2, 4}, {4, 8}}));
  ASSERT_EQ(Output(TrainMixture("--mixture " + rates)), "");
  EXPECT_EQ(Steps(), (Counts{{2, 9}, {4, 3}}));
}

// A killed run on a mixture with drawn lines goes on to the same bytes.
TEST_F(Mixtures, ResumeIsExact) {
  std::string texts = "text\n";
  for (int i = 0; i < 9; ++i) texts += "The dog ran to house number " + std::to_string(i) + ".\n";
  Write("texts.tsv", texts);
  const std::string mixture = Write("m.json", R"([{"data": "texts.tsv", "objective": "prefix-lm"},
                          {"data": ")" + SmsSpam("eval.tsv") +
                                                  R"(", "task": "sms_spam"}])");
  const auto train = [&](const std::string& out, int threads) {
    return "train --quiet --base " + Quoted(Stories()) + " --mixture " + mixture + " --out " +
           Path(out) +
           " --mixture-cap 12 --method prompt --virtual-tokens 3 --steps 20 "
           "--batch-size 4 --checkpoint-every 1 --threads " +
           std::to_string(threads);
  };
  ASSERT_EQ(Output(train("whole", 1)), "");
  int kills = 0;
  for (const int step : {2, 7, 13}) {
    const bool resume = Exists("parts/checkpoint/state.safetensors");
    Process process(train("parts", 2) + (resume ? " --resume" : ""), "", Path("o"), Path("e"));
    process.WaitUntil([&] {
      const std::string log = Read("parts/metrics.jsonl");
      return std::count(log.begin(), log.end(), '\n') >= step;
    });
    process.Signal(SIGKILL);
    kills += process.Wait().status == -1;
  }
  EXPECT_GE(kills, 1);
  ASSERT_EQ(Output(train("parts", 1) + " --resume"), "");
  for (const char* file : {"/adapter_model.safetensors", "/checkpoint/state.safetensors"}) {
    EXPECT_TRUE(Read("parts" + std::string(file)) == Read("whole" + std::string(file))) << file;
  }
  Write("texts.tsv", texts + "One more.\n");
  ExpectBad(train("whole", 1) + " --resume", {"data_hash"});
}

// Parts without a template take the command's; --eval-data does too.
TEST_F(Mixtures, TemplatesOfTheParts) {
  const std::string table = Write("a.tsv", "text\tlabel\nhi\tham\nbuy\tspam\n");
  const std::string mixture = Write("m.json", R"([{"data": "a.tsv"},
        {"data": "a.tsv", "input": "Is {text} good?", "target": " {label}",
         "label_words": ["ham", "spam"], "max_tokens": 9, "truncate": true}])");
  const std::string how = "train --quiet --base " + Quoted(Stories()) + " --out " + Path("out") +
                          " --method prompt --steps 2 --mixture " + mixture;
  ASSERT_EQ(Output(how + " --task sms_spam --eval-data " + table), "");
  EXPECT_TRUE(JsonLines(Read("out/metrics.jsonl")).back().contains("eval_accuracy"));
  ExpectBad(how, {"--task NAME"});
}

TEST_F(Mixtures, WrongUse) {
  Part("a.jsonl", 2, 2);
  const auto bad = [&](const std::string& text, const std::vector<std::string>& parts,
                       const std::string& more = "", int status = 1) {
    ExpectBad(TrainMixture("--steps 1 --mixture " + Write("m.json", text) + more), parts, status);
    EXPECT_FALSE(Exists("out"));
  };
  bad("[", {"m.json"});
  bad("{}", {"m.json", "list of parts"});
  bad("[]", {"m.json", "list of parts"});
  bad("[5]", {"m.json: part 1", "object", "found 5"});
  bad("[{}]", {"part 1", "data"});
  bad(R"([{"data": 5}])", {"part 1", "data"});
  bad(R"([{"data": "a.jsonl", "weight": 2}])", {"part 1", "unknown key 'weight'", "rate"});
  bad(R"([{"data": "a.jsonl"}, {"data": "b.jsonl"}])", {"b.jsonl"});
  bad(R"([{"data": "a.jsonl", "rate": 1}, {"data": "a.jsonl"}])", {"part 2", "rate"});
  bad(R"([{"data": "a.jsonl"}, {"data": "a.jsonl", "rate": 1}])", {"part 2", "rate"});
  bad(R"([{"data": "a.jsonl", "rate": 0}])", {"part 1", "rate", "above 0"});
  bad(R"([{"data": "a.jsonl", "rate": -1}])", {"part 1", "rate", "above 0"});
  bad(R"([{"data": "a.jsonl", "rate": "2"}])", {"part 1", "rate"});
  bad(R"([{"data": "a.jsonl", "max_tokens": -3}])", {"part 1", "max_tokens"});
  bad(R"([{"data": "a.jsonl", "objective": "bert"}])", {"part 1", "objective", "prefix-lm"});
  bad(R"([{"data": "a.jsonl", "objective": "lm"}])", {"a.jsonl:1", "labels"});
  bad(R"([{"data": "a.jsonl", "task": "chess"}, {"data": "a.tsv", "task": "chess"}])", {"a.tsv"});
  bad(R"([{"data": "a.jsonl", "label_words": ["a,b", "c"]}])", {"label_words", "a,b"});
  bad(R"([{"data": "a.jsonl", "rate": 1}])", {"--mixture-cap", "without rates"}, " --mixture-cap 5",
      2);
  bad(R"([{"data": "a.jsonl"}])", {"--data", "--mixture", "both"}, " --data " + GoodLine(), 2);
  ExpectBad(TrainMixture("--steps 1"), {"--data FILE", "--mixture FILE", "neither"}, 2);
  ExpectBad(TrainMixture("--steps 1 --mixture-cap 5 --data " + GoodLine()), {"--mixture FILE"}, 2);
  ExpectBad(TrainMixture("--steps 1 --mixture " + Path("no.json")), {"no.json"});
}

class FewShot : public CommandTest {
 protected:
  // The first lines of the SMS messages that are held out.
  std::string SomeSms() const {
    std::string text;
    for (const std::string& line : Lines(ReadWhole(SmsSpam("eval.tsv")))) {
      if (text.size() < 5000) text += line + "\n";
    }
    return Write("data.tsv", text);
  }
};

// The same input written by hand, on a decoder; one shot leaves no choice of order.
TEST_F(FewShot, IsTheTemplateRepeated) {
  const std::string shots = Write("shots.tsv", "text\tlabel\nbuy now\tspam\n");
  const std::string data = Write("data.tsv", "text\tlabel\nhello\tham\nwin\tspam\n");
  const std::string by_hand =
      Write("hand.jsonl", R"({"text": "Text: buy now\nIt is spam ; Text: hello", "label": "ham"})"
                          "\n"
                          R"({"text": "Text: buy now\nIt is spam ; Text: win", "label": "spam"})"
                          "\n");
  const std::string base = " --json --threads 1 --base " + Quoted(Stories()) +
                           " --target ' {label}' --label-words ham,spam";
  const json expected = Json("eval" + base + " --input '{text}\\nIt is' --data " + by_hand);
  const json found = Json("eval" + base + " --input 'Text: {text}\\nIt is' --data " + data +
                          " --shots 1 --shots-data " + shots + " --shot-separator ' ; '");
  EXPECT_EQ(found, expected);
  EXPECT_EQ(Json("eval" + base + " --input 'Text: {text}\\nIt is' --shots 0 --data " + data),
            Json("eval" + base + " --input 'Text: {text}\\nIt is' --data " + data));
}

TEST_F(FewShot, SeedsLimitsAndErrors) {
  const std::string data = Write("data.tsv", "text\tlabel\nhello there\tham\n");
  const std::string predict =
      "predict --threads 1 --task sms_spam --base " + Quoted(Stories()) + " --data " + data + " ";
  const std::string shots = "--shots-data " + Quoted(SmsSpam("train.tsv")) + " --shots ";
  const std::string two = Output(predict + shots + "2 --seed 1");
  EXPECT_EQ(two, Output(predict + shots + "2 --seed 1"));
  EXPECT_NE(two, Output(predict + shots + "2 --seed 2"));
  EXPECT_NE(two, Output(predict));
  // Too many for the base: named, or the first ones left out.
  ExpectBad(predict + shots + "60", {"data.tsv:2", "fewer --shots", "--truncate"});
  EXPECT_NE(Output(predict + shots + "60 --truncate"), Output(predict));
  ExpectBad(predict + shots + "900", {"train.tsv", "900", "found 770"});
  ExpectBad(predict + "--shots 2", {"--shots-data"}, 2);
  ExpectBad(predict + "--shots-data " + data, {"--shots K"}, 2);
  ExpectBad(predict + "--shots 1 --shots-data " + data, {"data.tsv", "another file"});
  ExpectBad(predict + shots + "1 --shot-separator '{text}'", {"--shot-separator", "{text}"});
  ExpectBad(predict + shots + "-1", {"--shots"}, 2);
  ExpectBad("eval --shots 1 --shots-data " + data + " --base " + Quoted(GoldenModel("llama-1")) +
                " --data " + GoodLine(),
            {"--shots", "token ids"});
}

// Every ensemble's answers follow from its members' own.
TEST_F(FewShot, EnsemblesVote) {
  const std::string base = Quoted(Stories());
  const std::string data = SomeSms();
  const std::string tail = " --threads 1 --task sms_spam --base " + base + " --data " + data;
  std::vector<std::vector<json>> alone;
  std::string all;
  for (const char* seed : {"1", "2", "3"}) {
    ASSERT_EQ(Output("train --quiet --base " + base + " --data " + Quoted(SmsSpam("train.tsv")) +
                     " --task sms_spam --method prompt --virtual-tokens 4 --steps 12 --lr 0.1 "
                     "--batch-size 16 --out " +
                     Path(seed) + " --seed " + seed),
              "");
    alone.push_back(JsonLines(Output("predict" + tail + " --adapter " + Path(seed))));
    all += std::string(" --adapter s") + seed + "=" + Path(seed);
  }
  const std::vector<json> voted = JsonLines(Output("predict --ensemble vote" + tail + all));
  ASSERT_EQ(voted.size(), alone[0].size());
  int right = 0, split = 0;
  const std::vector<std::string> rows = Lines(ReadWhole(data));
  for (size_t i = 0; i < voted.size(); ++i) {
    int spam = 0;
    for (const std::vector<json>& member : alone) spam += member[i]["label"] == "spam";
    EXPECT_EQ(voted[i]["votes"]["spam"], spam);
    EXPECT_EQ(voted[i]["votes"]["ham"], 3 - spam);
    const std::string label = spam >= 2 ? "spam" : "ham";
    EXPECT_EQ(voted[i]["label"], label);
    split += spam == 1 || spam == 2;
    right += testing::Value(rows[i + 1], testing::EndsWith("\t" + label));
  }
  EXPECT_GT(split, 0);  // else nothing was voted on
  EXPECT_EQ(Json("eval --json --ensemble=vote" + tail + all)["accuracy"],
            right / static_cast<double>(voted.size()));
  // The flag alone, and a config file's true, mean what they meant before.
  const std::string mean = Output("predict --ensemble mean" + tail + all);
  EXPECT_EQ(Output("predict" + tail + all + " --ensemble"), mean);
  EXPECT_EQ(
      Output("predict" + tail + all + " --config " + Write("c.json", R"({"ensemble": true})")),
      mean);
  EXPECT_EQ(JsonLines(mean)[0].size(), 2u);
  ExpectBad("predict --ensemble=median" + tail + all, {"--ensemble", "median", "mean", "vote"}, 2);
}

// A prompt made of pieces reads as its text, and its discrete form is itself: the same loss.
TEST_F(FewShot, DiscretePrompts) {
  const std::string base = Quoted(Stories());
  const std::string tail =
      " --json --threads 1 --task sms_spam --base " + base + " --data " + SomeSms() + " --adapter ";
  const auto train = [&](const std::string& out, const std::string& how) {
    ASSERT_EQ(
        Output("train --quiet --base " + base + " --data " + Quoted(SmsSpam("train.tsv")) +
               " --task sms_spam --method prompt --batch-size 8 --out " + Path(out) + " " + how),
        "");
  };
  train("words", "--virtual-tokens 5 --init-text 'Once upon a time' --steps 1 --lr 0");
  const std::string neighbors = "neighbors --base " + base + " --adapter ";
  const std::string text = Output(neighbors + Path("words") + " --text");
  EXPECT_THAT(text, HasSubstr("Once upon a"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_EQ(Json(neighbors + Path("words") + " --text --json")["text"].get<std::string>() + "\n",
            text);
  Output(neighbors + Path("words") + " --discretise " + Path("same"));
  EXPECT_EQ(Json("eval" + tail + Path("same")), Json("eval" + tail + Path("words")));

  train("trained", "--virtual-tokens 5 --steps 20 --lr 0.3");
  for (const char* nearness : {"cosine", "distance"}) {
    const std::string out = Path(nearness);
    Output(neighbors + Path("trained") + " --nearness " + nearness + " --discretise " + out);
    const json discrete = Json(neighbors + out + " --top 1 --json");
    const json soft = Json(neighbors + Path("trained") + " --json");
    const char* list = nearness[0] == 'c' ? "cosine" : "euclidean";
    for (size_t p = 0; p < 5; ++p) {
      EXPECT_EQ(discrete["tokens"][p]["euclidean"][0]["value"], 0);
      EXPECT_EQ(discrete["tokens"][p][list][0]["id"], soft["tokens"][p][list][0]["id"]);
    }
    EXPECT_NE(Json("eval" + tail + out)["loss"], Json("eval" + tail + Path("trained"))["loss"]);
  }
  ExpectBad(neighbors + Path("trained") + " --nearness l1", {"--nearness"}, 2);
  ExpectBad("neighbors --text --base " + Quoted(GoldenModel("llama-1")) + " --adapter " +
                Quoted(GoldenAdapter("llama-1", "prompt")),
            {"no tokenizer"});

  // Soft-prompt transfer: another task's adapter folder is where training starts.
  train("transfer",
        "--virtual-tokens 5 --init file --init-file " + Path("trained") + " --steps 1 --lr 0");
  EXPECT_TRUE(Read("transfer/adapter_model.safetensors") ==
              Read("trained/adapter_model.safetensors"));
  ExpectBad("train --base " + base + " --data " + Quoted(SmsSpam("train.tsv")) +
                " --task sms_spam --method prompt --virtual-tokens 6 --init-file " +
                Path("trained") + " --out " + Path("x"),
            {"trained", "expected 6 rows", "found 5"});
}

}  // namespace
}  // namespace permafrost
