// The `permafrost` command. Exit status: 0 done; 1 an error of input, file or run; 2 a wrong
// command line; 130 interrupted. stdout carries results only.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "command.h"
#include "config_entries.h"
#include "engine/check.h"
#include "io/json.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

int Fail(const std::string& message, int status) {
  // One line without terminal codes, whatever a library's message or a stranger's file holds.
  std::string line = message;
  for (char& c : line) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = ' ';
  }
  std::fprintf(stderr, "error: %s\n", line.c_str());
  return status;
}

// The command that the first words name, down to the last subcommand; "" and the app itself for
// none. Error: a word that is no command.
struct Chosen {
  CLI::App* app;
  std::string name;
};
absl::StatusOr<Chosen> ChooseCommand(CLI::App& app, const std::vector<std::string>& words) {
  Chosen chosen{&app, ""};
  for (const std::string& word : words) {
    if (chosen.app->get_subcommands({}).empty()) break;
    if (word == "--help" || word == "-h" || word == "--version") break;
    const std::vector<CLI::App*> named =
        chosen.app->get_subcommands([&](const CLI::App* sub) { return sub->get_name() == word; });
    if (named.empty()) {
      return UsageError(absl::StrCat("unknown command", chosen.name, " ", word, "; see permafrost",
                                     chosen.name, " --help"));
    }
    absl::StrAppend(&chosen.name, " ", word);
    chosen.app = named[0];
  }
  return chosen;
}

// The value of --config, if it is given.
std::optional<std::string> ConfigPath(const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (absl::StartsWith(arguments[i], "--config=")) return arguments[i].substr(9);
    if (arguments[i] == "--config" && i + 1 < arguments.size()) return arguments[i + 1];
  }
  return std::nullopt;
}

// Adds the flags of a --config file that the command line does not give itself.
absl::Status ExpandConfig(const Chosen& command, std::vector<std::string>& arguments) {
  const std::optional<std::string> path = ConfigPath(arguments);
  if (!path.has_value()) return absl::OkStatus();
  PERMAFROST_ASSIGN_OR_RETURN(const nlohmann::json config, ReadJsonFile(*path));
  return AppendEntries(*path, command.name, *command.app, config, arguments, arguments);
}

int FailWith(const absl::Status& status) {
  return Fail(std::string(status.message()), IsUsageError(status) ? 2 : 1);
}

int Main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit is an error to report, as a full disk is
  CLI::App app("Permafrost: frozen-base parameter-efficient fine-tuning", "permafrost");
  app.require_subcommand(1);
  app.set_version_flag("--version", "permafrost 0.1.0");
  Commands commands{app, {}};
  AddTrain(commands);
  AddEval(commands);
  AddPredict(commands);
  AddGenerate(commands);
  AddForward(commands);
  AddBench(commands);
  AddInspect(commands);
  AddConvert(commands);
  AddNeighbors(commands);
  AddTokenize(commands);

  std::vector<std::string> arguments(argv + 1, argv + argc);
  const absl::StatusOr<Chosen> chosen = ChooseCommand(app, arguments);
  if (!chosen.ok()) return FailWith(chosen.status());
  if (const absl::Status status = ExpandConfig(*chosen, arguments); !status.ok()) {
    return FailWith(status);
  }
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
  try {
    app.parse(arguments);
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForVersion& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    return Fail(absl::StrCat(e.what(), "; see permafrost", chosen->name, " --help"), 2);
  }
  for (auto& [sub, run] : commands.list) {
    if (!sub->parsed()) continue;
    absl::Status status = run();
    if (status.ok() && (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)) {
      status = absl::UnavailableError("cannot write the results to stdout");
    }
    if (absl::IsCancelled(status)) {
      Say(std::string(status.message()));
      return 130;
    }
    return status.ok() ? 0 : FailWith(status);
  }
  return 0;
}

}  // namespace
}  // namespace permafrost

int main(int argc, char** argv) { return permafrost::Main(argc, argv); }
