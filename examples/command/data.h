// Data files as lines of token ids: pre-tokenized JSONL, or tables through a template and a
// tokenizer (texts.h), as pairs of input and target or as running text (objectives.h).
#ifndef PERMAFROST_EXAMPLES_COMMAND_DATA_H_
#define PERMAFROST_EXAMPLES_COMMAND_DATA_H_

#include <CLI/CLI.hpp>
#include <optional>

#include "command.h"
#include "io/examples.h"
#include "models/batch.h"
#include "peft/evaluate.h"
#include "peft/trainer.h"

namespace permafrost {

// --objective, --noise-density, --mean-span (AddObjectiveFlags in objectives.h). Empty: not given.
struct ObjectiveFlags {
  std::string objective = "supervised";
  std::optional<double> noise_density, mean_span;
};

// --shots, --shots-data, --shot-separator (AddShotFlags in shots.h)
struct ShotFlags {
  int64_t shots = 0;
  std::string data, separator = "\\n\\n";
};

// --task, --input, --target, --label-words, --label-column, --task-column, --target-format,
// --max-tokens, --truncate; what follows them is added by the commands that have it.
struct DataFlags {
  std::string task;
  std::string input;
  std::string target;
  std::string label_words;
  std::string label_column = "label";
  std::string task_column = "task_id";
  std::string target_format = "plain";
  int64_t max_tokens = 0;
  bool truncate = false;
  ObjectiveFlags objective;
  ShotFlags shots;
  int64_t seed = 0;  // of what is drawn at random: shots, splits, spans
};
void AddDataFlags(CLI::App* app, DataFlags& flags);

struct LoadedData {
  std::vector<TokenLine> lines;
  std::vector<int> line_numbers;
  // Classification only: candidates per line, the right one (-1 unknown), the words.
  std::vector<ChoiceLine> choices;
  std::vector<int> labels;
  std::vector<std::string> label_words;
  std::vector<std::string> metrics;
  // Running text with a random objective: makes a line anew for a pass over the data; `lines` are
  // those of pass 0.
  LineMaker make_line;
  // What every target starts with (--target-format sentinel).
  std::vector<int32_t> target_start;
};

enum class Labels { kRequired, kOptional };

// Reads and tokenizes `path`. `hooks` tells how many virtual tokens a line of a task carries (the
// position limit counts them). Errors name file and line.
absl::StatusOr<LoadedData> LoadData(const std::string& path, const DataFlags& flags, Labels labels,
                                    const Session& session, const AdapterSet& adapters);

// Which of its adapter's prompts a line of `task` uses (TokenLine::prompt); task_id is -1 where the
// data has none. Error: no task_id, or one out of range, though the adapter has several.
absl::StatusOr<int> PromptOf(const AdapterSet& adapters, int task, int task_id);

// Ids of <extra_id_0>, <extra_id_1>, ... in the base's tokenizer; empty if it has none.
std::vector<int32_t> SentinelIds(const Session& session);

// The value of --score: sum, mean or first.
Score ScoreOf(const std::string& name);
// Usage error: another score than sum, where all label words start with the same sentinel.
absl::Status CheckScore(const std::string& name, const DataFlags& flags);

EvaluationSet MakeEvaluationSet(const LoadedData& data, Score score, int64_t batch_size);

// The ids of each label word as a continuation of nothing: for class-label initialisation.
absl::StatusOr<std::vector<std::vector<int>>> LabelIds(const DataFlags& flags,
                                                       const Session& session);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_DATA_H_
