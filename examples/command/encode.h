// Token ids of a line's input and of what may follow it.
#ifndef PERMAFROST_EXAMPLES_COMMAND_ENCODE_H_
#define PERMAFROST_EXAMPLES_COMMAND_ENCODE_H_

#include <string>
#include <vector>

#include "io/anchors.h"
#include "io/tokenizer.h"

namespace permafrost {

struct Encoded {
  std::vector<int32_t> input;
  std::vector<std::vector<int32_t>> targets;
};

absl::StatusOr<Encoded> EncodeText(const Tokenizer& tokenizer, bool decoder,
                                   const std::string& input,
                                   const std::vector<std::string>& targets);

// The same for an input with virtual tokens (kVirtual) between its texts. What the tokenizer puts
// around a text stands around the whole.
absl::StatusOr<Encoded> EncodePieces(const Tokenizer& tokenizer, bool decoder,
                                     const std::vector<AnchoredPiece>& pieces,
                                     const std::vector<std::string>& targets);

// The pieces of an adapter's template with `text` in its one column; or, if `text` has {v*N}
// itself, those of `text`. Errors: a template with other than one column; another number of virtual
// tokens than `count`.
absl::StatusOr<std::vector<AnchoredPiece>> PiecesOfPrompt(const std::string& input_template,
                                                          const std::string& text, int64_t count);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_ENCODE_H_
