#include "command.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/gguf.h"

namespace permafrost {

void AddBaseFlags(CLI::App* app, BaseFlags& flags) {
  app->add_option("--base", flags.base, "Hugging Face folder or .gguf file")->required();
  app->add_option("--precision", flags.precision,
                  "f32: exact; bf16: frozen weights and kept activations as bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app->add_option("--threads", flags.threads, "threads (default: all cores)")
      ->check(CLI::Range(1, 1024));
}

void AddAdapterFlag(CLI::App* app, std::vector<std::string>& adapters) {
  app->add_option("--adapter", adapters,
                  "PEFT adapter folder; NAME=DIR, repeated, for several that a line's \"adapter\" "
                  "picks from")
      ->allow_extra_args(false);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer(const std::string& base) {
  if (!absl::EndsWith(base, ".gguf")) return LoadTokenizer(base);
  PERMAFROST_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(base));
  PERMAFROST_ASSIGN_OR_RETURN(const GgufVocabulary vocabulary, ReadGgufVocabulary(file));
  return TokenizerFromGguf(vocabulary);
}

absl::StatusOr<Session> OpenSession(const BaseFlags& flags) {
  Session session;
  const int threads = flags.threads > 0
                          ? flags.threads
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  session.context = std::make_unique<Context>(
      threads, flags.precision == "bf16" ? Precision::kBF16 : Precision::kF32);
  PERMAFROST_ASSIGN_OR_RETURN(session.model, OpenModel(*session.context, flags.base));
  const auto exists = [&](const char* name) {
    return std::filesystem::exists(flags.base + "/" + name);
  };
  if (absl::EndsWith(flags.base, ".gguf") || exists("tokenizer.json") || exists("spiece.model") ||
      exists("tokenizer.model")) {
    PERMAFROST_ASSIGN_OR_RETURN(session.tokenizer, OpenTokenizer(flags.base));
  }
  return session;
}

absl::StatusOr<const Tokenizer*> NeedTokenizer(const Session& session) {
  if (session.tokenizer == nullptr) {
    return absl::NotFoundError(absl::StrCat(session.model->info().path,
                                            ": no tokenizer: expected tokenizer.json, spiece.model "
                                            "or tokenizer.model beside the weights"));
  }
  return session.tokenizer.get();
}

absl::StatusOr<AdapterSet> OpenAdapters(const std::vector<std::string>& flags, Session& session) {
  AdapterSet set;
  for (size_t i = 0; i < flags.size(); ++i) {
    const size_t equals = flags[i].find('=');
    const bool named = equals != std::string::npos && !std::filesystem::exists(flags[i]);
    const std::string name = named ? flags[i].substr(0, equals) : "";
    const std::string folder = named ? flags[i].substr(equals + 1) : flags[i];
    if (!named && flags.size() > 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--adapter ", flags[i], ": several adapters need names: --adapter NAME=DIR"));
    }
    PERMAFROST_ASSIGN_OR_RETURN(Adapter adapter, LoadAdapter(folder, static_cast<int>(i),
                                                             *session.context, *session.model));
    if (adapter.config.kind == MethodKind::kFull && flags.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("--adapter ", flags[i],
                       ": a fully trained model cannot share a batch with other adapters"));
    }
    set.Add(name, std::move(adapter.method));
  }
  return set;
}

void Say(const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); }

bool StderrIsTerminal() { return isatty(STDERR_FILENO) != 0; }

}  // namespace permafrost
