#include "command.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/gguf.h"

namespace permafrost {
namespace {

constexpr char kUsagePayload[] = "permafrost/usage";

// A finite number with `low` <= it <= `high`, or `low` < it if `above`.
CLI::Validator NumberCheck(const std::string& expected, const std::string& name, double low,
                           double high, bool above) {
  const auto check = [=](const std::string& text) -> std::string {
    double value = 0;
    int64_t integer = 0;
    const bool digits = text.find_first_not_of("+-0123456789") == std::string::npos;
    const bool good = absl::SimpleAtod(text, &value) && std::isfinite(value) &&
                      (above ? value > low : value >= low) && value <= high &&
                      (!digits || absl::SimpleAtoi(text, &integer));
    return good ? "" : absl::StrCat("expected ", expected, ", found ", text);
  };
  return CLI::Validator(check, name);
}

}  // namespace

absl::Status UsageError(const std::string& message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kUsagePayload, absl::Cord());
  return status;
}

bool IsUsageError(const absl::Status& status) {
  return status.GetPayload(kUsagePayload).has_value();
}

CLI::Validator Positive() {
  return NumberCheck("a number above 0", "POSITIVE", 0, std::numeric_limits<double>::max(), true);
}

CLI::Validator NonNegative() {
  return NumberCheck("0 or a number above", "NONNEGATIVE", 0, std::numeric_limits<double>::max(),
                     false);
}

CLI::Validator Between(double low, double high) {
  const std::string range = absl::StrCat(low, " to ", high);
  return NumberCheck(range, absl::StrCat("[", low, " - ", high, "]"), low, high, false);
}

void AddConfigFlag(CLI::App* app) {
  app->add_option("--config", "JSON file of flags by name; those of the command line win")
      ->type_name("FILE");
}

void AddBaseFlags(CLI::App* app, BaseFlags& flags) {
  app->add_option("--base", flags.base, "Hugging Face folder or .gguf file")->required();
  app->add_option("--precision", flags.precision,
                  "f32: exact; bf16: frozen weights and kept activations as bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app->add_option("--threads", flags.threads, "threads (default: all cores)")
      ->check(Between(1, 1024));
}

void AddRecomputeFlag(CLI::App* app, std::string& recompute) {
  app->add_option("--recompute", recompute,
                  "compute again in the backward pass instead of keeping: none, attention, or "
                  "layers (the least memory; what the flag means without a value); "
                  "default attention")
      ->expected(0, 1)
      ->default_str("layers")
      ->check(CLI::IsMember({"none", "attention", "layers"}));
}

Recompute ParseRecompute(const std::string& recompute) {
  return recompute == "attention" ? Recompute::kAttention
         : recompute == "layers"  ? Recompute::kLayers
                                  : Recompute::kNone;
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
  std::set<std::string> names;
  for (size_t i = 0; i < flags.size(); ++i) {
    const size_t equals = flags[i].find('=');
    const bool named = equals != std::string::npos && !std::filesystem::exists(flags[i]);
    const std::string name = named ? flags[i].substr(0, equals) : "";
    const std::string folder = named ? flags[i].substr(equals + 1) : flags[i];
    if (!named && flags.size() > 1) {
      return UsageError(absl::StrCat("--adapter ", flags[i],
                                     ": several adapters need names: --adapter NAME=DIR"));
    }
    if (!names.insert(name).second) {
      return UsageError(absl::StrCat("--adapter ", flags[i], ": the name ", name, " stands twice"));
    }
    PERMAFROST_ASSIGN_OR_RETURN(Adapter adapter, LoadAdapter(folder, static_cast<int>(i),
                                                             *session.context, *session.model));
    if (adapter.method->needs_batch_alone() && flags.size() > 1) {
      return absl::InvalidArgumentError(absl::StrCat("--adapter ", flags[i], ": ",
                                                     MethodTitle(adapter.config),
                                                     " cannot share a batch with other adapters"));
    }
    set.Add(name, std::move(adapter.method));
  }
  return set;
}

void Say(const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); }

bool StderrIsTerminal() { return isatty(STDERR_FILENO) != 0; }

}  // namespace permafrost
