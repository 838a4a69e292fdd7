// Training on running text and with sentinel targets as a user does it: against losses of token
// lines made by hand, on a decoder and on a T5 base with a vocabulary of words.
#include "peft/objectives.h"
#include "tests/cli/command_test_util.h"

namespace permafrost {
namespace {

using nlohmann::json;
using Ids = std::vector<int>;

class RunningText : public CommandTest {
 protected:
  // A random T5 base whose words w3 to w120 are the ids 3 to 120 and whose last ten ids are
  // sentinels.
  std::string T5() const {
    const std::string folder = Copy(GoldenModel("t5-v1_1-1"), "t5");
    json vocabulary = {{"<pad>", 0}, {"</s>", 1}, {"<unk>", 2}}, added = json::array();
    for (int id = 3; id <= 120; ++id) vocabulary["w" + std::to_string(id)] = id;
    for (int i = 0; i < 10; ++i) {
      vocabulary["<extra_id_" + std::to_string(i) + ">"] = 130 - i;
    }
    for (const auto& [text, id] : vocabulary.items()) {
      if (text[0] != '<') continue;
      added.push_back({{"id", id},
                       {"content", text},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", true}});
    }
    const json end = {{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}};
    const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
    const json tokenizer = {
        {"version", "1.0"},
        {"truncation", nullptr},
        {"padding", nullptr},
        {"added_tokens", added},
        {"normalizer", nullptr},
        {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
        {"post_processor",
         {{"type", "TemplateProcessing"},
          {"single", {text, end}},
          {"pair", {text, end}},
          {"special_tokens", {{"</s>", {{"id", "</s>"}, {"ids", {1}}, {"tokens", {"</s>"}}}}}}}},
        {"decoder", nullptr},
        {"model", {{"type", "WordLevel"}, {"vocab", vocabulary}, {"unk_token", "<unk>"}}}};
    Write("t5/tokenizer.json", tokenizer.dump());
    Write("t5/tokenizer_config.json",
          json{{"eos_token", "</s>"}, {"unk_token", "<unk>"}, {"pad_token", "<pad>"}}.dump());
    return folder;
  }
  static std::string Words(const Ids& ids) {
    std::string text;
    for (const int id : ids) text += (text.empty() ? "w" : " w") + std::to_string(id);
    return text;
  }
  static Ids Text(int first, int count) {
    Ids ids;
    for (int i = 0; i < count; ++i) ids.push_back(3 + (first + 5 * i) % 118);
    return ids;
  }
  double Loss(const std::string& base, const std::string& data, const std::string& more) const {
    return Json("eval --json --threads 1 --base " + Quoted(base) + " --data " + data + " " +
                more)["loss"];
  }
  void ExpectLoss(const std::string& base, const std::string& data, const std::string& more,
                  const std::vector<TokenLine>& lines) const {
    std::string text;
    for (const TokenLine& line : lines) {
      text += json{{"input_ids", line.input_ids}, {"labels", line.labels}}.dump() + "\n";
    }
    EXPECT_DOUBLE_EQ(Loss(base, data, more), Loss(base, Write("by_hand.jsonl", text), "")) << more;
  }
};

TEST_F(RunningText, SpanCorruption) {
  const std::string base = T5();
  std::string table = "id\ttext\n";
  const std::vector<Ids> texts = {Text(0, 30), Text(9, 7), Text(2, 1), Text(50, 45)};
  for (const Ids& ids : texts) table += "x\t" + Words(ids) + "\n";
  const std::string data = Write("texts.tsv", table);
  ObjectiveConfig config{.objective = Objective::kSpanCorruption,
                         .encoder_decoder = true,
                         .spans = {.density = .3, .mean_span = 2},
                         .sentinels = {},
                         .end_token = 1};
  for (int i = 0; i < 10; ++i) config.sentinels.push_back(130 - i);
  std::vector<TokenLine> whole, windows;
  for (const Ids& ids : texts) {
    Random random = LineRandom(4, 0, whole.size());
    whole.push_back(MakeObjectiveLine(config, {{ids.begin(), ids.end()}, 0}, 0, random));
    // 13 tokens: 9 that stay, 2 spans of 4 in all, </s>: 12. 14 would make 13.
    for (size_t begin = 0; begin < ids.size(); begin += 13) {
      const size_t end = std::min(ids.size(), begin + 13);
      Random other = LineRandom(4, 0, windows.size());
      windows.push_back(MakeObjectiveLine(
          config,
          {{ids.begin() + static_cast<long>(begin), ids.begin() + static_cast<long>(end)}, 0}, 0,
          other));
    }
  }
  const std::string how = "--objective span-corruption --noise-density 0.3 --mean-span 2 --seed 4";
  ExpectLoss(base, data, how, whole);
  ExpectLoss(base, data, how + " --max-tokens 12", windows);
  for (const TokenLine& line : windows) EXPECT_LE(line.input_ids.size(), 12u);
  EXPECT_NE(Loss(base, data, how), Loss(base, data, how + "1"));  // seed 41
  // The same texts as token ids.
  std::string tokens;
  for (const Ids& ids : texts) tokens += json{{"input_ids", ids}}.dump() + "\n";
  ExpectLoss(base, Write("tokens.jsonl", tokens), how, whole);
}

TEST_F(RunningText, PrefixLanguageModel) {
  const std::string base = T5();
  const Ids ids = Text(1, 20);
  const std::string data =
      Write("t.jsonl", json{{"body", Words(ids)}}.dump() + "\n" + json{{"body", "w7"}}.dump());
  Random random = LineRandom(0, 0, 0);
  const int64_t split = 1 + random.Below(19);
  TokenLine line{{ids.begin(), ids.begin() + split}, {ids.begin() + split, ids.end()}, 0};
  line.input_ids.push_back(1);
  line.labels.push_back(1);
  ExpectLoss(base, data, "--objective prefix-lm --input '{body}'", {line, {{1}, {7, 1}, 0}});
}

TEST_F(RunningText, LanguageModelOfADecoder) {
  const json bare = JsonLines(Output("tokenize --base " + Quoted(Stories()) + " --data " +
                                     Write("t.jsonl", R"({"text": "The dog ran to the old house."})"
                                                      "\n")))[0]["ids"];
  std::vector<int32_t> ids = bare;
  ids.push_back(2);  // </s>
  ASSERT_GE(ids.size(), 9u);
  const std::string data = Write("t.tsv", "text\nThe dog ran to the old house.\n");
  ExpectLoss(Stories(), data, "--objective lm", {{ids, ids, 0}});
  // Windows of 4, each with the last token of the one before as context.
  std::vector<TokenLine> windows;
  for (size_t next = 0; next < ids.size();) {
    const size_t begin = next == 0 ? 0 : next - 1, end = std::min(ids.size(), begin + 4);
    TokenLine line;
    for (size_t i = begin; i < end; ++i) {
      line.input_ids.push_back(ids[i]);
      line.labels.push_back(i < next ? -100 : ids[i]);
    }
    windows.push_back(line);
    next = end;
  }
  ExpectLoss(Stories(), data, "--objective lm --max-tokens 4", windows);
  // A text longer than the base's positions is cut without being asked.
  std::string text = "text\n";
  for (int i = 0; i < 700; ++i) text += "dog ";
  EXPECT_GT(Loss(Stories(), Write("long.tsv", text + "\n"), "--objective lm"), 0);
}

TEST_F(RunningText, TrainsAndResumes) {
  const std::string base = T5();
  std::string table = "text\n";
  for (int i = 0; i < 12; ++i) table += Words(Text(3 * i, 40 + i)) + "\n";
  const std::string data = Write("texts.tsv", table);
  const std::string how =
      "--method prompt --virtual-tokens 4 --objective span-corruption --steps 9 --batch-size 4 "
      "--optimizer adamw --eval-data " +
      data + " ";
  ASSERT_EQ(Output(Train(base, data, how + "--lr 0.3")), "");
  const json run = json::parse(Read("out/run.json"));
  EXPECT_EQ(run["objective"], "span-corruption");
  EXPECT_EQ(run["noise_density"], 0.15);
  EXPECT_EQ(run["mean_span"], 3.0);
  const std::vector<json> log = JsonLines(Read("out/metrics.jsonl"));
  EXPECT_LT(log[8]["loss"], log[0]["loss"]);
  // A line differs from epoch to epoch, so the same three batches do not come again.
  ASSERT_EQ(Output(Train(base, data, how + "--order file --lr 0")), "");
  const std::vector<json> still = JsonLines(Read("out/metrics.jsonl"));
  EXPECT_NE(still[0]["loss"], still[3]["loss"]);
  EXPECT_NE(still[3]["loss"], still[6]["loss"]);
  ExpectBad(Train(base, data, how + "--order file --lr 0 --resume --noise-density 0.3"),
            {"noise_density"});
}

// The label scores of a T5 base do not depend on a first token that all words share, but the loss
// and what the words follow do.
TEST_F(RunningText, SentinelTargets) {
  const std::string base = T5();
  const std::string data = Write("t.tsv", "text\tlabel\nw5 w6 w7\tw8\nw9\tw10\n");
  const std::string flags = "--input '{text}' --target '{label}' --label-words w8,w10 ";
  const std::string by_hand = Write("h.jsonl",
                                    "{\"input_ids\": [5, 6, 7, 1], \"labels\": [130, 8, 1]}\n"
                                    "{\"input_ids\": [9, 1], \"labels\": [130, 10, 1]}\n");
  EXPECT_DOUBLE_EQ(Loss(base, data, flags + "--target-format sentinel"), Loss(base, by_hand, ""));
  const std::string plain = Write("p.jsonl",
                                  "{\"input_ids\": [5, 6, 7, 1], \"labels\": [8, 1]}\n"
                                  "{\"input_ids\": [9, 1], \"labels\": [10, 1]}\n");
  EXPECT_DOUBLE_EQ(Loss(base, plain, "--target-format sentinel"), Loss(base, by_hand, ""));
  EXPECT_NE(Loss(base, data, flags), Loss(base, by_hand, ""));

  // Trained to answer, it answers without the sentinel.
  ASSERT_EQ(Output(Train(base, data,
                         flags + "--target-format sentinel --method full --optimizer adamw --lr "
                                 "0.01 --schedule constant --steps 60 --batch-size 2")),
            "");
  const std::string answer = "--base " + Quoted(base) + " --adapter " + Path("out") + " --data " +
                             data + " --target-format sentinel ";
  const std::vector<json> lines =
      JsonLines(Output("predict --max-new-tokens 4 --input '{text}' " + answer));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["text"], "w8");
  EXPECT_EQ(lines[0]["ids"], json({130, 8, 1}));
  EXPECT_EQ(lines[1]["text"], "w10");
  const json metrics =
      Json("eval --json --generate " + answer + "--input '{text}' --target '{label}'");
  EXPECT_EQ(metrics["exact_match"], 1.0);
  EXPECT_EQ(Json("eval --json --generate " + answer + flags)["accuracy"], 1.0);
  EXPECT_EQ(Json("eval --json " + answer + flags)["accuracy"], 1.0);
  ExpectBad("eval --score first " + answer + flags, {"--score first", "sum"}, 2);
  ExpectBad(Train(base, data, flags + "--target-format sentinel --method full --score mean"),
            {"--score mean", "sum"}, 2);
}

TEST_F(RunningText, SentinelTargetsOfAnchoredPrompts) {
  const std::string base = T5();
  const std::string data = Write("t.tsv", "text\tlabel\nw5 w6 w7\tw8\nw9\tw10\n");
  const std::string flags = "--target '{label}' --label-words w8,w10 --target-format sentinel ";
  Output(Train(base, data, flags + "--input '{v*2} {text} {v*1}' --method prompt --steps 2"));
  const std::string by_hand =
      Write("h.jsonl",
            "{\"input_ids\": [-1, -1, 5, 6, 7, -1, 1], \"labels\": [130, 8, 1]}\n"
            "{\"input_ids\": [-1, -1, 9, -1, 1], \"labels\": [130, 10, 1]}\n");
  const std::string adapter = "--adapter " + Quoted(Path("out")) + " ";
  EXPECT_DOUBLE_EQ(Loss(base, data, adapter + flags), Loss(base, by_hand, adapter));
}

// gpt2-1 has 160 learned positions; a prefix of 7 takes the first.
TEST_F(RunningText, WindowsLeaveRoomForAPrefix) {
  json ids = json::array();
  for (int i = 0; i < 400; ++i) ids.push_back(3 + i % 40);
  const std::string data = Write("long.jsonl", json{{"input_ids", ids}}.dump() + "\n");
  const std::string how = "--threads 1 --objective lm --method prefix --virtual-tokens ";
  EXPECT_EQ(Output(Train(GoldenModel("gpt2-1"), data, how + "7 --steps 1 --batch-size 4")), "");
  ExpectBad(Train(GoldenModel("gpt2-1"), data, how + "159"), {"room for at least 2", "found 1"});
}

TEST_F(RunningText, WrongUse) {
  const std::string t5 = T5(), data = Write("t.tsv", "text\nw5 w6\n");
  const std::string on_t5 = "eval --base " + Quoted(t5) + " --data " + data + " --objective ";
  const std::string stories =
      "eval --base " + Quoted(Stories()) + " --data " + data + " --objective ";
  ExpectBad(on_t5 + "lm", {"--objective lm", "decoder base", "found t5"});
  ExpectBad(stories + "span-corruption", {"--objective span-corruption", "t5", "found llama"});
  ExpectBad("eval --target-format sentinel --base " + Quoted(Stories()) + " --data " + data +
                " --input '{text}' --target '{text}'",
            {"--target-format sentinel", "found llama"});
  ExpectBad("eval --target-format sentinel --base " + Quoted(GoldenModel("t5-v1_1-1")) +
                " --data " + Quoted(GoldenModel("t5-v1_1-1") + "/data.jsonl"),
            {"--target-format sentinel", "<extra_id_0>"});
  ExpectBad("eval --objective span-corruption --base " + Quoted(GoldenModel("t5-v1_1-1")) +
                " --data " + Write("ids.jsonl", "{\"input_ids\": [5]}\n"),
            {"<extra_id_0>"});
  ExpectBad(stories + "lm --input '{body}'", {"t.tsv", "body", "text"});
  ExpectBad(stories + "lm --max-tokens 1", {"at least 2 tokens", "--max-tokens"});
  ExpectBad(on_t5 + "span-corruption --max-tokens 2", {"--max-tokens"});
  ExpectBad("eval --base " + Quoted(Stories()) + " --objective lm --data " +
                Write("e.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\"}\n"),
            {"e.jsonl:2", "empty"});
  ExpectBad(
      "eval --base " + Quoted(GoldenModel("llama-1")) + " --objective lm --data " + GoodLine(),
      {"good.jsonl:1", "labels"});
  for (const char* more :
       {"lm --task sst2", "lm --label-words a,b", "lm --target '{text}'", "lm --truncate",
        "lm --noise-density 0.2", "prefix-lm --mean-span 2", "lm --generate",
        "supervised --input '{text}' --mean-span 2", "span-corruption --noise-density 2",
        "lm --shots 2 --shots-data x.tsv", "bert"}) {
    ExpectBad(stories + more, {}, 2);
  }
  ExpectBad(on_t5 + "span-corruption --noise-density 0", {"noise density"});
  ExpectBad(Train(Stories(), data, "--method prompt --objective lm --task sst2 --steps 1"),
            {"--task"}, 2);
  ExpectBad("predict --base " + Quoted(Stories()) + " --data " + data + " --objective lm", {}, 2);
}

}  // namespace
}  // namespace permafrost
