#include "data.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/file.h"
#include "io/table.h"
#include "io/tasks.h"

namespace permafrost {
namespace {

// Token ids of a text and what may follow it.
struct Encoded {
  std::vector<int32_t> input;
  std::vector<std::vector<int32_t>> targets;
};

std::vector<int32_t> ToIds(const std::vector<int>& ids) { return {ids.begin(), ids.end()}; }

// Decoder: a continuation's ids are what encoding the joined text adds, so that word boundaries
// come out as in running text; if the text's own ids are not a prefix of that, the parts are
// encoded one by one.
absl::StatusOr<Encoded> EncodeDecoder(const Tokenizer& tokenizer, const std::string& input,
                                      const std::vector<std::string>& targets) {
  Encoded e;
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> ids, tokenizer.Encode(input, Special::kAdd));
  e.input = ToIds(ids);
  bool prefix = true;
  for (const std::string& target : targets) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> joined,
                                tokenizer.Encode(input + target, Special::kAdd));
    prefix =
        prefix && joined.size() > ids.size() && std::equal(ids.begin(), ids.end(), joined.begin());
    e.targets.emplace_back(joined.begin() + static_cast<long>(std::min(ids.size(), joined.size())),
                           joined.end());
  }
  if (prefix) return e;
  e.targets.clear();
  for (const std::string& target : targets) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> alone,
                                tokenizer.Encode(target, Special::kNone));
    e.targets.push_back(ToIds(alone));
  }
  return e;
}

absl::StatusOr<Encoded> EncodeT5(const Tokenizer& tokenizer, const std::string& input,
                                 const std::vector<std::string>& targets) {
  Encoded e;
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> ids, tokenizer.Encode(input, Special::kAdd));
  e.input = ToIds(ids);
  for (const std::string& target : targets) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> t, tokenizer.Encode(target, Special::kAdd));
    e.targets.push_back(ToIds(t));
  }
  return e;
}

// Limits of a line's length, and what to do beyond them.
class LengthRule {
 public:
  LengthRule(const DataFlags& flags, const Session& session, const AdapterSet& adapters,
             std::string path)
      : flags_(flags), info_(session.model->info()), adapters_(adapters), path_(std::move(path)) {}

  // `total` tokens of which `cut` come from the input text; returns how many to drop from it.
  absl::StatusOr<int64_t> Excess(int64_t input, int64_t total, int task, int line) const {
    int64_t excess = 0;
    std::string limit;
    if (flags_.max_tokens > 0 && input > flags_.max_tokens) {
      excess = input - flags_.max_tokens;
      limit = absl::StrCat("--max-tokens ", flags_.max_tokens);
    }
    const int64_t rows = adapters_.VirtualTokens(task) + adapters_.FirstPosition(task) + total;
    if (info_.max_positions > 0 && rows > info_.max_positions &&
        rows - info_.max_positions > excess) {
      excess = rows - info_.max_positions;
      limit = absl::StrCat(info_.position_limit, " ", info_.max_positions, " of the base");
    }
    if (excess > 0 && (!flags_.truncate || excess >= input)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ":", line, ": input too long: expected at most ", limit, ", found ",
                       limit[0] == '-' ? input : rows, " tokens; shorten it or use --truncate"));
    }
    return excess;
  }

 private:
  const DataFlags& flags_;
  const ModelInfo& info_;
  const AdapterSet& adapters_;
  std::string path_;
};

absl::Status TaskError(const absl::Status& status, const std::string& path, int line) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ":", line, ": ", std::string(status.message())));
}

absl::StatusOr<LoadedData> LoadTokens(const std::string& path, const DataFlags& flags,
                                      Labels labels, const Session& session,
                                      const AdapterSet& adapters) {
  const ModelInfo& info = session.model->info();
  TokenOptions options{.vocabulary = static_cast<int>(info.vocabulary),
                       .equal_length = !info.encoder_decoder,
                       .need_labels = labels == Labels::kRequired};
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<TokenExample> examples,
                              ReadTokenExamples(path, options));
  const LengthRule rule(flags, session, adapters, path);
  LoadedData data;
  for (const TokenExample& e : examples) {
    TokenLine line{ToIds(e.input_ids), ToIds(e.labels), kNoTask};
    const auto task = adapters.TaskOf(e.adapter);
    if (!task.ok()) return TaskError(task.status(), path, e.line);
    line.task = *task;
    const int64_t length = static_cast<int64_t>(line.input_ids.size());
    PERMAFROST_ASSIGN_OR_RETURN(const int64_t excess,
                                rule.Excess(length, length, line.task, e.line));
    const size_t kept = static_cast<size_t>(length - excess);
    line.input_ids.resize(kept);
    if (!info.encoder_decoder && line.labels.size() > kept) line.labels.resize(kept);
    data.lines.push_back(std::move(line));
    data.line_numbers.push_back(e.line);
  }
  return data;
}

struct TextSource {
  TextOptions options;
  Table table;
  std::vector<std::string> metrics;
};

absl::StatusOr<TextOptions> OptionsOf(const DataFlags& flags, bool decoder,
                                      std::vector<std::string>* metrics) {
  TextOptions options;
  if (!flags.task.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(const TaskPreset* task, FindTask(flags.task));
    options = TaskTextOptions(*task, decoder);
    if (metrics != nullptr) *metrics = task->metrics;
  }
  if (!flags.input.empty()) options.input = flags.input;
  if (!flags.target.empty()) options.target = flags.target;
  if (!flags.label_words.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(options.label_words, ParseLabelWords(flags.label_words));
    options.label_values.clear();
  }
  if (flags.label_column != "label") options.label_column = flags.label_column;
  if (options.input.empty()) {
    return absl::InvalidArgumentError(
        "this data needs a template: expected --task NAME or --input TEMPLATE, found neither");
  }
  return options;
}

absl::StatusOr<TextSource> ReadTexts(const std::string& path, const DataFlags& flags, bool decoder,
                                     Labels labels) {
  TextSource source;
  PERMAFROST_ASSIGN_OR_RETURN(source.options, OptionsOf(flags, decoder, &source.metrics));
  source.options.need_target = labels == Labels::kRequired;
  if (flags.task.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(source.table, ReadTable(path));
  } else {
    PERMAFROST_ASSIGN_OR_RETURN(const TaskPreset* task, FindTask(flags.task));
    PERMAFROST_ASSIGN_OR_RETURN(TaskTable table, ReadTaskTable(path, *task));
    source.table = std::move(table.table);
    source.options.first_index = table.first_index;
  }
  if (source.metrics.empty() && !source.options.label_words.empty()) source.metrics = {"accuracy"};
  return source;
}

absl::StatusOr<LoadedData> LoadTexts(const std::string& path, const DataFlags& flags, Labels labels,
                                     const Session& session, const AdapterSet& adapters) {
  const bool decoder = !session.model->info().encoder_decoder;
  PERMAFROST_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(session));
  PERMAFROST_ASSIGN_OR_RETURN(const TextSource source, ReadTexts(path, flags, decoder, labels));
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<TextExample> examples,
                              MakeTextExamples(source.table, source.options));
  const bool classes = !source.options.label_words.empty();
  std::vector<std::string> words;
  if (classes) {
    PERMAFROST_ASSIGN_OR_RETURN(words, LabelTargets(source.options));
  }
  const LengthRule rule(flags, session, adapters, path);
  LoadedData data;
  data.label_words = source.options.label_words;
  data.metrics = source.metrics;
  for (const TextExample& e : examples) {
    const auto task = adapters.TaskOf(e.adapter);
    if (!task.ok()) return TaskError(task.status(), path, e.line);
    std::vector<std::string> targets = words;
    if (!classes && !e.target.empty()) targets = {e.target};
    absl::StatusOr<Encoded> encoded = decoder ? EncodeDecoder(*tokenizer, e.input, targets)
                                              : EncodeT5(*tokenizer, e.input, targets);
    if (!encoded.ok()) return TaskError(encoded.status(), path, e.line);
    if (decoder && !classes && !encoded->targets.empty() && tokenizer->eos_id().has_value()) {
      encoded->targets[0].push_back(*tokenizer->eos_id());
    }
    std::vector<int32_t>& input = encoded->input;
    int64_t longest = 0;
    for (const auto& t : encoded->targets)
      longest = std::max(longest, static_cast<int64_t>(t.size()));
    const int64_t length = static_cast<int64_t>(input.size());
    PERMAFROST_ASSIGN_OR_RETURN(
        const int64_t excess, rule.Excess(length, length + (decoder ? longest : 0), *task, e.line));
    if (excess > 0) {  // T5 keeps its final </s>
      const int32_t last = input.back();
      input.resize(static_cast<size_t>(length - excess));
      if (!decoder) input.back() = last;
    }
    const size_t chosen = classes ? static_cast<size_t>(std::max(e.label, 0)) : 0;
    TokenLine line{input, {}, *task};
    if (chosen < encoded->targets.size() && (!classes || e.label >= 0)) {
      line.labels = encoded->targets[chosen];
      if (decoder) {
        line.labels.insert(line.labels.begin(), input.size(), kIgnoredLabel);
        line.input_ids.insert(line.input_ids.end(), encoded->targets[chosen].begin(),
                              encoded->targets[chosen].end());
      }
    }
    data.lines.push_back(std::move(line));
    data.line_numbers.push_back(e.line);
    if (!classes) continue;
    data.choices.push_back({input, encoded->targets, *task});
    data.labels.push_back(e.label);
  }
  return data;
}

}  // namespace

void AddDataFlags(CLI::App* app, DataFlags& flags) {
  app->add_option("--task", flags.task,
                  "preset: template, label words and metric of a known data set");
  app->add_option("--input", flags.input, "input template, e.g. \"sst2 sentence: {sentence}\"");
  app->add_option("--target", flags.target, "target template, e.g. \"{label}\"");
  app->add_option("--label-words", flags.label_words, "label words by index: negative,positive");
  app->add_option("--label-column", flags.label_column, "column of the label")
      ->capture_default_str();
  app->add_option("--max-tokens", flags.max_tokens, "longest input in tokens")->check(Positive());
  app->add_flag("--truncate", flags.truncate, "cut longer inputs instead of stopping");
}

absl::StatusOr<LoadedData> LoadData(const std::string& path, const DataFlags& flags, Labels labels,
                                    const Session& session, const AdapterSet& adapters) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  if (text.find_first_not_of(" \t\r\n") == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected lines of data, found none"));
  }
  PERMAFROST_ASSIGN_OR_RETURN(const bool tokens, IsTokenFile(path));
  return tokens ? LoadTokens(path, flags, labels, session, adapters)
                : LoadTexts(path, flags, labels, session, adapters);
}

Score ScoreOf(const std::string& name) {
  return name == "mean" ? Score::kMean : name == "first" ? Score::kFirst : Score::kSum;
}

EvaluationSet MakeEvaluationSet(const LoadedData& data, Score score, int64_t batch_size) {
  return {data.lines, data.choices, data.labels, data.metrics, score, batch_size};
}

absl::StatusOr<std::vector<std::vector<int>>> LabelIds(const DataFlags& flags,
                                                       const Session& session) {
  PERMAFROST_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(session));
  PERMAFROST_ASSIGN_OR_RETURN(const TextOptions options,
                              OptionsOf(flags, !session.model->info().encoder_decoder, nullptr));
  std::vector<std::vector<int>> ids;
  for (const std::string& word : options.label_words) {
    PERMAFROST_ASSIGN_OR_RETURN(ids.emplace_back(), tokenizer->Encode(word, Special::kNone));
  }
  return ids;
}

}  // namespace permafrost
