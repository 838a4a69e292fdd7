#include "io/json.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/io/test_files.h"

namespace permafrost {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

std::string ErrorOf(std::string_view text) {
  absl::StatusOr<json> value = ParseJson(text, "x.json");
  return value.ok() ? "no error" : std::string(value.status().message());
}

TEST(ParseJson, BuildsTheSameTreeAsNlohmann) {
  const std::string text =
      R"( {"a": [1, -2, 3.5, true, false, null, "sä\u0000\ud83d\ude00", [], {}, [[{"b": []}]]],)"
      R"( "": {"n": 18446744073709551615, "m": -9223372036854775808}, "z": {"a": 1}})";
  absl::StatusOr<json> value = ParseJson(text, "x");
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(*value, json::parse(text));
  EXPECT_EQ(*ParseJson("7", "x"), json(7));
  EXPECT_EQ(*ParseJson("\"\"", "x"), json(""));
}

TEST(ParseJson, ErrorsNameSourceLineAndByte) {
  const std::string error = ErrorOf("{\n \"a\": 1,\n \"b\": x}");
  EXPECT_THAT(error, HasSubstr("x.json: JSON error in line 3, column 7 (byte 17): "));
  EXPECT_THAT(error, HasSubstr("invalid literal"));
  EXPECT_THAT(ErrorOf("{\"a\": 1} x"), HasSubstr("line 1, column 10"));
  EXPECT_EQ(ErrorOf("{\"a\n"), ErrorOf("{\"a\n"));
  EXPECT_EQ(ErrorOf("{\"a\n").find('\n'), std::string::npos) << "one line";
}

TEST(ParseJson, RefusesWhatIsNotStrictJson) {
  for (const char* text :
       {"",          " ",      "{",       "[1,]",        "{\"a\":1,}",   "{'a':1}", "[1 2]",
        "nul",       "01",     "1.",      "+1",          "NaN",          "[1]]",    "{} {}",
        "/* c */ 1", "\"\t\"", "\"\\x\"", "\"\\ud800\"", "\"\\udc00 \"", "1e999"}) {
    EXPECT_THAT(ErrorOf(text), HasSubstr("JSON error in line")) << text;
  }
}

TEST(ParseJson, RefusesInvalidUtf8NulAndByteOrderMark) {
  for (const char* text : {"\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"",
                           "\"\xe2\x82\"", "\xff", "\xef\xbb\xbf{}"}) {
    EXPECT_THAT(ErrorOf(text), HasSubstr("JSON error in line 1")) << text;
  }
  EXPECT_THAT(ErrorOf(std::string_view("{}\0garbage", 10)), HasSubstr("NUL"));
  EXPECT_THAT(ErrorOf(std::string_view("\0", 1)), HasSubstr("NUL"));
}

TEST(ParseJson, RefusesDuplicateKeysAtAnyDepth) {
  EXPECT_THAT(ErrorOf(R"({"a": 1, "a": 2})"), HasSubstr("duplicate key \"a\""));
  EXPECT_THAT(ErrorOf(R"([{"x": {"b": 1, "c": 2, "b": 1}}])"), HasSubstr("duplicate key"));
  EXPECT_THAT(ErrorOf(R"({"a": 1, "\u0061": 2})"), HasSubstr("duplicate key"));
  EXPECT_EQ(ErrorOf(R"({"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 2}]})"), "no error");
}

TEST(ParseJson, CapsTheDepth) {
  EXPECT_EQ(ErrorOf(std::string(64, '[') + std::string(64, ']')), "no error");
  EXPECT_THAT(ErrorOf(std::string(65, '[') + std::string(65, ']')), HasSubstr("deeper than 64"));
  EXPECT_THAT(ErrorOf(std::string(1000000, '[')), HasSubstr("deeper than 64"));
  std::string objects;
  for (int i = 0; i < 70; ++i) objects += "{\"a\":";
  EXPECT_THAT(ErrorOf(objects), HasSubstr("deeper than 64"));
}

TEST(ReadJsonFile, NamesThePath) {
  TemporaryFolder folder;
  PutFile(folder.File("c.json"), "{\"a\": [1}");
  EXPECT_THAT(ReadJsonFile(folder.File("c.json")).status().message(),
              HasSubstr(folder.File("c.json") + ": JSON error in line 1"));
  EXPECT_THAT(ReadJsonFile(folder.File("d.json")).status().message(), HasSubstr("No such file"));
}

TEST(DumpJson, NeverThrows) {
  EXPECT_EQ(DumpJson(json("a\xff")), "\"a\xef\xbf\xbd\"");
  EXPECT_EQ(DumpJson(json{{"b", 1}, {"a", {1, 2}}}), R"({"a":[1,2],"b":1})");
}

class Fields : public testing::Test {
 protected:
  const json object_ = json::parse(
      R"({"i": 7, "neg": -3, "f": 2.5, "whole": 3.0, "t": true, "s": "relu", "null": null,
          "big": 18446744073709551615, "ints": [1, -2], "nums": [1, 2.5], "strs": ["a", "b"],
          "mixed": [1, "a"], "o": {"x": 1}})");
  const JsonFields fields_{object_, "config.json"};
};

TEST_F(Fields, ReadsTypes) {
  EXPECT_EQ(*fields_.Int("i"), 7);
  EXPECT_EQ(*fields_.Int("neg"), -3);
  EXPECT_EQ(*fields_.Double("f"), 2.5);
  EXPECT_EQ(*fields_.Double("i"), 7.0);
  EXPECT_TRUE(*fields_.Bool("t"));
  EXPECT_EQ(*fields_.String("s"), "relu");
  EXPECT_THAT(*fields_.IntList("ints"), ElementsAre(1, -2));
  EXPECT_THAT(*fields_.DoubleList("nums"), ElementsAre(1.0, 2.5));
  EXPECT_THAT(*fields_.StringList("strs"), ElementsAre("a", "b"));
  EXPECT_TRUE(fields_.Has("o"));
  EXPECT_FALSE(fields_.Has("null"));
}

TEST_F(Fields, MissingAndNullGiveTheDefault) {
  for (const char* field : {"missing", "null"}) {
    EXPECT_EQ(*fields_.IntOr(field, 128), 128);
    EXPECT_EQ(*fields_.DoubleOr(field, 0.5), 0.5);
    EXPECT_TRUE(*fields_.BoolOr(field, true));
    EXPECT_EQ(*fields_.StringOr(field, "x"), "x");
  }
  EXPECT_EQ(*fields_.IntOr("i", 128), 7);
}

TEST_F(Fields, ErrorsNameFieldExpectedAndFound) {
  EXPECT_EQ(fields_.Int("s").status().message(),
            "config.json: field \"s\": expected a whole number, found the string \"relu\"");
  EXPECT_EQ(fields_.IntOr("t", 1).status().message(),
            "config.json: field \"t\": expected a whole number, found true");
  EXPECT_EQ(fields_.Int("missing").status().message(),
            "config.json: field \"missing\": expected a whole number, found no such field");
  EXPECT_THAT(fields_.Bool("null").status().message(), HasSubstr("true or false, found null"));
  EXPECT_THAT(fields_.String("o").status().message(), HasSubstr("a string, found an object of 1"));
  EXPECT_THAT(fields_.IntList("mixed").status().message(), HasSubstr("found an array of 2"));
  EXPECT_FALSE(fields_.Int("whole").ok());
  EXPECT_FALSE(fields_.Int("big").ok());
  const json list = json::array({1});
  EXPECT_THAT(JsonFields(list, "x").Int("a").status().message(),
              HasSubstr("expected an object with field \"a\", found an array of 1"));
}

}  // namespace
}  // namespace permafrost
