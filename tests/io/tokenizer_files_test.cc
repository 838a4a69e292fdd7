// Tokenizer files from strangers: which file is read, what is refused, and that no byte of a
// damaged file does harm.

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/json.h"
#include "io/tokenizer.h"
#include "io/tokenizer_charsmap.h"
#include "nlohmann/json.hpp"
#include "tests/io/test_files.h"

namespace permafrost {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::string DataFile(const std::string& path) {
  return GetFile(std::string(PERMAFROST_TEST_DATA) + "/tokenizers/" + path);
}

json Base() { return json::parse(DataFile("gpt2/tokenizer.json")); }

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadJson(const json& value, const json& config = {}) {
  const TemporaryFolder folder;
  PutFile(folder.File("tokenizer.json"), value.dump());
  if (!config.is_null()) PutFile(folder.File("tokenizer_config.json"), config.dump());
  return LoadTokenizer(folder.path());
}

void ExpectError(const json& value, const std::string& message, const json& config = {}) {
  const auto tokenizer = LoadJson(value, config);
  ASSERT_FALSE(tokenizer.ok()) << message;
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(message));
  EXPECT_THAT(std::string(tokenizer.status().message()), testing::Not(HasSubstr("\n")));
}

TEST(TokenizerFilesTest, TokenizerJsonWinsOverAModel) {
  const TemporaryFolder folder;
  PutFile(folder.File("tokenizer.model"), DataFile("bpe/tokenizer.model"));
  auto tokenizer = LoadTokenizer(folder.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 800);
  PutFile(folder.File("spiece.model"), DataFile("unigram/spiece.model"));
  tokenizer = LoadTokenizer(folder.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 700);  // 600 and the sentinels
  PutFile(folder.File("tokenizer.json"), DataFile("parts/tokenizer.json"));
  tokenizer = LoadTokenizer(folder.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_LT((*tokenizer)->vocab_size(), 600);
}

TEST(TokenizerFilesTest, AnEmptyFolderIsAnError) {
  const TemporaryFolder folder;
  const auto tokenizer = LoadTokenizer(folder.path());
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("no tokenizer.json"));
}

TEST(TokenizerFilesTest, ConfigsDecideAboutAModelFile) {
  const TemporaryFolder folder;
  PutFile(folder.File("tokenizer.model"), DataFile("bpe/tokenizer.model"));
  PutFile(folder.File("tokenizer_config.json"),
          R"({"add_bos_token": false, "add_eos_token": true})");
  auto tokenizer = LoadTokenizer(folder.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->Encode("", Special::kAdd), std::vector<int>{2});
  PutFile(folder.File("config.json"), R"({"model_type": "t5"})");
  PutFile(folder.File("tokenizer_config.json"), R"({"extra_ids": 3})");
  tokenizer = LoadTokenizer(folder.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->Encode("<extra_id_2>", Special::kAdd), (std::vector<int>{800, 2}));
  PutFile(folder.File("tokenizer_config.json"), R"({"extra_ids": -1})");
  EXPECT_FALSE(LoadTokenizer(folder.path()).ok());
}

TEST(TokenizerFilesTest, TokenizerConfigAddsSpecialTokens) {
  const json config = {{"bos_token", "<|endoftext|>"},
                       {"eos_token", {{"content", "<|end|>"}, {"lstrip", true}}},
                       {"add_bos_token", true},
                       {"add_eos_token", true}};
  const auto tokenizer = LoadJson(Base(), config);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->bos_id(), 0);
  EXPECT_EQ((*tokenizer)->eos_id(), 600);
  EXPECT_EQ((*tokenizer)->vocab_size(), 601);
  EXPECT_EQ(*(*tokenizer)->Encode(" <|end|>", Special::kAdd), (std::vector<int>{0, 600, 600}));
  EXPECT_EQ((*tokenizer)->Decode(std::vector<int>{0, 600}, true), "");
}

TEST(TokenizerFilesTest, UnknownComponentsAreNamed) {
  for (const auto& [part, type] : {std::pair{"normalizer", "BertNormalizer"},
                                   {"pre_tokenizer", "UnicodeScripts"},
                                   {"post_processor", "Magic"},
                                   {"decoder", "CTC"},
                                   {"model", "WordPiece"}}) {
    json value = Base();
    value[part]["type"] = type;
    ExpectError(value, type);
  }
  json value = Base();
  value["pre_tokenizer"] = {{"type", "Sequence"},
                            {"pretokenizers", {{{"type", "Digits"}}, {{"type", "Nested"}}}}};
  ExpectError(value, "Nested");
  value["pre_tokenizer"] = {
      {"type", "Split"}, {"behavior", "Isolated"}, {"pattern", {{"Regex", "a["}}}};
  ExpectError(value, "regular expression");
  value["pre_tokenizer"]["pattern"]["Regex"] = "[a&&b]";
  ExpectError(value, "&&");
}

TEST(TokenizerFilesTest, InconsistentFilesAreRefused) {
  json value = Base();
  value["model"]["merges"].push_back({"qq", "zz"});
  ExpectError(value, "\"qq\" is not in the vocabulary");
  value = Base();
  value["model"]["merges"].push_back("a b c");
  ExpectError(value, "merge");
  value = Base();
  value["model"]["vocab"]["zz"] = -1;
  ExpectError(value, "token id");
  value["model"]["vocab"]["zz"] = 1e9;
  ExpectError(value, "token id");
  value["model"]["vocab"]["zz"] = 1000000000;
  ExpectError(value, "token id");
  value = Base();
  value["model"]["unk_token"] = "<none>";
  ExpectError(value, "<none>");
  value = Base();
  value["model"]["dropout"] = 0.1;
  ExpectError(value, "dropout");
  value = Base();
  value["model"] =
      json::parse(R"({"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0], ["b", -1.0]]})");
  ExpectError(value, "unk_id");
  value["model"]["unk_id"] = 0;
  value["model"]["vocab"].push_back(json::array({"c"}));
  ExpectError(value, "[token, score]");
  value = Base();
  value["post_processor"] = {{"type", "TemplateProcessing"},
                             {"single", {{{"SpecialToken", {{"id", "X"}}}}}},
                             {"special_tokens", json::object()}};
  ExpectError(value, "\"X\" is not in special_tokens");
  value = Base();
  value["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", "????"}};
  ExpectError(value, "base64");
  value["normalizer"]["precompiled_charsmap"] = "/////w==";
  ExpectError(value, "a trie of 4294967295 bytes");
  ExpectError(json::array(), "expected an object");
}

TEST(TokenizerFilesTest, AVocabularyWithoutAnUnknownTokenSaysSo) {
  json value = Base();
  value["pre_tokenizer"] = nullptr;
  value["model"] = json::parse(R"({"type": "Unigram", "unk_id": null, "vocab": [["a", 0.0]]})");
  const auto tokenizer = LoadJson(value);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_FALSE((*tokenizer)->Encode("ab", Special::kNone).ok());
  EXPECT_TRUE((*tokenizer)->Encode("aa", Special::kNone).ok());
}

// A match that ends inside a character would leave a text that is not UTF-8.
TEST(TokenizerFilesTest, ACharacterMapNeverSplitsACharacter) {
  constexpr size_t kRootOffset = 256, kLead = 0xC3;
  std::vector<uint32_t> units(512, 0);
  units[0] = kRootOffset << 10;
  units[kRootOffset ^ kLead] = kLead | 1 << 8 | 1 << 10;  // a leaf, whose value is one unit away
  std::string bytes;
  const auto put = [&](uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(value >> shift));
  };
  put(static_cast<uint32_t>(4 * units.size()));
  for (const uint32_t unit : units) put(unit);
  bytes += std::string("x\0", 2);
  const auto map = CharsMap::Parse(bytes);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->Longest("\xC3").length, 1u);  // the key is there
  EXPECT_EQ(map->Longest("\xC3\xA9").length, 0u);
  EXPECT_EQ(map->Shortest("\xC3\xA9").length, 0u);
}

// Flips, cuts and inserts bytes; a file that still loads must still work.
void Damage(const std::string& file, const std::string& name, int rounds) {
  const std::string good = DataFile(file);
  std::mt19937 random(11);
  const auto pick = [&](size_t n) {
    return std::uniform_int_distribution<size_t>(0, n - 1)(random);
  };
  for (int round = 0; round < rounds; ++round) {
    std::string bad = good;
    for (size_t i = 0, n = 1 + pick(4); i < n; ++i) {
      const size_t at = pick(std::min<size_t>(bad.size(), pick(2) == 0 ? 400 : bad.size()));
      switch (pick(4)) {
        case 0:
          bad[at] = static_cast<char>(pick(256));
          break;
        case 1:
          bad[at] = static_cast<char>(bad[at] ^ (1 << pick(8)));
          break;
        case 2:
          bad.erase(at, pick(9));
          break;
        default:
          bad.insert(at, pick(9), static_cast<char>(pick(256)));
      }
      if (bad.empty()) bad = good;
    }
    if (pick(20) == 0) bad.resize(pick(bad.size()));
    const TemporaryFolder folder;
    PutFile(folder.File(name), bad);
    const auto tokenizer = LoadTokenizer(folder.path());
    if (!tokenizer.ok()) continue;
    for (const char* text :
         {"Hello \xEF\xBC\xA1 world 12\t[SYM] \xC2\xBD<extra_id_0>", "", "aaaa"}) {
      const auto ids = (*tokenizer)->Encode(text, Special::kAdd);
      if (ids.ok()) (*tokenizer)->Decode(*ids, false);
    }
  }
}

TEST(TokenizerFilesTest, DamagedModelsDoNoHarm) {
  Damage("unigram/spiece.model", "spiece.model", 120);
  Damage("unigram_symbols/tokenizer.model", "tokenizer.model", 120);
  Damage("bpe/tokenizer.model", "tokenizer.model", 120);
}

TEST(TokenizerFilesTest, DamagedTokenizerJsonDoesNoHarm) {
  Damage("t5_json/tokenizer.json", "tokenizer.json", 30);
  Damage("qwen2/tokenizer.json", "tokenizer.json", 50);
  Damage("parts/tokenizer.json", "tokenizer.json", 50);
}

}  // namespace
}  // namespace permafrost
