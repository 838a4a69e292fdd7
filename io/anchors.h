// Input templates whose virtual tokens stand among columns and words: "{v*3} {subject} {v*3} is
// {v*2}" has 8 of them (P-tuning, Liu et al. 2021). {v*N} is N virtual tokens; columns, escapes and
// literal braces are those of TextTemplate (examples.h).
//
// The text between two {v*N} is tokenized by itself. Spaces in front of a {v*N} only separate and
// are dropped: no running text has tokens of them. Spaces behind one stay, as a tokenizer's word
// boundary.
#ifndef PERMAFROST_IO_ANCHORS_H_
#define PERMAFROST_IO_ANCHORS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace permafrost {

// Virtual tokens and the text that follows them; the first piece may have none, the last no text.
struct AnchoredPiece {
  int64_t virtual_tokens = 0;
  std::string text;
};

// Whether a template has a {v*N}.
bool HasAnchors(const std::string& input_template);

// The pieces, in order. Error (InvalidArgument): no {v*N}; an N that is not a number from 1; more
// than 100,000 virtual tokens.
absl::StatusOr<std::vector<AnchoredPiece>> ParseAnchors(const std::string& input_template);

int64_t CountVirtualTokens(const std::vector<AnchoredPiece>& pieces);

}  // namespace permafrost

#endif  // PERMAFROST_IO_ANCHORS_H_
