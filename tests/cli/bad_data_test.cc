// Data files with a bad line: named by file and number, before anything is written.
#include "tests/cli/command_test_util.h"

namespace permafrost {
namespace {

class BadData : public CommandTest {
 protected:
  static std::string Repeated(const char* token, int count) {
    std::string ids = token;
    for (int i = 1; i < count; ++i) ids += std::string(",") + token;
    return ids;
  }
  // A token line beyond a good and a blank one: number 3.
  void ExpectTokens(const std::string& line, std::vector<std::string> parts,
                    const std::string& base = "llama-1") const {
    const std::string good = base[0] == 't' ? "{\"input_ids\": [5], \"labels\": [6, 1]}\n\n"
                                            : "{\"input_ids\": [5], \"labels\": [5]}\n\n";
    const std::string data = Write("tokens.jsonl", good + line + "\n");
    parts.push_back("tokens.jsonl:3: ");
    ExpectBad(Train(GoldenModel(base), data, "--method prompt --steps 1"), parts);
    EXPECT_FALSE(Exists("out"));
  }
  void ExpectTexts(const std::string& name, const std::string& text,
                   const std::vector<std::string>& parts, const std::string& more = "") const {
    const std::string data = Write(name, text);
    const std::string flags = "--base " + Quoted(Stories()) + " --data " + Quoted(data) +
                              " --input 'sms: {text}' --target '{label}' --label-words ham,spam " +
                              more;
    std::vector<std::string> all = parts;
    all.push_back(name);
    for (const std::string& command :
         {"eval " + flags,
          "train --quiet --method prompt --steps 1 --out " + Quoted(Path("out")) + " " + flags}) {
      ExpectBad(command, all);
    }
    EXPECT_FALSE(Exists("out"));
  }
};

TEST_F(BadData, TokenLines) {
  ExpectTokens("{\"input_ids\": [5", {"JSON error"});
  ExpectTokens("[5, 6]", {"expected a JSON object"});
  ExpectTokens("{\"text\": \"a\"}", {"input_ids"});
  ExpectTokens("{\"input_ids\": 5, \"labels\": [5]}", {"input_ids", "found 5"});
  ExpectTokens("{\"input_ids\": [], \"labels\": []}", {"input_ids"});
  ExpectTokens("{\"input_ids\": [5]}", {"labels"});
  ExpectTokens("{\"input_ids\": [5, 6], \"labels\": [5]}", {"2 input_ids and 1 label"});
  ExpectTokens("{\"input_ids\": [5.5], \"labels\": [5]}", {"input_ids[0]", "5.5"});
  ExpectTokens("{\"input_ids\": [5], \"labels\": [5], \"attention_mask\": [1]}",
               {"attention_mask"});
  ExpectTokens("{\"input_ids\": [\"\xff\"], \"labels\": [5]}", {"UTF-8"});
}

TEST_F(BadData, IdsOutsideTheVocabulary) {
  for (const char* base : {"llama-1", "gpt2-1", "t5-v1_0-1"}) {
    SCOPED_TRACE(base);
    ExpectTokens("{\"input_ids\": [131], \"labels\": [5]}", {"input_ids[0]", "0 to 130", "131"},
                 base);
    ExpectTokens("{\"input_ids\": [-1], \"labels\": [5]}", {"input_ids[0]", "found -1"}, base);
    ExpectTokens("{\"input_ids\": [5], \"labels\": [131]}", {"labels[0]", "0 to 130", "131"}, base);
    ExpectTokens("{\"input_ids\": [5], \"labels\": [-1]}", {"labels[0]", "-100", "found -1"}, base);
    ExpectTokens("{\"input_ids\": [5], \"labels\": [-101]}", {"labels[0]", "-101"}, base);
    ExpectTokens("{\"input_ids\": [99999999999999999999], \"labels\": [5]}", {"input_ids[0]"},
                 base);
    ExpectTokens("{\"input_ids\": [4294967301], \"labels\": [5]}", {"4294967301"}, base);
  }
}

TEST_F(BadData, NothingToLearnFrom) {
  const std::string base = GoldenModel("llama-1");
  for (const char* text : {"", "\n\n", " \r\n"}) {
    const std::string data = Write("empty.jsonl", text);
    ExpectBad(Train(base, data, "--method prompt --steps 1"), {"empty.jsonl", "found none"});
    ExpectBad(Forward(base, data), {"empty.jsonl", "found none"});
  }
  const std::string data =
      Write("unlabelled.jsonl", "{\"input_ids\": [5, 6], \"labels\": [-100, -100]}\n");
  ExpectBad(Train(base, data, "--method lora --steps 1"),
            {"unlabelled.jsonl", "no labelled token"});
  ExpectBad(Train(base, Path("nowhere.jsonl"), "--method lora --steps 1"), {"nowhere.jsonl"});
  ExpectBad(Train(base, Path(""), "--method lora --steps 1"), {"directory"});
  ExpectBad(Train(base, GoodLine(), "--method lora --steps 1 --eval-data " + Path("no.jsonl")),
            {"no.jsonl"});
  EXPECT_FALSE(Exists("out"));
  ExpectTexts("empty.tsv", "", {"found none"});
  ExpectTexts("empty.csv", "\n", {"found none"});
  ExpectTexts("header.tsv", "text\tlabel\n", {"at least one row"});
  ExpectTexts("data.txt", "text\tlabel\n", {".tsv, .csv or .jsonl"});
}

TEST_F(BadData, TextLines) {
  ExpectTexts("a.tsv", "text\tlabel\nhi\tham\n\nbad\n", {"a.tsv:4", "2 columns", "found 1"});
  ExpectTexts("a.tsv", "text\tlabel\nhi\tham\tmore\n", {"a.tsv:2", "found 3"});
  ExpectTexts("a.tsv", "text\ttext\nhi\tham\n", {"a.tsv:1", "two columns are named 'text'"});
  ExpectTexts("a.tsv", "text\nhi\n", {"column 'label'"});
  ExpectTexts("a.csv", "text,label\nhi,ham\n\"bad,ham\n", {"a.csv:3", "never closed"});
  ExpectTexts("a.csv", "text,label\n\"two\nlines\",ham\nhi\n", {"a.csv:4", "found 1"});
  ExpectTexts("a.jsonl", "{\"text\": \"hi\", \"label\": \"ham\"}\n\n{\"text\": \"hi\"\n",
              {"a.jsonl:3", "JSON error"});
  ExpectTexts("a.jsonl", "{\"text\": \"hi\", \"label\": \"ham\"}\n{\"text\": \"hi\"}\n",
              {"a.jsonl:2", "label"});
  ExpectTexts("a.jsonl", "{\"text\": [1], \"label\": \"ham\"}\n", {"a.jsonl:1", "text"});
  ExpectTexts("a.tsv", "text\tlabel\nhi\tham\nyo\teggs\n", {"a.tsv:3", "ham, spam", "eggs"});
  // Terminal codes of a stranger's file do not reach the terminal.
  ExpectTexts("a.tsv", "text\tlabel\nhi\teggs\x1b[2J\n", {"a.tsv:2", "'eggs [2J'"});
  ExpectTexts("a.tsv", "text\tlabel\nhi\tham\nyo\t2\n", {"a.tsv:3", "index from 0 to 1", "'2'"});
}

TEST_F(BadData, TextThatIsNotUtf8) {
  for (const char* bytes : {"\xff", "\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf5\x80\x80\x80"}) {
    ExpectTexts("u.tsv", std::string("text\tlabel\nhi\tham\na") + bytes + "\tspam\n",
                {"u.tsv:3", "UTF-8"});
    ExpectTexts("u.csv", std::string("text,label\nhi,ham\na") + bytes + ",spam\n",
                {"u.csv:3", "UTF-8"});
    ExpectTexts("u.jsonl",
                std::string("{\"text\": \"a\", \"label\": \"ham\"}\n{\"text\": \"a") + bytes +
                    "\", \"label\": \"ham\"}\n",
                {"u.jsonl:2", "UTF-8"});
    const std::string texts = Write("t.jsonl", std::string("{\"text\": \"") + bytes + "\"}\n");
    ExpectBad("tokenize --base " + Quoted(Stories()) + " --data " + texts, {"t.jsonl:1", "UTF-8"});
  }
  ExpectBad("generate --base " + Quoted(Stories()) + " --prompt \"$(printf '\\377')\"",
            {"--prompt", "UTF-8"});
}

TEST_F(BadData, Templates) {
  const std::string flags =
      "--base " + Quoted(Stories()) + " --data " + Quoted(Write("a.tsv", "text\tlabel\nhi\tham\n"));
  ExpectBad("eval " + flags, {"--task NAME", "--input TEMPLATE"});
  ExpectBad("eval --task chess " + flags, {"chess", "sst2"});
  ExpectBad("eval --input '{sentence}' " + flags, {"a.tsv", "sentence", "text, label"});
  ExpectBad("eval --input '{text' " + flags, {"{text", "not closed"});
  ExpectBad("eval --input '{text}' --label-words ham " + flags, {"label words", "two words"});
  ExpectBad("eval --input '{text}' --label-words ham,ham " + flags, {"'ham' occurs twice"});
  ExpectBad("eval --input '{text}' --label-words ham,spam --label-column kind " + flags,
            {"a.tsv", "kind"});
}

// GPT-2 has 160 learned positions; a prompt takes its share of them.
TEST_F(BadData, InputLongerThanThePositions) {
  const auto line = [&](int tokens) {
    const std::string ids = Repeated("5", tokens);
    return Write("long.jsonl", "{\"input_ids\": [5], \"labels\": [5]}\n{\"input_ids\": [" + ids +
                                   "], \"labels\": [" + ids + "]}\n");
  };
  const std::string base = GoldenModel("gpt2-1");
  ExpectBad(Forward(base, line(161)),
            {"long.jsonl:2", "n_positions 160", "found 161", "--truncate"});
  EXPECT_EQ(Run(Forward(base, line(161), "--truncate")).status, 0);
  EXPECT_EQ(Run(Forward(base, line(160))).status, 0);
  const std::string train = "--method prompt --virtual-tokens 4 --steps 1";
  ExpectBad(Train(base, line(157), train), {"long.jsonl:2", "n_positions 160", "found 161"});
  EXPECT_EQ(Run(Train(base, line(157), train + " --truncate")).status, 0);
  EXPECT_EQ(Run(Train(base, line(156), train)).status, 0);
  ExpectBad(Train(base, line(9), train + " --max-tokens 8"),
            {"long.jsonl:2", "--max-tokens 8", "found 9"});
  EXPECT_EQ(Run(Train(base, line(9), train + " --max-tokens 8 --truncate")).status, 0);
  EXPECT_EQ(Run(Train(base, line(8), train + " --max-tokens 8")).status, 0);
  // No room is left for any text.
  ExpectBad(Train(base, line(9), "--method prompt --virtual-tokens 160 --steps 1 --truncate"),
            {"long.jsonl:1", "n_positions 160"});
}

TEST_F(BadData, PromptOfGenerateLongerThanThePositions) {
  std::string words = "once";
  for (int i = 0; i < 1000; ++i) words += " upon a time";
  Write("prompt.txt", words);
  ExpectBad("generate --base " + Quoted(Stories()) + " --max-new-tokens 2 --prompt \"$(cat " +
                Quoted(Path("prompt.txt")) + ")\"",
            {"2048", "tokens"});
}

TEST_F(BadData, TokenizeNamesTheLine) {
  const auto expect = [&](const std::string& text, const std::string& more,
                          const std::vector<std::string>& parts) {
    const std::string data = Write("t.jsonl", text);
    const Outcome o = Run("tokenize --base " + Quoted(Stories()) + " --data " + data + " " + more);
    EXPECT_EQ(o.status, 1);
    for (const std::string& part : parts) EXPECT_THAT(o.err, testing::HasSubstr(part));
  };
  expect("{\"text\": \"a\"}\n{\"txt\": \"a\"}\n", "", {"t.jsonl:2", "text"});
  expect("{\"ids\": [1, -3]}\n", "--decode", {"t.jsonl:1", "found -3"});
  expect("{\"ids\": [99999999999]}\n", "--decode", {"t.jsonl:1", "99999999999"});
  expect("{\"ids\": \"x\"}\n", "--decode", {"t.jsonl:1", "ids"});
}

}  // namespace
}  // namespace permafrost
