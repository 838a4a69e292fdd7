#include "io/anchors.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace permafrost {
namespace {

constexpr int64_t kMostVirtualTokens = 100000;
constexpr char kOpen[] = "{v*";
constexpr size_t kOpenSize = sizeof(kOpen) - 1;

// The next {v*N} from `from`, or npos. {{ opens nothing.
size_t FindAnchor(const std::string& text, size_t from) {
  for (size_t i = from; i < text.size(); ++i) {
    if (text.compare(i, 2, "{{") == 0) {
      ++i;
    } else if (text.compare(i, kOpenSize, kOpen) == 0) {
      return i;
    }
  }
  return std::string::npos;
}

}  // namespace

bool HasAnchors(const std::string& input_template) {
  return FindAnchor(input_template, 0) != std::string::npos;
}

absl::StatusOr<std::vector<AnchoredPiece>> ParseAnchors(const std::string& input_template) {
  const auto error = [&](const std::string& problem) {
    return absl::InvalidArgumentError(absl::StrCat("template '", input_template, "': ", problem));
  };
  std::vector<AnchoredPiece> pieces(1);
  size_t from = 0;
  while (true) {
    const size_t anchor = FindAnchor(input_template, from);
    AnchoredPiece& last = pieces.back();
    last.text = input_template.substr(from, anchor == std::string::npos ? anchor : anchor - from);
    if (anchor == std::string::npos) break;
    last.text.resize(last.text.find_last_not_of(' ') + 1);
    const size_t begin = anchor + kOpenSize, close = input_template.find('}', begin);
    const std::string number =
        close == std::string::npos ? "" : input_template.substr(begin, close - begin);
    int64_t count;
    if (!absl::SimpleAtoi(number, &count) || count < 1 || count > kMostVirtualTokens) {
      return error(absl::StrCat("expected {v*N} with N from 1 to ", kMostVirtualTokens,
                                ", found a {v* that is not one"));
    }
    // Virtual tokens next to each other are one piece.
    if (last.text.empty()) {
      last.virtual_tokens += count;
    } else {
      pieces.push_back({.virtual_tokens = count, .text = ""});
    }
    if (pieces.back().virtual_tokens > kMostVirtualTokens) {
      return error(absl::StrCat("expected at most ", kMostVirtualTokens, " virtual tokens"));
    }
    from = close + 1;
  }
  const int64_t total = CountVirtualTokens(pieces);
  if (total == 0) return error("expected virtual tokens, {v*N}, found none");
  if (total > kMostVirtualTokens) {
    return error(
        absl::StrCat("expected at most ", kMostVirtualTokens, " virtual tokens, found ", total));
  }
  return pieces;
}

int64_t CountVirtualTokens(const std::vector<AnchoredPiece>& pieces) {
  int64_t total = 0;
  for (const AnchoredPiece& piece : pieces) total += piece.virtual_tokens;
  return total;
}

}  // namespace permafrost
