// Tokenizers against the ids and texts of the tokenizers, transformers and sentencepiece packages
// (tests/golden/make_tokenizer_goldens.py), and properties that hold for every tokenizer.

#include "io/tokenizer.h"

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/json.h"
#include "io/unicode.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

using nlohmann::json;

json Golden(const std::string& name) {
  const auto value = ReadJsonFile(std::string(PERMAFROST_GOLDEN) + "/tokenizers/" + name + ".json");
  EXPECT_TRUE(value.ok()) << value.status();
  return value.ok() ? *value : json();
}

std::vector<std::string> Texts() { return Golden("texts").get<std::vector<std::string>>(); }

std::unique_ptr<Tokenizer> Load(const std::string& name) {
  auto tokenizer = LoadTokenizer(std::string(PERMAFROST_TEST_DATA) + "/tokenizers/" + name);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::string Stream(const Tokenizer& tokenizer, const std::vector<int>& ids, bool skip_special) {
  StreamDecoder decoder(tokenizer, skip_special);
  std::string text;
  for (const int id : ids) {
    const std::string piece = decoder.Append(id);
    EXPECT_TRUE(CheckUtf8(piece).ok()) << piece;
    text += piece;
  }
  return text + decoder.Finish();
}

class TokenizerGoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(TokenizerGoldenTest, EncodesAsTheReference) {
  const auto tokenizer = Load(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<std::string> texts = Texts();
  const json golden = Golden(GetParam());
  ASSERT_EQ(golden["ids"].size(), texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto ids = tokenizer->Encode(texts[i], Special::kAdd);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, golden["ids"][i].get<std::vector<int>>()) << DumpJson(texts[i]);
  }
}

TEST_P(TokenizerGoldenTest, DecodesAsTheReference) {
  const auto tokenizer = Load(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const json golden = Golden(GetParam());
  ASSERT_EQ(golden["decode"].size(), 60u);
  for (const json& item : golden["decode"]) {
    const auto ids = item["ids"].get<std::vector<int>>();
    EXPECT_EQ(tokenizer->Decode(ids, true), item["text"].get<std::string>()) << item.dump();
    if (item["all"].is_null()) continue;  // the sentencepiece library always leaves control out
    EXPECT_EQ(tokenizer->Decode(ids, false), item["all"].get<std::string>()) << item.dump();
  }
}

TEST_P(TokenizerGoldenTest, IdsAreInTheVocabularyAndStreamAsTheyDecode) {
  const auto tokenizer = Load(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (const std::string& text : Texts()) {
    const auto ids = tokenizer->Encode(text, Special::kNone);
    ASSERT_TRUE(ids.ok()) << ids.status();
    for (const int id : *ids) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, tokenizer->vocab_size());
      EXPECT_NE(tokenizer->Piece(id), "");
    }
    const std::string decoded = tokenizer->Decode(*ids, true);
    EXPECT_TRUE(CheckUtf8(decoded).ok());
    EXPECT_EQ(Stream(*tokenizer, *ids, true), decoded) << DumpJson(text);
  }
}

TEST_P(TokenizerGoldenTest, RefusesInvalidUtf8WithItsOffset) {
  const auto tokenizer = Load(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (const char* bad : {"ab\xFFz", "ab\xC3", "ab\xC0\x80", "ab\xED\xA0\x80", "ab\xF4\x90\x80\x80",
                          "ab\x80", "ab\xE2\x82"}) {
    const auto ids = tokenizer->Encode(bad, Special::kAdd);
    ASSERT_FALSE(ids.ok());
    EXPECT_THAT(std::string(ids.status().message()), testing::HasSubstr("offset 2"));
  }
}

TEST_P(TokenizerGoldenTest, DecodesAnyIds) {
  const auto tokenizer = Load(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  std::mt19937 random(5);
  std::uniform_int_distribution<int> id(-3, tokenizer->vocab_size() + 3);
  for (int round = 0; round < 50; ++round) {
    std::vector<int> ids;
    for (int i = 0; i < 40; ++i) ids.push_back(id(random));
    EXPECT_TRUE(CheckUtf8(tokenizer->Decode(ids, false)).ok());
  }
  EXPECT_EQ(tokenizer->Decode({}, true), "");
  EXPECT_EQ(tokenizer->Piece(-1), "");
  EXPECT_EQ(tokenizer->Piece(tokenizer->vocab_size()), "");
}

// Work that grows with the square of a run would take minutes here.
TEST_P(TokenizerGoldenTest, LongRunsTakeLinearTime) {
  const auto tokenizer = Load(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (const char* unit : {"a", " ", "\n", "7", "!", "\xC3\xA9", "e\xCC\x81", "the "}) {
    std::string text;
    while (text.size() < 200'000) text += unit;
    EXPECT_TRUE(tokenizer->Encode(text, Special::kAdd).ok());
  }
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerGoldenTest,
                         testing::Values("gpt2", "smollm", "qwen2", "llama3", "parts", "t5_json",
                                         "llama2_json", "llama2_json_4x", "t5", "unigram",
                                         "unigram_symbols", "bpe"),
                         [](const auto& param) { return param.param; });

TEST(TokenizerTest, ByteLevelRoundTripIsExact) {
  for (const char* name : {"gpt2", "smollm", "llama3"}) {
    const auto tokenizer = Load(name);
    ASSERT_NE(tokenizer, nullptr);
    for (const std::string& text : Texts()) {
      const auto ids = tokenizer->Encode(text, Special::kNone);
      ASSERT_TRUE(ids.ok());
      EXPECT_EQ(tokenizer->Decode(*ids, false), text);
    }
  }
}

TEST(TokenizerTest, SpecialIdsComeFromTheFiles) {
  const auto t5 = Load("t5");
  EXPECT_EQ(t5->pad_id(), 0);
  EXPECT_EQ(t5->eos_id(), 1);
  EXPECT_EQ(t5->unk_id(), 2);
  EXPECT_EQ(t5->bos_id(), std::nullopt);
  EXPECT_EQ(t5->vocab_size(), 32100);
  EXPECT_EQ(t5->Piece(32099), "<extra_id_0>");
  EXPECT_EQ(t5->Piece(32000), "<extra_id_99>");
  const auto llama = Load("llama2_json");
  EXPECT_EQ(llama->bos_id(), 1);
  EXPECT_EQ(llama->eos_id(), 2);
  EXPECT_EQ(llama->unk_id(), 0);
}

// Published ids, not made by our script: the T5 paper's vocabulary on its documentation's examples.
TEST(TokenizerTest, KnownT5Ids) {
  const auto t5 = Load("t5");
  EXPECT_EQ(*t5->Encode("a<extra_id_0>b", Special::kAdd),
            (std::vector<int>{3, 9, 32099, 3, 115, 1}));
  EXPECT_EQ(*t5->Encode("", Special::kAdd), (std::vector<int>{1}));
  EXPECT_EQ(*t5->Encode("", Special::kNone), (std::vector<int>{}));
}

TEST(TokenizerTest, StreamsCharactersWhole) {
  const auto gpt2 = Load("gpt2");
  const auto ids = gpt2->Encode("a\xF0\x9F\x98\x80 b", Special::kNone);  // an emoji: several tokens
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(Stream(*gpt2, *ids, true), "a\xF0\x9F\x98\x80 b");
  StreamDecoder decoder(*gpt2, true);
  const std::vector<int> cut(ids->begin(), ids->begin() + 3);
  std::string text;
  for (const int id : cut) text += decoder.Append(id);
  EXPECT_EQ(text, "a");
  EXPECT_EQ(text + decoder.Finish(), gpt2->Decode(cut, true));
}

}  // namespace
}  // namespace permafrost
