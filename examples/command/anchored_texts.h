// Lines of text with virtual tokens among their words: the template of a flag or of an adapter,
// {v*N} in it, filled in by the rows of a table.
#ifndef PERMAFROST_EXAMPLES_COMMAND_ANCHORED_TEXTS_H_
#define PERMAFROST_EXAMPLES_COMMAND_ANCHORED_TEXTS_H_

#include <map>
#include <string>
#include <vector>

#include "io/anchors.h"
#include "texts.h"

namespace permafrost {

// The template of the first adapter that has one, for data without another.
std::string TemplateOf(const AdapterSet& adapters);

// Usage errors: a template with virtual tokens for running text (--objective), or with shots in
// front of it (--shots).
absl::Status CheckAnchorFlags(const DataFlags& flags, const AdapterSet& adapters);

// The rows of a table as pieces of text with virtual tokens between them, by template. `source`
// must outlive it.
class AnchoredTexts {
 public:
  AnchoredTexts(const TextSource& source, const DataFlags& flags)
      : source_(source), input_(flags.input) {}

  // Row `row` for a line of `method`, whose template it is unless --input gives one with {v*N}.
  // Errors: an --input without {v*N}; another number of virtual tokens than the adapter's.
  absl::StatusOr<std::vector<AnchoredPiece>> Row(size_t row, const Method& method);

 private:
  absl::Status Render(const std::string& input, int64_t count);

  const TextSource& source_;
  std::string input_;
  std::map<std::string, std::vector<std::vector<AnchoredPiece>>> rendered_;
};

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_ANCHORED_TEXTS_H_
