// Data files as lines of token ids: pre-tokenized JSONL, or tables through a template and a
// tokenizer.
#ifndef PERMAFROST_EXAMPLES_COMMAND_DATA_H_
#define PERMAFROST_EXAMPLES_COMMAND_DATA_H_

#include <CLI/CLI.hpp>

#include "command.h"
#include "io/examples.h"
#include "models/batch.h"
#include "peft/evaluate.h"

namespace permafrost {

// --task, --input, --target, --label-words, --label-column, --task-column, --max-tokens, --truncate
struct DataFlags {
  std::string task;
  std::string input;
  std::string target;
  std::string label_words;
  std::string label_column = "label";
  std::string task_column = "task_id";
  int64_t max_tokens = 0;
  bool truncate = false;
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
};

enum class Labels { kRequired, kOptional };

// Reads and tokenizes `path`. `hooks` tells how many virtual tokens a line of a task carries (the
// position limit counts them). Errors name file and line.
absl::StatusOr<LoadedData> LoadData(const std::string& path, const DataFlags& flags, Labels labels,
                                    const Session& session, const AdapterSet& adapters);

// The value of --score: sum, mean or first.
Score ScoreOf(const std::string& name);

EvaluationSet MakeEvaluationSet(const LoadedData& data, Score score, int64_t batch_size);

// The ids of each label word as a continuation of nothing: for class-label initialisation.
absl::StatusOr<std::vector<std::vector<int>>> LabelIds(const DataFlags& flags,
                                                       const Session& session);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_DATA_H_
