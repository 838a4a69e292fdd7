// tokenize, generate and neighbors as a user runs them: against the ids of the reference
// tokenizers, against forward, against a prompt made of vocabulary rows.
#include <cmath>
#include <set>

#include "io/safetensors.h"
#include "tests/cli/command_test_util.h"
#include "tests/cli/safetensors_edit.h"

namespace permafrost {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::string TokenizerFolder(const std::string& name) {
  return PERMAFROST_TEST_DATA "/tokenizers/" + name;
}
json GoldenIds(const std::string& name) {
  return json::parse(ReadWhole(PERMAFROST_GOLDEN "/tokenizers/" + name + ".json"));
}
json GoldenTexts() { return GoldenIds("texts"); }

class TextCommands : public CommandTest {
 protected:
  std::string WriteLines(const std::string& name, const char* key, const json& values) const {
    std::string text;
    for (const json& value : values) text += json{{key, value}}.dump() + "\n";
    return Write(name, text);
  }
  // One {`key`: ...} a line.
  static void ExpectLines(const std::string& output, const char* key, const json& expected) {
    const std::vector<json> lines = JsonLines(output);
    ASSERT_EQ(lines.size(), expected.size());
    for (size_t i = 0; i < lines.size(); ++i) {
      ASSERT_EQ(lines[i].size(), 1u);
      EXPECT_EQ(lines[i][key], expected[i]) << "line " << i + 1;
    }
  }
};

// A tokenizer of tests/data and how many ids --plain leaves out in front and behind.
struct Reference {
  const char* name;
  size_t front, back;
};

class Tokenize : public TextCommands, public testing::WithParamInterface<Reference> {};

TEST_P(Tokenize, GivesTheReferenceIds) {
  const json golden = GoldenIds(GetParam().name);
  const std::string tokenize = "tokenize --base " + Quoted(TokenizerFolder(GetParam().name)) +
                               " --data " + WriteLines("t.jsonl", "text", GoldenTexts());
  ExpectLines(Output(tokenize), "ids", golden["ids"]);
  json plain = json::array();
  for (const json& ids : golden["ids"]) {
    const std::vector<int> all = ids;
    plain.push_back(std::vector<int>(all.begin() + static_cast<long>(GetParam().front),
                                     all.end() - static_cast<long>(GetParam().back)));
  }
  ExpectLines(Output(tokenize + " --plain"), "ids", plain);
}

TEST_P(Tokenize, GivesTheReferenceTexts) {
  json ids = json::array(), texts = json::array();
  const json golden = GoldenIds(GetParam().name);
  for (const json& item : golden["decode"]) {
    if (item["all"].is_null()) continue;  // the sentencepiece library always leaves control out
    ids.push_back(item["ids"]);
    texts.push_back(item["all"]);
  }
  ExpectLines(Output("tokenize --decode --base " + Quoted(TokenizerFolder(GetParam().name)) +
                     " --data " + WriteLines("ids.jsonl", "ids", ids)),
              "text", texts);
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, Tokenize,
                         testing::Values(Reference{"gpt2", 0, 0}, Reference{"llama3", 1, 0},
                                         Reference{"llama2_json", 1, 0}, Reference{"bpe", 1, 0},
                                         Reference{"t5", 0, 1}, Reference{"t5_json", 0, 1}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_F(TextCommands, TokenizeRoundTrip) {
  const json texts = {"Hello, world!", "caf\u00e9 \u6f22\u5b57 \U0001F600", "a  b\tc\nd", ""};
  for (const std::string& base : {TokenizerFolder("gpt2"), TokenizerFolder("llama3"), Stories()}) {
    SCOPED_TRACE(base);
    const std::string tokenize = "tokenize --base " + Quoted(base) + " --data ";
    const std::string ids =
        Output(tokenize + WriteLines("texts.jsonl", "text", texts) + " --plain");
    const std::string back = Output(tokenize + Write("ids.jsonl", ids) + " --decode");
    ExpectLines(back, "text", texts);
  }
  EXPECT_EQ(Output("tokenize --base " + Quoted(Stories()) + " --data " +
                   Write("one.jsonl", "\n{\"text\": \"\"}\n")),
            "{\"ids\":[1]}\n");
}

TEST_F(TextCommands, GenerateJsonIsTheStreamedText) {
  const std::string generate = "generate --threads 1 --base " + Quoted(Stories()) +
                               " --prompt 'The dog' --max-new-tokens 24 ";
  std::set<std::string> texts;
  for (const char* how :
       {"", "--temperature 0.8 --top-k 20 --top-p 0.9 --seed 3", "--temperature 1 --seed 4",
        "--beams 3 --length-penalty 0.5", "--repetition-penalty 1.3"}) {
    SCOPED_TRACE(how);
    const json object = Json(generate + how + " --json");
    ASSERT_EQ(object.size(), 2u);
    EXPECT_LE(object["ids"].size(), 24u);
    EXPECT_GE(object["ids"].size(), 1u);
    const std::string text = object["text"];
    EXPECT_EQ(Output(generate + how), text + "\n");         // and twice the same
    EXPECT_THAT(text, testing::Not(HasSubstr("The dog")));  // the new text only
    texts.insert(text);
  }
  EXPECT_GE(texts.size(), 4u);  // each way goes its own
}

// The greedy ids are what forward finds likeliest after each prefix.
TEST_F(TextCommands, GenerateIsGreedyByDefault) {
  const std::string base = Quoted(Stories());
  const json object =
      Json("generate --base " + base + " --prompt 'The dog' --max-new-tokens 6 --json");
  std::vector<int> ids = JsonLines(Output("tokenize --base " + base + " --data " +
                                          Write("t.jsonl", "{\"text\": \"The dog\"}\n")))[0]["ids"];
  const size_t prompt = ids.size();
  for (const int id : object["ids"]) ids.push_back(id);
  const std::string data = Write("ids.jsonl", json{{"input_ids", ids}}.dump() + "\n");
  ASSERT_EQ(Run(Forward(Stories(), data)).status, 0);
  const auto file = SafetensorsFile::Open(Path("out.safetensors"));
  ASSERT_TRUE(file.ok());
  const TensorView& logits = *file->Find("logits.0");
  const size_t vocabulary = static_cast<size_t>(logits.shape[1]);
  std::vector<float> values(static_cast<size_t>(logits.num_elements()));
  ASSERT_TRUE(ReadAsF32(logits, 0, absl::MakeSpan(values)).ok());
  for (size_t i = prompt; i < ids.size(); ++i) {
    const auto row = values.begin() + static_cast<long>((i - 1) * vocabulary);
    EXPECT_EQ(ids[i], std::max_element(row, row + static_cast<long>(vocabulary)) - row);
  }
}

TEST_F(TextCommands, GenerateEndsBeforeTheStopText) {
  const std::string generate =
      "generate --base " + Quoted(Stories()) + " --prompt 'Once upon a time' --max-new-tokens 40 ";
  const std::string whole = Json(generate + "--json")["text"];
  const std::string stop = whole.substr(whole.find(' ', 12), 5);
  const std::string expected = whole.substr(0, whole.find(stop));
  EXPECT_EQ(Json(generate + "--json --stop " + Quoted(stop))["text"], expected);
  EXPECT_EQ(Output(generate + "--stop " + Quoted(stop)), expected + "\n");
  EXPECT_EQ(Json(generate + "--json --beams 1 --stop 'no such text'")["text"], whole);
}

// One adapter acts on the prompt whether or not it was given a name; several would be a guess.
TEST_F(TextCommands, GenerateWithAnAdapter) {
  const std::string base = Quoted(Stories());
  ASSERT_EQ(Output("train --quiet --base " + base + " --data " + Quoted(SmsSpam("train.tsv")) +
                   " --task sms_spam --method prompt --virtual-tokens 4 --init random "
                   "--init-range 9 --steps 1 --batch-size 2 --lr 0.3 --out " +
                   Path("a")),
            "");
  const std::string generate =
      "generate --base " + base + " --prompt 'The dog' --max-new-tokens 8 --json ";
  const json bare = Json(generate), adapted = Json(generate + "--adapter " + Path("a"));
  EXPECT_NE(bare, adapted);
  EXPECT_EQ(Json(generate + "--adapter name=" + Path("a")), adapted);
  ExpectBad(generate + "--adapter x=" + Path("a") + " --adapter y=" + Path("a"), {"--adapter"}, 2);
}

// A prompt whose rows are rows of the vocabulary (two of them the same) finds those rows.
TEST_F(TextCommands, NeighborsOfAPromptMadeOfTheVocabulary) {
  const std::string base = GoldenModel("llama-1");
  Copy(GoldenAdapter("llama-1", "prompt"), "adapter");
  const RawSafetensors weights = RawSafetensors::Read(base + "/model.safetensors");
  RawSafetensors prompt = RawSafetensors::Read(Path("adapter/adapter_model.safetensors"));
  const std::vector<int> rows = {17, 130, 0, 17, 64};
  for (size_t p = 0; p < rows.size(); ++p) {
    for (size_t i = 0; i < 30; ++i) {
      float value = 0;
      std::memcpy(&value,
                  weights.data.data() + weights.Begin("model.embed_tokens.weight") +
                      4 * (30 * static_cast<size_t>(rows[p]) + i),
                  4);
      prompt.SetFloat("prompt_embeddings", 30 * p + i, p == 4 ? 2 * value : value);
    }
  }
  Write("adapter/adapter_model.safetensors", prompt.Bytes());
  const std::string neighbors =
      "neighbors --base " + Quoted(base) + " --adapter " + Path("adapter") + " --top 3";
  const json object = Json(neighbors + " --json");
  EXPECT_EQ(object["virtual_tokens"], 5);
  for (size_t p = 0; p < rows.size(); ++p) {
    const json& token = object["tokens"][p];
    EXPECT_EQ(token["index"], p);
    for (const char* metric : {"cosine", "euclidean"}) {
      const json& list = token[metric];
      ASSERT_EQ(list.size(), 3u);
      EXPECT_EQ(list[0]["id"], p == 4 && metric[0] == 'e' ? list[0]["id"] : json(rows[p]));
    }
    EXPECT_NEAR(token["cosine"][0]["value"], 1, 1e-6);
    if (p != 4) {
      EXPECT_EQ(token["euclidean"][0]["value"], 0);
    }
    EXPECT_GE(token["cosine"][0]["value"], token["cosine"][1]["value"]);
    EXPECT_LE(token["euclidean"][0]["value"], token["euclidean"][1]["value"]);
  }
  const json& clusters = object["clusters"]["cosine"];
  EXPECT_EQ(clusters["distinct_nearest"], 4);
  EXPECT_EQ(clusters["shared"], json::parse(R"([{"id": 17, "piece": "", "tokens": [0, 3]}])"));
  const std::string text = Output(neighbors);
  EXPECT_THAT(text, HasSubstr("4 distinct nearest pieces of 5 virtual tokens"));
  EXPECT_THAT(text, HasSubstr("#17"));
  ExpectBad(
      "neighbors --base " + Quoted(base) + " --adapter " + Quoted(GoldenAdapter("llama-1", "lora")),
      {"expected a prompt adapter, found LoRA"});
}

}  // namespace
}  // namespace permafrost
