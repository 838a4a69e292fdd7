// Answers of a base with adapters to the lines of a data file: probabilities of label words, or
// generated text. Shared by eval and predict.
#ifndef PERMAFROST_EXAMPLES_COMMAND_PREDICTIONS_H_
#define PERMAFROST_EXAMPLES_COMMAND_PREDICTIONS_H_

#include <string>
#include <vector>

#include "command.h"
#include "data.h"

namespace permafrost {

// What eval and predict both take.
struct AnswerFlags {
  BaseFlags base;
  DataFlags data;
  std::vector<std::string> adapters;
  std::string data_path, score = "sum";
  int64_t batch_size = 16, max_new_tokens = 32;
  std::string ensemble;  // mean, vote; empty: no ensemble
};
void AddAnswerFlags(CLI::App* app, AnswerFlags& flags);

struct AnswerSession {
  Session session;
  AdapterSet adapters;
  LoadedData data;
};
// Opens everything; errors: --ensemble without adapters or without label words, and those of the
// parts.
absl::StatusOr<AnswerSession> OpenAnswers(const AnswerFlags& flags, Labels labels);

// By line: the probabilities of the label words (softmax of their scores) and the choice. With
// --ensemble each line runs with every adapter in the same batch and their answers are combined.
std::vector<EnsembleAnswer> LabelAnswers(const AnswerFlags& flags, AnswerSession& s);

// The text of generated or target ids, without special tokens and without what every target starts
// with. Needs a tokenizer.
std::string AnswerText(std::vector<int32_t> ids, const AnswerSession& s);

struct GeneratedText {
  std::string text;  // empty without a tokenizer
  std::vector<int32_t> ids;
};
// Greedy continuation of line i's input; the line's own target, if it has one, is not seen.
absl::StatusOr<GeneratedText> GenerateAnswer(const AnswerFlags& flags, AnswerSession& s, size_t i);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_PREDICTIONS_H_
