#include "data.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "anchored_texts.h"
#include "encode.h"
#include "engine/check.h"
#include "io/file.h"
#include "objectives.h"
#include "shots.h"
#include "texts.h"

namespace permafrost {
namespace {

std::vector<int32_t> ToIds(const std::vector<int>& ids) { return {ids.begin(), ids.end()}; }

// Limits of a line's length, and what to do beyond them.
class LengthRule {
 public:
  LengthRule(const DataFlags& flags, const Session& session, const AdapterSet& adapters,
             std::string path)
      : flags_(flags), info_(session.model->info()), adapters_(adapters), path_(std::move(path)) {}

  const std::string& path() const { return path_; }

  // `total` tokens of which `input` come from the input text; returns how many to drop from it.
  // With `shots` there is something else to drop first.
  absl::StatusOr<int64_t> Excess(int64_t input, int64_t total, int task, int line,
                                 bool shots = false) const {
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
    if (excess > 0 && (!flags_.truncate || (excess >= input && !shots))) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ":", line, ": input too long: expected at most ", limit, ", found ",
                       limit[0] == '-' ? input : rows, " tokens; ",
                       shots ? "use fewer --shots" : "shorten it", " or use --truncate"));
    }
    return excess;
  }

 private:
  const DataFlags& flags_;
  const ModelInfo& info_;
  const AdapterSet& adapters_;
  std::string path_;
};

// Where the text may be cut is not known among virtual tokens.
absl::Status RefuseToCut(int64_t excess, int64_t anchored, const std::string& path, int line) {
  if (excess == 0 || anchored == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      path, ":", line, ": input too long by ", excess,
      " tokens: expected a shorter one, a text with virtual tokens in it cannot be truncated"));
}

// What every target starts with: nothing, or <extra_id_0> for --target-format sentinel ("Span
// Corruption + Sentinel", Lester et al. 2021, section 2.2: a base pretrained by span corruption has
// never seen a target without one).
absl::StatusOr<std::vector<int32_t>> TargetStart(const DataFlags& flags, const Session& session) {
  if (flags.target_format == "plain") return std::vector<int32_t>();
  const ModelInfo& info = session.model->info();
  if (!info.encoder_decoder) {
    return absl::InvalidArgumentError(
        absl::StrCat("--target-format sentinel: expected a base pretrained by span corruption "
                     "(t5), found ",
                     info.model_type));
  }
  const std::vector<int32_t> sentinels = SentinelIds(session);
  if (sentinels.empty()) {
    return absl::InvalidArgumentError(
        "--target-format sentinel: expected <extra_id_0> in the base's tokenizer, found none");
  }
  return std::vector<int32_t>{sentinels[0]};
}

absl::StatusOr<LoadedData> LoadTokens(const std::string& path, const DataFlags& flags,
                                      Labels labels, const Session& session,
                                      const AdapterSet& adapters) {
  const ModelInfo& info = session.model->info();
  TokenOptions options{.vocabulary = static_cast<int>(info.vocabulary),
                       .equal_length = !info.encoder_decoder,
                       .need_labels = labels == Labels::kRequired,
                       .virtual_ids = !TemplateOf(adapters).empty()};
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<TokenExample> examples,
                              ReadTokenExamples(path, options));
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int32_t> start, TargetStart(flags, session));
  const LengthRule rule(flags, session, adapters, path);
  LoadedData data;
  data.target_start = start;
  for (const TokenExample& e : examples) {
    TokenLine line{ToIds(e.input_ids), ToIds(e.labels), kNoTask};
    if (!line.labels.empty()) {
      line.labels.insert(line.labels.begin(), start.begin(), start.end());
    }
    const auto task = adapters.TaskOf(e.adapter);
    if (!task.ok()) return AtLine(task.status(), path, e.line);
    line.task = *task;
    const auto prompt = PromptOf(adapters, line.task, e.task_id);
    if (!prompt.ok()) return AtLine(prompt.status(), path, e.line);
    line.prompt = *prompt;
    const int64_t anchored = std::count(line.input_ids.begin(), line.input_ids.end(), kVirtual);
    if (anchored != adapters.AnchoredTokens(line.task)) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ":", e.line, ": expected ", adapters.AnchoredTokens(line.task),
          " virtual tokens (-1) among input_ids, as the line's adapter has, found ", anchored));
    }
    const int64_t length = static_cast<int64_t>(line.input_ids.size());
    PERMAFROST_ASSIGN_OR_RETURN(const int64_t excess,
                                rule.Excess(length, length, line.task, e.line));
    PERMAFROST_RETURN_IF_ERROR(RefuseToCut(excess, anchored, path, e.line));
    const size_t kept = static_cast<size_t>(length - excess);
    line.input_ids.resize(kept);
    if (!info.encoder_decoder && line.labels.size() > kept) line.labels.resize(kept);
    data.lines.push_back(std::move(line));
    data.line_numbers.push_back(e.line);
  }
  return data;
}

// Encodes tables line by line.
class TextEncoder {
 public:
  TextEncoder(const Tokenizer& tokenizer, const LengthRule& rule, bool decoder, bool classes,
              std::vector<int32_t> target_start, std::vector<std::string> shots)
      : tokenizer_(tokenizer),
        rule_(rule),
        decoder_(decoder),
        classes_(classes),
        target_start_(std::move(target_start)),
        shots_(std::move(shots)) {}

  // The shots stand in front of the text. Where that is too long, the first shots go before any of
  // the text does (with --truncate).
  absl::StatusOr<Encoded> Encode(const std::string& input, const std::vector<std::string>& targets,
                                 int task, int line) const {
    for (size_t first = 0;; ++first) {
      std::string text;
      for (size_t i = first; i < shots_.size(); ++i) text += shots_[i];
      PERMAFROST_ASSIGN_OR_RETURN(
          Encoded e, Finished(EncodeText(tokenizer_, decoder_, text + input, targets), line));
      const bool with_shots = first < shots_.size();
      PERMAFROST_ASSIGN_OR_RETURN(const int64_t excess, Excess(e, task, line, with_shots));
      if (excess > 0 && with_shots) continue;
      if (excess > 0) {  // T5 keeps its final </s>
        const int32_t last = e.input.back();
        e.input.resize(e.input.size() - static_cast<size_t>(excess));
        if (!decoder_) e.input.back() = last;
      }
      return e;
    }
  }

  // A text with virtual tokens in it, without shots.
  absl::StatusOr<Encoded> EncodeAnchored(const std::vector<AnchoredPiece>& pieces,
                                         const std::vector<std::string>& targets, int task,
                                         int line) const {
    PERMAFROST_ASSIGN_OR_RETURN(
        Encoded e, Finished(EncodePieces(tokenizer_, decoder_, pieces, targets), line));
    PERMAFROST_ASSIGN_OR_RETURN(const int64_t excess, Excess(e, task, line, false));
    PERMAFROST_RETURN_IF_ERROR(RefuseToCut(excess, CountVirtualTokens(pieces), rule_.path(), line));
    return e;
  }

 private:
  absl::StatusOr<int64_t> Excess(const Encoded& e, int task, int line, bool shots) const {
    int64_t longest = 0;
    for (const auto& t : e.targets) longest = std::max(longest, static_cast<int64_t>(t.size()));
    const int64_t length = static_cast<int64_t>(e.input.size());
    return rule_.Excess(length, length + (decoder_ ? longest : 0), task, line, shots);
  }

  // With what stands around targets.
  absl::StatusOr<Encoded> Finished(absl::StatusOr<Encoded> e, int line) const {
    if (!e.ok()) return AtLine(e.status(), rule_.path(), line);
    if (decoder_ && !classes_ && !e->targets.empty() && tokenizer_.eos_id().has_value()) {
      e->targets[0].push_back(*tokenizer_.eos_id());
    }
    for (auto& target : e->targets) {
      target.insert(target.begin(), target_start_.begin(), target_start_.end());
    }
    return e;
  }

  const Tokenizer& tokenizer_;
  const LengthRule& rule_;
  bool decoder_, classes_;
  std::vector<int32_t> target_start_;
  std::vector<std::string> shots_;
};

absl::StatusOr<LoadedData> LoadTexts(const std::string& path, const DataFlags& flags, Labels labels,
                                     const Session& session, const AdapterSet& adapters) {
  const bool decoder = !session.model->info().encoder_decoder;
  PERMAFROST_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(session));
  DataFlags with_input = flags;
  if (flags.input.empty() && flags.task.empty()) with_input.input = TemplateOf(adapters);
  PERMAFROST_ASSIGN_OR_RETURN(const TextSource source,
                              ReadTexts(path, with_input, decoder, labels));
  AnchoredTexts anchored(source, flags);
  const bool classes = !source.options.label_words.empty();
  std::vector<std::string> words;
  if (classes) {
    PERMAFROST_ASSIGN_OR_RETURN(words, LabelTargets(source.options));
  }
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int32_t> start, TargetStart(flags, session));
  PERMAFROST_ASSIGN_OR_RETURN(std::vector<std::string> shots, ShotTexts(path, flags, decoder));
  const LengthRule rule(flags, session, adapters, path);
  const TextEncoder encoder(*tokenizer, rule, decoder, classes, start, std::move(shots));
  LoadedData data;
  data.target_start = start;
  data.label_words = source.options.label_words;
  data.metrics = source.metrics;
  for (size_t row = 0; row < source.examples.size(); ++row) {
    const TextExample& e = source.examples[row];
    const auto task = adapters.TaskOf(e.adapter);
    if (!task.ok()) return AtLine(task.status(), path, e.line);
    const auto prompt = PromptOf(adapters, *task, e.task_id);
    if (!prompt.ok()) return AtLine(prompt.status(), path, e.line);
    const bool with_virtual = adapters.AnchoredTokens(*task) > 0;
    if (!with_virtual && HasAnchors(source.options.input)) {
      return AtLine(absl::InvalidArgumentError(absl::StrCat(
                        "the input template '", source.options.input,
                        "' has virtual tokens: expected an adapter with anchored ones for this "
                        "line, found none")),
                    path, e.line);
    }
    std::vector<std::string> targets = words;
    if (!classes && !e.target.empty()) targets = {e.target};
    Encoded encoded;
    if (with_virtual) {
      PERMAFROST_ASSIGN_OR_RETURN(const std::vector<AnchoredPiece> pieces,
                                  anchored.Row(row, *adapters.MethodOf(*task)));
      PERMAFROST_ASSIGN_OR_RETURN(encoded, encoder.EncodeAnchored(pieces, targets, *task, e.line));
    } else {
      PERMAFROST_ASSIGN_OR_RETURN(encoded, encoder.Encode(e.input, targets, *task, e.line));
    }
    const size_t chosen = classes ? static_cast<size_t>(std::max(e.label, 0)) : 0;
    TokenLine line{encoded.input, {}, *task, *prompt};
    if (chosen < encoded.targets.size() && (!classes || e.label >= 0)) {
      line.labels = encoded.targets[chosen];
      if (decoder) {
        line.labels.insert(line.labels.begin(), encoded.input.size(), kIgnoredLabel);
        line.input_ids.insert(line.input_ids.end(), encoded.targets[chosen].begin(),
                              encoded.targets[chosen].end());
      }
    }
    data.lines.push_back(std::move(line));
    data.line_numbers.push_back(e.line);
    if (!classes) continue;
    data.choices.push_back({encoded.input, encoded.targets, *task, *prompt});
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
  app->add_option("--task-column", flags.task_column,
                  "multitask-prompt: column of the task's index")
      ->capture_default_str();
  app->add_option("--target-format", flags.target_format,
                  "sentinel: every target of a T5 base starts with <extra_id_0>")
      ->check(CLI::IsMember({"plain", "sentinel"}))
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
  PERMAFROST_RETURN_IF_ERROR(CheckObjectiveFlags(flags));
  PERMAFROST_RETURN_IF_ERROR(CheckAnchorFlags(flags, adapters));
  if (flags.objective.objective != "supervised") {
    return LoadRunningText(path, flags, session, adapters);
  }
  PERMAFROST_ASSIGN_OR_RETURN(const bool tokens, IsTokenFile(path));
  if (tokens && flags.shots.shots > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": --shots: expected a table of texts, found token ids"));
  }
  return tokens ? LoadTokens(path, flags, labels, session, adapters)
                : LoadTexts(path, flags, labels, session, adapters);
}

absl::StatusOr<int> PromptOf(const AdapterSet& adapters, int task, int task_id) {
  const Method* method = adapters.MethodOf(task);
  const int64_t prompts = method == nullptr ? 1 : method->Prompts();
  if (prompts == 1) return 0;
  if (task_id >= 0 && task_id < prompts) return task_id;
  return absl::InvalidArgumentError(
      absl::StrCat("expected a task_id from 0 to ", prompts - 1, " for this line's adapter, found ",
                   task_id < 0 ? "none that is a whole number" : absl::StrCat(task_id)));
}

std::vector<int32_t> SentinelIds(const Session& session) {
  std::vector<int32_t> ids;
  if (session.tokenizer == nullptr) return ids;
  for (;;) {
    const std::string name = absl::StrCat("<extra_id_", ids.size(), ">");
    const auto encoded = session.tokenizer->Encode(name, Special::kNone);
    if (!encoded.ok() || encoded->size() != 1 || session.tokenizer->Piece((*encoded)[0]) != name ||
        (*encoded)[0] >= session.model->info().vocabulary) {
      return ids;
    }
    ids.push_back((*encoded)[0]);
  }
}

Score ScoreOf(const std::string& name) {
  return name == "mean" ? Score::kMean : name == "first" ? Score::kFirst : Score::kSum;
}

absl::Status CheckScore(const std::string& name, const DataFlags& flags) {
  if (flags.target_format == "plain" || name == "sum") return absl::OkStatus();
  return UsageError(absl::StrCat("--score ", name,
                                 ": expected sum with --target-format sentinel, whose first token "
                                 "is the same for all label words"));
}

EvaluationSet MakeEvaluationSet(const LoadedData& data, Score score, int64_t batch_size) {
  return {data.lines, data.choices, data.labels, data.metrics, score, batch_size};
}

absl::StatusOr<std::vector<std::vector<int>>> LabelIds(const DataFlags& flags,
                                                       const Session& session) {
  PERMAFROST_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(session));
  PERMAFROST_ASSIGN_OR_RETURN(
      const TextOptions options,
      TextOptionsOf(flags, !session.model->info().encoder_decoder, nullptr));
  std::vector<std::vector<int>> ids;
  for (const std::string& word : options.label_words) {
    PERMAFROST_ASSIGN_OR_RETURN(ids.emplace_back(), tokenizer->Encode(word, Special::kNone));
  }
  return ids;
}

}  // namespace permafrost
