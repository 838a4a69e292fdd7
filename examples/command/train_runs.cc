#include "train_runs.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "config_entries.h"
#include "engine/check.h"
#include "io/json.h"

namespace permafrost {
namespace {

// The options that the command line gave, as arguments of another one.
std::vector<std::string> GivenArguments(const CLI::App& app) {
  std::vector<std::string> arguments;
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0 || option->get_lnames().empty()) continue;
    const std::string name = option->get_lnames()[0];
    if (name == "runs" || name == "config" || name == "help") continue;
    if (option->get_expected_max() == 0) {
      arguments.push_back("--" + name);
      continue;
    }
    for (const std::string& value : option->results()) {
      arguments.push_back(absl::StrCat("--", name, "=", value));
    }
  }
  return arguments;
}

absl::StatusOr<TrainFlags> ReadRun(const std::string& where, const nlohmann::json& run,
                                   const std::vector<std::string>& shared) {
  CLI::App app;
  TrainFlags flags;
  AddTrainFlags(&app, flags);
  std::vector<std::string> arguments;
  PERMAFROST_RETURN_IF_ERROR(AppendEntries(where, " train", app, run, {}, arguments));
  for (const char* name : {"--base", "--precision", "--threads", "--recompute"}) {
    if (!IsGiven(arguments, name)) continue;
    return UsageError(
        absl::StrCat(where, ": ", name, ": expected on the command line, all runs share it"));
  }
  std::vector<std::string> all = arguments;
  for (const std::string& argument : shared) {
    if (!IsGiven(arguments, argument.substr(0, argument.find('=')))) all.push_back(argument);
  }
  std::reverse(all.begin(), all.end());  // as CLI11 takes them
  try {
    app.parse(all);
  } catch (const CLI::ParseError& e) {
    return UsageError(absl::StrCat(where, ": ", e.what(), "; see permafrost train --help"));
  }
  const absl::Status checked = CheckTrainFlags(flags);
  if (!checked.ok()) return UsageError(absl::StrCat(where, ": ", std::string(checked.message())));
  // Options point to `app`, which ends here.
  flags.method.owned.clear();
  return flags;
}

}  // namespace

absl::StatusOr<std::vector<TrainFlags>> ReadRuns(const std::string& path, const CLI::App& app) {
  PERMAFROST_ASSIGN_OR_RETURN(const nlohmann::json list, ReadJsonFile(path));
  if (!list.is_array() || list.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": expected a list of runs, [{\"method\": ..., \"out\": ...}, ...], found ",
        DescribeJson(list)));
  }
  const std::vector<std::string> shared = GivenArguments(app);
  std::vector<TrainFlags> runs;
  std::set<std::string> folders;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = absl::StrCat(path, ": run ", i);
    PERMAFROST_ASSIGN_OR_RETURN(TrainFlags flags, ReadRun(where, list[i], shared));
    if (!folders.insert(flags.out).second) {
      return UsageError(
          absl::StrCat(where, ": out: expected a folder of its own, found ", flags.out, " again"));
    }
    runs.push_back(std::move(flags));
  }
  return runs;
}

}  // namespace permafrost
