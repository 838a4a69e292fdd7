// Several runs at once: --runs FILE, a JSON list of runs, each an object of train's flags.
#ifndef PERMAFROST_EXAMPLES_COMMAND_TRAIN_RUNS_H_
#define PERMAFROST_EXAMPLES_COMMAND_TRAIN_RUNS_H_

#include <string>
#include <vector>

#include "train_flags.h"

namespace permafrost {

// The flags of each run: its own, then those of the command line, `app`, which was parsed. Errors
// name the file and the run: no list, a flag that all runs share (base, precision, threads,
// recompute), no `out` or one that stands twice, and what a command line of its own would say.
absl::StatusOr<std::vector<TrainFlags>> ReadRuns(const std::string& path, const CLI::App& app);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_TRAIN_RUNS_H_
