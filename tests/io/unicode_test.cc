#include "io/unicode.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace permafrost {
namespace {

std::string Utf8(char32_t c) {
  std::string out;
  AppendUtf8(c, &out);
  return out;
}

TEST(UnicodeTest, EveryScalarValueRoundTrips) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const std::string text = Utf8(c);
    ASSERT_TRUE(CheckUtf8(text).ok()) << static_cast<uint32_t>(c);
    ASSERT_EQ(Utf8CharAt(text, 0), c);
    ASSERT_EQ(Utf8Length(static_cast<unsigned char>(text[0])), text.size());
    if (text.size() > 1) {
      ASSERT_EQ(IncompleteUtf8Tail(text.substr(0, text.size() - 1)), text.size() - 1);
    }
  }
}

TEST(UnicodeTest, IllFormedBytesAreFound) {
  for (const char* bad :
       {"\x80", "\xBF", "\xC0\xAF", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xC3", "\xE2\x82", "\xF0\x9F\x98", "\xFF"}) {
    const absl::Status status = CheckUtf8(std::string("xyz") + bad);
    ASSERT_FALSE(status.ok()) << bad;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("offset 3"));
  }
}

// The examples of the Unicode Standard, section 3.9, tables 3-8 to 3-11.
TEST(UnicodeTest, LossyDecodingReplacesMaximalParts) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(Utf8Lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Utf8Lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Utf8Lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(Utf8Lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(UnicodeTest, NormalForms) {
  EXPECT_EQ(NormalizeUnicode("e\xCC\x81", NormalForm::kNfc), "\xC3\xA9");
  EXPECT_EQ(NormalizeUnicode("\xC3\xA9", NormalForm::kNfd), "e\xCC\x81");
  EXPECT_EQ(NormalizeUnicode("\xEF\xAC\x81", NormalForm::kNfc), "\xEF\xAC\x81");
  EXPECT_EQ(NormalizeUnicode("\xEF\xAC\x81", NormalForm::kNfkc), "fi");
  EXPECT_EQ(NormalizeUnicode("\xE2\x84\xAB", NormalForm::kNfc), "\xC3\x85");  // angstrom sign
  // Marks of different classes are put in order: dot below (220) before acute (230).
  EXPECT_EQ(NormalizeUnicode("q\xCC\x81\xCC\xA3", NormalForm::kNfd), "q\xCC\xA3\xCC\x81");
  // Too new for the published tokenizers: U+32FF stays, and U+0897 is left to the library's table.
  EXPECT_EQ(NormalizeUnicode("\xE3\x8B\xBF", NormalForm::kNfkc), "\xE3\x8B\xBF");
  const std::string nul("a\0b\xC3\xA9", 5);
  EXPECT_EQ(NormalizeUnicode(nul, NormalForm::kNfc), nul);
}

TEST(UnicodeTest, Classes) {
  EXPECT_TRUE(IsWhitespace(0x85) && IsWhitespace(0x3000) && IsWhitespace(0xA0));
  EXPECT_FALSE(IsWhitespace(0x180E) || IsWhitespace(0x200B) || IsWhitespace(0xFEFF));
  EXPECT_TRUE(IsNumber(0xBD) && IsNumber(0x2167) && IsNumber(0x663) && IsNumber(0x10D40));
  EXPECT_FALSE(IsNumber('a') || IsNumber(0x4E94));
  EXPECT_TRUE(IsPunctuation('$') && IsPunctuation(0x2014) && IsPunctuation(0x3002));
  EXPECT_FALSE(IsPunctuation('a') || IsPunctuation(0x20AC));
  EXPECT_TRUE(IsWord('_') && IsWord(0x301) && IsWord(0x4E2D) && IsWord(0x24B6));
  EXPECT_FALSE(IsWord('-') || IsWord(0xBD) || IsWord(' '));
}

TEST(UnicodeTest, GraphemeClusters) {
  const auto first = [](const std::string& text) { return GraphemeEnd(text, 0); };
  EXPECT_EQ(first("ab"), 1u);
  EXPECT_EQ(first("\r\nx"), 2u);
  EXPECT_EQ(first("e\xCC\x81\xCC\xA3x"), 5u);
  EXPECT_EQ(first("\xF0\x9F\x87\xA9\xF0\x9F\x87\xAA\xF0\x9F\x87\xAB"), 8u);  // flags
  EXPECT_EQ(first("\xF0\x9F\x91\xA8\xE2\x80\x8D\xF0\x9F\x91\xA9x"), 11u);    // ZWJ
  EXPECT_EQ(first("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8x"), 9u);             // Hangul
}

TEST(UnicodeTest, Lowercase) {
  EXPECT_EQ(LowercaseUnicode("ABC\xC3\x89\xCE\xA3"), "abc\xC3\xA9\xCF\x83");
  EXPECT_EQ(LowercaseUnicode("\xC4\xB0"), "i\xCC\x87");
  EXPECT_EQ(StripMarks("e\xCC\x81x"), "ex");
}

}  // namespace
}  // namespace permafrost
