// Running text as training lines: causal and prefix language modelling, span corruption.
#ifndef PERMAFROST_EXAMPLES_COMMAND_OBJECTIVES_H_
#define PERMAFROST_EXAMPLES_COMMAND_OBJECTIVES_H_

#include <string>

#include "data.h"

namespace permafrost {

void AddObjectiveFlags(CLI::App* app, ObjectiveFlags& flags);

// Usage errors: a flag of supervised data with an objective on running text, or one of span
// corruption without it.
absl::Status CheckObjectiveFlags(const DataFlags& flags);

// The texts of a table (--input, default "{text}") or of pre-tokenized JSONL without labels, cut
// into windows that --max-tokens and the base's positions allow; each window is a line. A decoder's
// text ends with the end token; a T5 window's input and target do. Errors name file and line: a
// text without a token; an objective that the base cannot have.
absl::StatusOr<LoadedData> LoadRunningText(const std::string& path, const DataFlags& flags,
                                           const Session& session, const AdapterSet& adapters);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_OBJECTIVES_H_
