// Tokenizers from GGUF vocabularies: the same ids as from the files that the vocabularies come
// from.

#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/file.h"
#include "io/json.h"
#include "io/tokenizer.h"
#include "io/tokenizer_sentencepiece.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json ReadJson(const std::string& path) {
  const auto value = ReadJsonFile(path);
  EXPECT_TRUE(value.ok()) << value.status();
  return value.ok() ? *value : json();
}

std::string Data(const std::string& path) {
  return std::string(PERMAFROST_TEST_DATA) + "/tokenizers/" + path;
}

json Golden(const std::string& name) {
  return ReadJson(std::string(PERMAFROST_GOLDEN) + "/tokenizers/" + name + ".json");
}

// What a converter writes for a byte-level tokenizer.json.
GgufVocabulary ByteLevelVocabulary(const std::string& name, const std::string& pre) {
  const json file = ReadJson(Data(name + "/tokenizer.json"));
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = pre;
  const json& model = file["model"];
  vocabulary.tokens.resize(model["vocab"].size());
  vocabulary.token_types.assign(vocabulary.tokens.size(), 1);
  for (const auto& [token, id] : model["vocab"].items())
    vocabulary.tokens[id.get<size_t>()] = token;
  for (const json& token : file["added_tokens"]) {
    vocabulary.token_types[token["id"].get<size_t>()] = 3;
  }
  for (const json& merge : model["merges"]) {
    vocabulary.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  return vocabulary;
}

GgufVocabulary LlamaVocabulary() {
  const auto bytes = ReadFile(Data("bpe/tokenizer.model"));
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  const auto spec = ParseSentencePiece(*bytes);
  EXPECT_TRUE(spec.ok()) << spec.status();
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  for (const auto& piece : spec->pieces) {
    vocabulary.tokens.push_back(piece.text);
    vocabulary.scores.push_back(piece.score);
    vocabulary.token_types.push_back(static_cast<int64_t>(piece.type));
  }
  vocabulary.unk = 0;
  vocabulary.bos = 1;
  vocabulary.eos = 2;
  return vocabulary;
}

void ExpectGolden(const GgufVocabulary& vocabulary, const std::string& name) {
  const auto tokenizer = TokenizerFromGguf(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const json texts = Golden("texts");
  const json golden = Golden(name);
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto ids = (*tokenizer)->Encode(texts[i].get<std::string>(), Special::kAdd);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, golden["ids"][i].get<std::vector<int>>()) << texts[i].dump();
  }
  for (const json& item : golden["decode"]) {
    EXPECT_EQ((*tokenizer)->Decode(item["ids"].get<std::vector<int>>(), true),
              item["text"].get<std::string>());
  }
}

TEST(TokenizerGgufTest, Gpt2) { ExpectGolden(ByteLevelVocabulary("gpt2", "gpt-2"), "gpt2"); }
TEST(TokenizerGgufTest, SmolLm) { ExpectGolden(ByteLevelVocabulary("smollm", "smollm"), "smollm"); }
TEST(TokenizerGgufTest, Qwen2) { ExpectGolden(ByteLevelVocabulary("qwen2", "qwen2"), "qwen2"); }

TEST(TokenizerGgufTest, Llama3) {
  GgufVocabulary vocabulary = ByteLevelVocabulary("llama3", "llama-bpe");
  vocabulary.bos = 0;  // added unless the file says otherwise
  ExpectGolden(vocabulary, "llama3");
}

TEST(TokenizerGgufTest, LlamaByScore) { ExpectGolden(LlamaVocabulary(), "bpe"); }

TEST(TokenizerGgufTest, FlagsDecideAboutBosAndEos) {
  GgufVocabulary vocabulary = LlamaVocabulary();
  vocabulary.add_bos = false;
  vocabulary.add_eos = true;
  const auto tokenizer = TokenizerFromGguf(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->Encode("", Special::kAdd), std::vector<int>{2});
  EXPECT_EQ((*tokenizer)->bos_id(), 1);
}

TEST(TokenizerGgufTest, MissingIdsMayBeWrittenAsMinusOne) {
  GgufVocabulary vocabulary = LlamaVocabulary();
  vocabulary.pad = 0xFFFFFFFF;
  const auto tokenizer = TokenizerFromGguf(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->pad_id(), std::nullopt);
}

void ExpectError(const GgufVocabulary& vocabulary, const std::string& message) {
  const auto tokenizer = TokenizerFromGguf(vocabulary);
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(message));
}

TEST(TokenizerGgufTest, RefusesWhatItDoesNotKnowOrWhatDoesNotFit) {
  GgufVocabulary vocabulary = LlamaVocabulary();
  vocabulary.model = "bert";
  ExpectError(vocabulary, "\"bert\"");
  vocabulary = LlamaVocabulary();
  vocabulary.scores.pop_back();
  ExpectError(vocabulary, "scores");
  vocabulary = LlamaVocabulary();
  vocabulary.token_types.pop_back();
  ExpectError(vocabulary, "token types");
  vocabulary = LlamaVocabulary();
  vocabulary.token_types[5] = 9;
  ExpectError(vocabulary, "token 5 has type 9");
  vocabulary = LlamaVocabulary();
  vocabulary.eos = 800;
  ExpectError(vocabulary, "eos_token_id is 800");
  vocabulary = LlamaVocabulary();
  vocabulary.tokens[300] = vocabulary.tokens[301];
  ExpectError(vocabulary, "piece 301");
  vocabulary = ByteLevelVocabulary("gpt2", "dbrx");
  ExpectError(vocabulary, "\"dbrx\"");
  vocabulary = ByteLevelVocabulary("gpt2", "gpt-2");
  vocabulary.merges.push_back("abc");
  ExpectError(vocabulary, "two parts");
  vocabulary.merges.back() = "zzz qqq";
  ExpectError(vocabulary, "\"zzz\" is not in the vocabulary");
  ExpectError(GgufVocabulary{}, "no tokens");
}

}  // namespace
}  // namespace permafrost
