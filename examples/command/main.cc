// The `permafrost` command. Exit status: 0 done; 1 an error of input, file or run; 2 a wrong
// command line; 130 interrupted. stdout carries results only.
#include <algorithm>
#include <csignal>
#include <cstdio>

#include "command.h"
#include "engine/check.h"
#include "io/json.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

int Fail(const std::string& message, int status) {
  std::string line = message;  // one line, whatever a library's message holds
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  std::fprintf(stderr, "error: %s\n", line.c_str());
  return status;
}

std::string AsFlagValue(const nlohmann::json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// Flags of a --config file (JSON with the flags' names) that the command line does not give itself.
absl::Status ExpandConfig(std::vector<std::string>& arguments) {
  const auto it = std::find(arguments.begin(), arguments.end(), "--config");
  if (it == arguments.end() || it + 1 == arguments.end()) return absl::OkStatus();
  const std::string path = *(it + 1);
  arguments.erase(it, it + 2);
  PERMAFROST_ASSIGN_OR_RETURN(const nlohmann::json config, ReadJsonFile(path));
  if (!config.is_object()) {
    return absl::InvalidArgumentError(path + ": expected an object of flags, found " +
                                      DescribeJson(config));
  }
  for (const auto& [key, value] : config.items()) {
    std::string flag = "--" + key;
    std::replace(flag.begin() + 2, flag.end(), '_', '-');
    const bool given = std::any_of(arguments.begin(), arguments.end(), [&](const std::string& a) {
      return a == flag || a.rfind(flag + "=", 0) == 0;
    });
    if (given || value.is_null() || value == false) continue;
    if (value.is_array()) {
      for (const nlohmann::json& v : value) {
        arguments.push_back(flag);
        arguments.push_back(AsFlagValue(v));
      }
      continue;
    }
    arguments.push_back(flag);
    if (value != true) arguments.push_back(AsFlagValue(value));
  }
  return absl::OkStatus();
}

bool UnknownCommand(const Commands& commands, const std::string& name) {
  return std::none_of(commands.list.begin(), commands.list.end(),
                      [&](const auto& entry) { return entry.first->get_name() == name; });
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
  if (!arguments.empty() && arguments[0][0] != '-' && UnknownCommand(commands, arguments[0])) {
    return Fail("unknown command " + arguments[0] + "; see permafrost --help", 2);
  }
  if (const absl::Status status = ExpandConfig(arguments); !status.ok()) {
    return Fail(std::string(status.message()), 1);
  }
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
  try {
    app.parse(arguments);
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForVersion& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    return Fail(std::string(e.what()) + "; see permafrost --help", 2);
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
    return status.ok() ? 0 : Fail(std::string(status.message()), 1);
  }
  return 0;
}

}  // namespace
}  // namespace permafrost

int main(int argc, char** argv) { return permafrost::Main(argc, argv); }
