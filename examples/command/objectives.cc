#include "objectives.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/lines.h"
#include "peft/objectives.h"
#include "texts.h"

namespace permafrost {
namespace {

// A text in token ids, without what the objective puts behind it.
struct RunningText {
  std::vector<int32_t> ids;
  std::string adapter;
  int task_id = -1;  // -1: none
  int line = 0;
};

Objective ObjectiveOf(const std::string& name) {
  if (name == "lm") return Objective::kLanguageModel;
  if (name == "prefix-lm") return Objective::kPrefixLanguageModel;
  return name == "span-corruption" ? Objective::kSpanCorruption : Objective::kSupervised;
}

std::optional<int32_t> EndToken(const Session& session) {
  if (session.tokenizer != nullptr) return session.tokenizer->eos_id();
  const std::vector<int32_t>& ends = session.model->info().end_tokens;
  return ends.empty() ? std::nullopt : std::optional(ends[0]);
}

absl::StatusOr<ObjectiveConfig> ConfigFor(const ObjectiveFlags& flags, const Session& session) {
  ObjectiveConfig config;
  config.objective = ObjectiveOf(flags.objective);
  config.encoder_decoder = session.model->info().encoder_decoder;
  config.spans.density = flags.noise_density.value_or(config.spans.density);
  config.spans.mean_span = flags.mean_span.value_or(config.spans.mean_span);
  config.end_token = EndToken(session);
  if (config.objective == Objective::kSpanCorruption) config.sentinels = SentinelIds(session);
  const absl::Status status = CheckObjective(config, session.model->info().model_type);
  if (!status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--objective ", flags.objective, ": ", std::string(status.message())));
  }
  return config;
}

absl::StatusOr<std::vector<RunningText>> ReadTokenTexts(const std::string& path,
                                                        const DataFlags& flags,
                                                        const Session& session) {
  PERMAFROST_ASSIGN_OR_RETURN(
      const std::vector<TokenExample> examples,
      ReadTokenExamples(path, {.vocabulary = static_cast<int>(session.model->info().vocabulary),
                               .equal_length = false,
                               .need_labels = false}));
  std::vector<RunningText> texts;
  for (const TokenExample& e : examples) {
    if (!e.labels.empty()) {
      return LineError(path, e.line,
                       absl::StrCat("--objective ", flags.objective.objective,
                                    " makes the labels: expected input_ids alone, found labels"));
    }
    texts.push_back({{e.input_ids.begin(), e.input_ids.end()}, e.adapter, e.task_id, e.line});
  }
  return texts;
}

absl::StatusOr<std::vector<RunningText>> ReadTextTexts(const std::string& path,
                                                       const DataFlags& flags,
                                                       const Session& session) {
  const bool decoder = !session.model->info().encoder_decoder;
  PERMAFROST_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(session));
  DataFlags text_flags = flags;
  if (text_flags.input.empty()) text_flags.input = "{text}";
  PERMAFROST_ASSIGN_OR_RETURN(const TextSource source,
                              ReadTexts(path, text_flags, decoder, Labels::kOptional));
  std::vector<RunningText> texts;
  for (const TextExample& e : source.examples) {
    // T5 puts </s> behind each window instead; a decoder's <s> stands before the text alone.
    auto ids = tokenizer->Encode(e.input, decoder ? Special::kAdd : Special::kNone);
    if (!ids.ok()) return AtLine(ids.status(), path, e.line);
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> plain,
                                tokenizer->Encode(e.input, Special::kNone));
    if (plain.empty()) {
      return LineError(path, e.line, "expected a text of at least one token, found an empty one");
    }
    if (decoder && tokenizer->eos_id().has_value() && ids->back() != *tokenizer->eos_id()) {
      ids->push_back(*tokenizer->eos_id());
    }
    texts.push_back({{ids->begin(), ids->end()}, e.adapter, e.task_id, e.line});
  }
  return texts;
}

// The longest window in tokens of the text; 0: no limit.
absl::StatusOr<int64_t> WindowLength(const DataFlags& flags, const ObjectiveConfig& config,
                                     const ModelInfo& info, int64_t virtual_tokens) {
  // The longest input in rows of the model.
  int64_t input = flags.max_tokens;
  if (info.max_positions > 0) {
    const int64_t positions = std::max<int64_t>(info.max_positions - virtual_tokens, 0);
    input = input == 0 ? positions : std::min(input, positions);
  }
  int64_t window = input;
  if (config.objective == Objective::kSpanCorruption) {
    window = LongestSpanText(input > 0 ? input : int64_t{1} << 40,
                             static_cast<int64_t>(config.sentinels.size()), config.spans);
  } else if (config.encoder_decoder && input > 0) {
    window = input - 1;  // the end token
  }
  constexpr int64_t kLeast = 2;  // one token has neither two parts nor a part that is noise
  const bool limited =
      input > 0 || info.max_positions > 0 || config.objective == Objective::kSpanCorruption;
  if (limited && window < kLeast) {
    return absl::InvalidArgumentError(
        absl::StrCat("--objective ", flags.objective.objective, ": expected room for at least ",
                     kLeast, " tokens of text in a window, found ", std::max<int64_t>(window, 0),
                     "; use a larger --max-tokens, or fewer virtual tokens"));
  }
  return window;
}

}  // namespace

void AddObjectiveFlags(CLI::App* app, ObjectiveFlags& f) {
  app->add_option("--objective", f.objective,
                  "supervised: inputs and targets; or on running text (--input, default {text}), "
                  "cut into windows of --max-tokens: lm, every token a target (decoders); "
                  "prefix-lm, the part behind a random point; span-corruption, random spans "
                  "behind sentinels (t5)")
      ->check(CLI::IsMember({"supervised", "lm", "prefix-lm", "span-corruption"}))
      ->capture_default_str();
  app->add_option("--noise-density", f.noise_density,
                  "span-corruption: share of the tokens that are noise (default 0.15)")
      ->check(Between(0.0, 1.0));
  app->add_option("--mean-span", f.mean_span,
                  "span-corruption: mean tokens of a noise span (default 3)")
      ->check(Between(1.0, 1e6));
}

absl::Status CheckObjectiveFlags(const DataFlags& flags) {
  const std::string& name = flags.objective.objective;
  for (const auto& [flag, given] :
       {std::pair("--noise-density", flags.objective.noise_density.has_value()),
        std::pair("--mean-span", flags.objective.mean_span.has_value())}) {
    if (given && name != "span-corruption") {
      return UsageError(absl::StrCat(
          flag, ": expected with --objective span-corruption, found --objective ", name));
    }
  }
  if (name == "supervised") return absl::OkStatus();
  for (const auto& [flag, given] :
       {std::pair("--task", !flags.task.empty()), std::pair("--target", !flags.target.empty()),
        std::pair("--label-words", !flags.label_words.empty()),
        std::pair("--label-column", flags.label_column != DataFlags().label_column),
        std::pair("--target-format sentinel", flags.target_format != "plain"),
        std::pair("--truncate", flags.truncate), std::pair("--shots", flags.shots.shots > 0)}) {
    if (!given) continue;
    return UsageError(absl::StrCat(
        flag, ": expected with --objective supervised, found --objective ", name,
        flags.truncate ? ", which cuts long texts into windows" : ", which reads running text"));
  }
  return absl::OkStatus();
}

absl::StatusOr<LoadedData> LoadRunningText(const std::string& path, const DataFlags& flags,
                                           const Session& session, const AdapterSet& adapters) {
  PERMAFROST_ASSIGN_OR_RETURN(const ObjectiveConfig config, ConfigFor(flags.objective, session));
  PERMAFROST_ASSIGN_OR_RETURN(const bool tokens, IsTokenFile(path));
  PERMAFROST_ASSIGN_OR_RETURN(
      const std::vector<RunningText> texts,
      tokens ? ReadTokenTexts(path, flags, session) : ReadTextTexts(path, flags, session));

  struct Source {
    ObjectiveConfig config;
    uint64_t seed;
    std::vector<TextWindow> windows;
    std::vector<int> tasks, prompts;
  };
  const auto source = std::make_shared<Source>();
  source->config = config;
  source->seed = static_cast<uint64_t>(flags.seed);
  LoadedData data;
  for (const RunningText& text : texts) {
    const auto task = adapters.TaskOf(text.adapter);
    if (!task.ok()) return AtLine(task.status(), path, text.line);
    const auto prompt = PromptOf(adapters, *task, text.task_id);
    if (!prompt.ok()) return AtLine(prompt.status(), path, text.line);
    PERMAFROST_ASSIGN_OR_RETURN(
        const int64_t length,
        WindowLength(flags, config, session.model->info(),
                     adapters.VirtualTokens(*task) + adapters.FirstPosition(*task)));
    // The token before a window predicts the window's first one.
    const int64_t overlap = config.objective == Objective::kLanguageModel ? 1 : 0;
    for (TextWindow& window : CutTextIntoWindows(text.ids, length, overlap)) {
      source->windows.push_back(std::move(window));
      source->tasks.push_back(*task);
      source->prompts.push_back(*prompt);
      data.line_numbers.push_back(text.line);
    }
  }
  const auto make = [source](const LineDraw& draw) {
    Random random = LineRandom(source->seed, draw.pass, draw.line);
    TokenLine line = MakeObjectiveLine(source->config, source->windows[draw.line],
                                       source->tasks[draw.line], random);
    line.prompt = source->prompts[draw.line];
    return line;
  };
  for (size_t i = 0; i < source->windows.size(); ++i) data.lines.push_back(make({i, 0}));
  if (config.objective != Objective::kLanguageModel) data.make_line = make;
  return data;
}

}  // namespace permafrost
