// Tables of texts through a template: what the flags and a preset say, and the examples they make.
#ifndef PERMAFROST_EXAMPLES_COMMAND_TEXTS_H_
#define PERMAFROST_EXAMPLES_COMMAND_TEXTS_H_

#include <string>
#include <vector>

#include "data.h"
#include "io/table.h"

namespace permafrost {

// The template and label words of the flags; `metrics`, if not null, gets those of the preset.
// Error: neither --task nor --input.
absl::StatusOr<TextOptions> TextOptionsOf(const DataFlags& flags, bool decoder,
                                          std::vector<std::string>* metrics);

struct TextSource {
  TextOptions options;
  Table table;
  // Of each row. With virtual tokens among the words ({v*N}) the input texts are AnchoredTexts'.
  std::vector<TextExample> examples;
  std::vector<std::string> metrics;
};
absl::StatusOr<TextSource> ReadTexts(const std::string& path, const DataFlags& flags, bool decoder,
                                     Labels labels);

// `status` with the file and line in front.
absl::Status AtLine(const absl::Status& status, const std::string& path, int line);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_TEXTS_H_
