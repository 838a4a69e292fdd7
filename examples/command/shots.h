// Hard prompts of K worked examples in front of each input (few-shot, Brown et al. 2020).
#ifndef PERMAFROST_EXAMPLES_COMMAND_SHOTS_H_
#define PERMAFROST_EXAMPLES_COMMAND_SHOTS_H_

#include <string>
#include <vector>

#include "data.h"

namespace permafrost {

void AddShotFlags(CLI::App* app, DataFlags& flags);

// --shots texts from --shots-data with the template of the data at `path`, each input with its
// target and the separator behind; which ones and their order depend on the seed alone. None if
// there are no --shots. Errors: --shots without --shots-data or the other way around, the data file
// itself, fewer examples than shots.
absl::StatusOr<std::vector<std::string>> ShotTexts(const std::string& path, const DataFlags& flags,
                                                   bool decoder);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_SHOTS_H_
