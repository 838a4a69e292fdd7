// What the subcommands share: flags, opening a base with its tokenizer and adapters, results and
// errors.
#ifndef PERMAFROST_EXAMPLES_COMMAND_COMMAND_H_
#define PERMAFROST_EXAMPLES_COMMAND_COMMAND_H_

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/tokenizer.h"
#include "peft/adapter_file.h"

namespace permafrost {

// A subcommand's run function; its status becomes the exit status (0, 1, or 130 for kCancelled).
using Run = std::function<absl::Status()>;

// A wrong command line that only the command itself can see: exit status 2.
absl::Status UsageError(const std::string& message);
bool IsUsageError(const absl::Status& status);

// Checks of numbers. CLI11's own let NaN pass and name the largest double as their bound.
CLI::Validator Positive();
CLI::Validator NonNegative();
CLI::Validator Between(double low, double high);

// --config FILE. main.cc puts the file's flags behind those of the command line before they are
// parsed; the option stands here for --help.
void AddConfigFlag(CLI::App* app);

// Registers a subcommand; `run` is called after parsing if it was chosen.
struct Commands {
  CLI::App& app;
  std::vector<std::pair<CLI::App*, Run>> list;
  CLI::App* Add(const std::string& name, const std::string& description, Run run) {
    CLI::App* sub = app.add_subcommand(name, description);
    AddConfigFlag(sub);
    list.emplace_back(sub, std::move(run));
    return sub;
  }
};

void AddTrain(Commands& commands);
void AddEval(Commands& commands);
void AddPredict(Commands& commands);
void AddGenerate(Commands& commands);
void AddForward(Commands& commands);
void AddBench(Commands& commands);
void AddInspect(Commands& commands);
void AddConvert(Commands& commands);
void AddNeighbors(Commands& commands);
void AddTokenize(Commands& commands);

// --base, --precision, --threads
struct BaseFlags {
  std::string base;
  std::string precision = "f32";
  int threads = 0;  // 0: all cores
};
void AddBaseFlags(CLI::App* app, BaseFlags& flags);

// --recompute [none|attention|layers]. Attention is the default: 6 to 16 % more time for a quarter
// to a half less memory.
inline constexpr char kDefaultRecompute[] = "attention";
void AddRecomputeFlag(CLI::App* app, std::string& recompute);
Recompute ParseRecompute(const std::string& recompute);

// --adapter DIR, or NAME=DIR repeated
void AddAdapterFlag(CLI::App* app, std::vector<std::string>& adapters);

// An open base.
struct Session {
  std::unique_ptr<Context> context;
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;  // null if the base has none
};
absl::StatusOr<Session> OpenSession(const BaseFlags& flags);
// The tokenizer, or an error that says where one was looked for.
absl::StatusOr<const Tokenizer*> NeedTokenizer(const Session& session);
absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer(const std::string& base);

// The adapters of --adapter flags, each with its task. NAME= may be left out for one adapter, which
// then serves every line.
absl::StatusOr<AdapterSet> OpenAdapters(const std::vector<std::string>& flags, Session& session);

// A line on stderr.
void Say(const std::string& text);
bool StderrIsTerminal();

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_COMMAND_H_
