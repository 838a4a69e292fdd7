#include "shots.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "peft/shots.h"
#include "texts.h"

namespace permafrost {

void AddShotFlags(CLI::App* app, DataFlags& flags) {
  app->add_option("--shots", flags.shots.shots,
                  "worked examples in front of each input, balanced over label words")
      ->check(Between(0, 100000))
      ->capture_default_str();
  app->add_option("--shots-data", flags.shots.data, "file that --shots are taken from");
  app->add_option("--shot-separator", flags.shots.separator,
                  "text behind each shot; \\n and \\t are a newline and a tab")
      ->capture_default_str();
  app->add_option("--seed", flags.seed, "seed of what is drawn at random, such as the shots")
      ->check(NonNegative())
      ->capture_default_str();
}

absl::StatusOr<std::vector<std::string>> ShotTexts(const std::string& path, const DataFlags& flags,
                                                   bool decoder) {
  const ShotFlags& f = flags.shots;
  if (f.shots == 0 && f.data.empty()) return std::vector<std::string>();
  if (f.shots == 0 || f.data.empty()) {
    return UsageError(f.data.empty()
                          ? "--shots: expected the file they come from, --shots-data FILE"
                          : "--shots-data: expected the number of examples, --shots K");
  }
  std::error_code error;
  if (std::filesystem::equivalent(path, f.data, error)) {
    return absl::InvalidArgumentError(absl::StrCat(
        f.data, ": --shots-data: expected another file than --data, whose answers it would show"));
  }
  PERMAFROST_ASSIGN_OR_RETURN(const TextSource source,
                              ReadTexts(f.data, flags, decoder, Labels::kRequired));
  std::vector<int> labels;
  for (const TextExample& e : source.examples) labels.push_back(e.label);
  Random random(static_cast<uint64_t>(flags.seed));
  const std::vector<size_t> chosen = ChooseShots(labels, f.shots, random);
  if (static_cast<int64_t>(chosen.size()) < f.shots) {
    return absl::InvalidArgumentError(absl::StrCat(f.data, ": expected at least ", f.shots,
                                                   " examples (--shots), found ", chosen.size()));
  }
  PERMAFROST_ASSIGN_OR_RETURN(const TextTemplate separator, TextTemplate::Parse(f.separator));
  PERMAFROST_ASSIGN_OR_RETURN(
      const std::string behind,
      separator.Render([](const std::string& name) -> absl::StatusOr<std::string_view> {
        return absl::InvalidArgumentError(
            absl::StrCat("--shot-separator: expected plain text, found {", name, "}"));
      }));
  std::vector<std::string> texts;
  for (const size_t i : chosen) {
    const TextExample& e = source.examples[i];
    // A decoder's target template holds what stands between; T5's targets are texts of their own.
    texts.push_back(absl::StrCat(e.input, decoder ? "" : " ", e.target, behind));
  }
  return texts;
}

}  // namespace permafrost
