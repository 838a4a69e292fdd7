#include "io/anchors.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace permafrost {
namespace {

std::vector<std::pair<int64_t, std::string>> Pieces(const std::string& text) {
  const auto pieces = ParseAnchors(text);
  EXPECT_TRUE(pieces.ok()) << pieces.status();
  std::vector<std::pair<int64_t, std::string>> result;
  for (const AnchoredPiece& p : *pieces) result.emplace_back(p.virtual_tokens, p.text);
  return result;
}

using Expected = std::vector<std::pair<int64_t, std::string>>;

TEST(Anchors, TheTextBetweenKeepsItsLeadingSpaces) {
  EXPECT_EQ(Pieces("{v*3} {subject} {v*3} is {v*2}"),
            (Expected{{3, " {subject}"}, {3, " is"}, {2, ""}}));
  EXPECT_EQ(Pieces("a {v*1} b "), (Expected{{0, "a"}, {1, " b "}}));
  EXPECT_EQ(Pieces("{v*12}"), (Expected{{12, ""}}));
}

TEST(Anchors, NeighboursAreOnePiece) {
  EXPECT_EQ(Pieces("{v*1}{v*2} {v*3}x"), (Expected{{6, "x"}}));
}

TEST(Anchors, EscapedBracesAreText) {
  EXPECT_EQ(Pieces("{{v*3}} {v*1}"), (Expected{{0, "{{v*3}}"}, {1, ""}}));
  EXPECT_EQ(Pieces("{{{v*2}}}"), (Expected{{0, "{{"}, {2, "}}"}}));
  // A backslash in front of a brace is text, as in every template.
  EXPECT_EQ(Pieces("\\{v*1}"), (Expected{{0, "\\"}, {1, ""}}));
  EXPECT_FALSE(HasAnchors("{{v*3}} {text}"));
  EXPECT_TRUE(HasAnchors("{text}{v*3}"));
}

TEST(Anchors, Errors) {
  for (const char* text :
       {"", "{text}", "{v*}", "{v*0}", "{v*-1}", "{v*x}", "{v*3", "{v*100001}",
        "{v*60000}{v*60000}", "{v*60000}a{v*60000}", "{v*99999999999999999999}"}) {
    EXPECT_FALSE(ParseAnchors(text).ok()) << text;
  }
}

}  // namespace
}  // namespace permafrost
