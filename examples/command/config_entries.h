// JSON objects as flags: --config files, the runs of --runs files.
#ifndef PERMAFROST_EXAMPLES_COMMAND_CONFIG_ENTRIES_H_
#define PERMAFROST_EXAMPLES_COMMAND_CONFIG_ENTRIES_H_

#include <string>
#include <vector>

#include "command.h"
#include "nlohmann/json.hpp"

namespace permafrost {

// Whether `arguments` give `flag` ("--rank").
bool IsGiven(const std::vector<std::string>& arguments, const std::string& flag);

// Appends to `arguments` the flags that an object's entries stand for, {"batch_size": 8} as
// --batch-size=8, but for those that `given` gives. Errors name `where` and the entry: no flag of
// `app` (`command` in messages), a value of the wrong kind.
absl::Status AppendEntries(const std::string& where, const std::string& command,
                           const CLI::App& app, const nlohmann::json& object,
                           const std::vector<std::string>& given,
                           std::vector<std::string>& arguments);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_CONFIG_ENTRIES_H_
