// permafrost generate: text from a prompt, streamed.
#include "models/generate.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "command.h"
#include "encode.h"
#include "engine/check.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

struct GenerateFlags {
  BaseFlags base;
  std::vector<std::string> adapters;
  std::string prompt, stop;
  GenerateOptions options;
  int64_t top_k = -1;
  bool json = false;
};

// Text as it arrives, up to where the stop text begins. What might be the start of it is held back.
class Output {
 public:
  Output(const Tokenizer& tokenizer, std::string stop, bool stream)
      : decoder_(tokenizer, true), stop_(std::move(stop)), stream_(stream) {}

  // False once the stop text has appeared.
  bool Append(int32_t id) { return Add(decoder_.Append(id)); }
  std::string Finish() {
    if (!stopped_) Add(decoder_.Finish());
    if (!stopped_) Print(text_.size());
    return text_;
  }

 private:
  bool Add(const std::string& piece) {
    text_ += piece;
    if (!stop_.empty()) {
      const size_t at = text_.find(stop_);
      if (at != std::string::npos) {
        stopped_ = true;
        text_.resize(at);
        Print(at);
        return false;
      }
    }
    const size_t held = stop_.empty() ? 0 : stop_.size() - 1;
    if (text_.size() > held) Print(text_.size() - held);
    return true;
  }
  void Print(size_t end) {
    if (stream_ && end > printed_) {
      std::fwrite(text_.data() + printed_, 1, end - printed_, stdout);
      std::fflush(stdout);
    }
    printed_ = std::max(printed_, end);
  }

  StreamDecoder decoder_;
  std::string stop_, text_;
  size_t printed_ = 0;
  bool stream_, stopped_ = false;
};

// The prompt's ids, with virtual tokens among them if the adapter's are anchored.
absl::StatusOr<std::vector<int32_t>> PromptIds(const GenerateFlags& f, const Tokenizer& tokenizer,
                                               const Session& session, const AdapterSet& adapters) {
  const Method* method = adapters.size() == 1 ? adapters.method(0) : nullptr;
  if (method != nullptr && !method->InputTemplate().empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(
        const std::vector<AnchoredPiece> pieces,
        PiecesOfPrompt(method->InputTemplate(), f.prompt, method->AnchoredTokens(method->task())));
    PERMAFROST_ASSIGN_OR_RETURN(
        Encoded encoded,
        EncodePieces(tokenizer, !session.model->info().encoder_decoder, pieces, {}));
    return std::move(encoded.input);
  }
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> ids,
                              tokenizer.Encode(f.prompt, Special::kAdd));
  return std::vector<int32_t>(ids.begin(), ids.end());
}

absl::Status RunGenerate(GenerateFlags f) {
  if (f.adapters.size() > 1) {
    return UsageError(absl::StrCat("a prompt runs with one adapter: expected one --adapter, found ",
                                   f.adapters.size()));
  }
  // transformers samples from the 50 likeliest tokens unless told otherwise.
  f.options.top_k = f.top_k >= 0 ? f.top_k : f.options.temperature > 0 ? 50 : 0;
  PERMAFROST_ASSIGN_OR_RETURN(Session session, OpenSession(f.base));
  PERMAFROST_ASSIGN_OR_RETURN(AdapterSet adapters, OpenAdapters(f.adapters, session));
  PERMAFROST_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(session));
  const absl::StatusOr<std::vector<int32_t>> ids = PromptIds(f, *tokenizer, session, adapters);
  if (!ids.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt: ", std::string(ids.status().message())));
  }
  if (const int64_t prompts = adapters.size() == 1 ? adapters.method(0)->Prompts() : 1;
      f.options.prompt >= prompts) {
    return absl::InvalidArgumentError(absl::StrCat("--task-id: expected less than the adapter's ",
                                                   prompts, " tasks, found ", f.options.prompt));
  }
  const int task = adapters.size() == 1 ? adapters.method(0)->task() : kNoTask;
  Output output(*tokenizer, f.stop, !f.json);
  const bool beams = f.options.beams > 1;
  PERMAFROST_ASSIGN_OR_RETURN(
      const std::vector<int32_t> generated,
      Generate(*session.context, *session.model, adapters, task, *ids, f.options,
               [&](int32_t id) { return beams || output.Append(id); }));
  if (beams) {
    for (int32_t id : generated) {
      if (!output.Append(id)) break;
    }
  }
  const std::string text = output.Finish();
  if (f.json) {
    const nlohmann::ordered_json object = {{"text", text}, {"ids", generated}};
    std::printf("%s\n", object.dump(-1, ' ', true).c_str());
  } else {
    std::printf("\n");
  }
  return absl::OkStatus();
}

}  // namespace

void AddGenerate(Commands& commands) {
  auto flags = std::make_shared<GenerateFlags>();
  GenerateFlags& f = *flags;
  CLI::App* app = commands.Add("generate", "Text from a prompt: greedy, sampling or beam search",
                               [flags] { return RunGenerate(*flags); });
  AddBaseFlags(app, f.base);
  AddAdapterFlag(app, f.adapters);
  app->add_option("--prompt", f.prompt, "the text to go on from")->required();
  app->add_option("--max-new-tokens", f.options.max_new_tokens, "longest continuation")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--temperature", f.options.temperature, "0: greedy")
      ->check(NonNegative())
      ->capture_default_str();
  app->add_option("--top-k", f.top_k, "sampling: the k likeliest tokens (default 50; 0 = all)")
      ->check(NonNegative());
  app->add_option("--top-p", f.options.top_p, "sampling: smallest set of this probability")
      ->check(Between(1e-9, 1.0))
      ->capture_default_str();
  app->add_option("--repetition-penalty", f.options.repetition_penalty, "1: off")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--seed", f.options.seed, "seed of sampling")
      ->check(NonNegative())
      ->capture_default_str();
  app->add_option("--beams", f.options.beams, "beam search of this width")
      ->check(Between(1, 1024))
      ->capture_default_str();
  app->add_option("--length-penalty", f.options.length_penalty,
                  "exponent of the length in beam scores")
      ->capture_default_str();
  app->add_option("--task-id", f.options.prompt, "multitask-prompt: the task whose prompt is used")
      ->check(NonNegative())
      ->capture_default_str();
  app->add_option("--stop", f.stop, "end before this text");
  app->add_flag("--json", f.json, "one object with the new text and ids");
}

}  // namespace permafrost
