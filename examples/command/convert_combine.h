// convert's work on adapters: arithmetic on several, and one made of two checkpoints.
#ifndef PERMAFROST_EXAMPLES_COMMAND_CONVERT_COMBINE_H_
#define PERMAFROST_EXAMPLES_COMMAND_CONVERT_COMBINE_H_

#include <string>
#include <vector>

#include "command.h"

namespace permafrost {

struct CombineFlags {
  std::string how;      // linear, cat or average
  std::string weights;  // "0.5,-1"; empty: 1 each
};
void AddCombineFlags(CLI::App* app, CombineFlags& flags);
// One adapter folder of several. Errors: weights that are not as many numbers as adapters; what
// CombineAdapters refuses.
absl::Status CombineFolders(const CombineFlags& flags, const std::vector<std::string>& adapters,
                            const std::string& out, Context& c, const Model& model);

struct ExtractFlags {
  int64_t rank = 0;
  std::string tuned, targets = "all-linear";
};
void AddExtractFlags(CLI::App* app, ExtractFlags& flags);
// A LoRA folder from `model` and the checkpoint flags.tuned. Prints a JSON line a module, and one
// for all.
absl::Status ExtractFolder(const ExtractFlags& flags, const std::string& out, Context& c,
                           const Model& model);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_CONVERT_COMBINE_H_
