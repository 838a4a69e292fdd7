#include "mixture.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "io/json.h"
#include "io/lines.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

struct PartSource {
  std::string path;
  DataFlags flags;
  double rate = 0;  // 0: none given
};

const std::vector<std::string>& TemplateKeys() {
  static const auto& keys = *new std::vector<std::string>(
      {"task", "input", "target", "label_words", "label_column", "task_column", "target_format",
       "objective", "noise_density", "mean_span"});
  return keys;
}

absl::Status PartError(const std::string& where, const std::string& key,
                       const std::string& expected, const std::string& found) {
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": ", key, ": expected ", expected, ", found ", found));
}

absl::Status CheckKeys(const nlohmann::json& part, const std::string& where) {
  if (!part.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": expected an object such as {\"data\": \"train.tsv\", \"task\": \"sst2\"}, found ",
        DescribeJson(part)));
  }
  std::vector<std::string> known = TemplateKeys();
  known.insert(known.end(), {"data", "rate", "max_tokens", "truncate"});
  for (const auto& [key, value] : part.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": unknown key '", key, "'; expected some of ", JoinNames(known)));
    }
  }
  return absl::OkStatus();
}

// "a,b" or ["a", "b"].
absl::StatusOr<std::string> LabelWords(const JsonFields& fields) {
  const nlohmann::json* words = fields.Find("label_words");
  if (words == nullptr || words->is_string()) return fields.StringOr("label_words", "");
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<std::string> list,
                              fields.StringList("label_words"));
  for (const std::string& word : list) {
    if (absl::StrContains(word, ',')) {
      return PartError(fields.source(), "label_words", "words without a comma", word);
    }
  }
  return absl::StrJoin(list, ",");
}

absl::Status ReadChoice(const JsonFields& fields, const char* key,
                        const std::vector<std::string>& choices, std::string& value) {
  PERMAFROST_ASSIGN_OR_RETURN(value, fields.StringOr(key, value));
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return absl::OkStatus();
  return PartError(fields.source(), key, "one of " + JoinNames(choices), value);
}

absl::Status ReadPositive(const JsonFields& fields, const char* key, std::optional<double>& value) {
  if (!fields.Has(key)) return absl::OkStatus();
  PERMAFROST_ASSIGN_OR_RETURN(value, fields.Double(key));
  if (*value > 0 && *value <= 1e9) return absl::OkStatus();
  return PartError(fields.source(), key, "a number above 0, at most 1e9", absl::StrCat(*value));
}

absl::StatusOr<PartSource> ReadPart(const nlohmann::json& part, const std::string& where,
                                    const std::string& folder, const DataFlags& defaults) {
  PERMAFROST_RETURN_IF_ERROR(CheckKeys(part, where));
  const JsonFields fields(part, where);
  PartSource source{"", defaults, 0};
  DataFlags& f = source.flags;
  const bool own = std::any_of(TemplateKeys().begin(), TemplateKeys().end(),
                               [&](const std::string& key) { return fields.Has(key); });
  if (own) {
    f = DataFlags();
    f.max_tokens = defaults.max_tokens;
    f.truncate = defaults.truncate;
    f.seed = defaults.seed;
  }
  PERMAFROST_ASSIGN_OR_RETURN(const std::string file, fields.String("data"));
  source.path = (std::filesystem::path(folder) / file).string();
  PERMAFROST_ASSIGN_OR_RETURN(f.task, fields.StringOr("task", f.task));
  PERMAFROST_ASSIGN_OR_RETURN(f.input, fields.StringOr("input", f.input));
  PERMAFROST_ASSIGN_OR_RETURN(f.target, fields.StringOr("target", f.target));
  if (fields.Has("label_words")) {
    PERMAFROST_ASSIGN_OR_RETURN(f.label_words, LabelWords(fields));
  }
  PERMAFROST_ASSIGN_OR_RETURN(f.label_column, fields.StringOr("label_column", f.label_column));
  PERMAFROST_ASSIGN_OR_RETURN(f.task_column, fields.StringOr("task_column", f.task_column));
  PERMAFROST_RETURN_IF_ERROR(
      ReadChoice(fields, "target_format", {"plain", "sentinel"}, f.target_format));
  PERMAFROST_RETURN_IF_ERROR(ReadChoice(fields, "objective",
                                        {"supervised", "lm", "prefix-lm", "span-corruption"},
                                        f.objective.objective));
  PERMAFROST_RETURN_IF_ERROR(ReadPositive(fields, "noise_density", f.objective.noise_density));
  PERMAFROST_RETURN_IF_ERROR(ReadPositive(fields, "mean_span", f.objective.mean_span));
  PERMAFROST_ASSIGN_OR_RETURN(f.max_tokens, fields.IntOr("max_tokens", f.max_tokens));
  if (f.max_tokens < 0 || (fields.Has("max_tokens") && f.max_tokens == 0)) {
    return PartError(where, "max_tokens", "a number above 0", absl::StrCat(f.max_tokens));
  }
  PERMAFROST_ASSIGN_OR_RETURN(f.truncate, fields.BoolOr("truncate", f.truncate));
  std::optional<double> rate;
  PERMAFROST_RETURN_IF_ERROR(ReadPositive(fields, "rate", rate));
  source.rate = rate.value_or(0);
  return source;
}

absl::StatusOr<std::vector<PartSource>> ReadParts(const std::string& path,
                                                  const DataFlags& defaults) {
  PERMAFROST_ASSIGN_OR_RETURN(const nlohmann::json list, ReadJsonFile(path));
  if (!list.is_array() || list.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected a list of parts, found ", DescribeJson(list)));
  }
  const std::string folder = std::filesystem::path(path).parent_path().string();
  std::vector<PartSource> parts;
  for (const nlohmann::json& part : list) {
    const std::string where = absl::StrCat(path, ": part ", parts.size() + 1);
    PERMAFROST_ASSIGN_OR_RETURN(PartSource source, ReadPart(part, where, folder, defaults));
    if (!parts.empty() && (source.rate > 0) != (parts[0].rate > 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": expected a rate in every part or in none, found ",
                       source.rate > 0 ? "one that part 1 lacks" : "none, while part 1 has one"));
    }
    parts.push_back(std::move(source));
  }
  return parts;
}

// Each part's random lines are drawn as if it stood alone.
LineMaker JoinedMaker(const std::vector<LineMaker>& makers, const std::vector<size_t>& begins,
                      const std::vector<TokenLine>& lines) {
  if (std::none_of(makers.begin(), makers.end(), [](const LineMaker& m) { return m != nullptr; })) {
    return nullptr;
  }
  const auto fixed = std::make_shared<std::vector<TokenLine>>(lines);
  return [makers, begins, fixed](const LineDraw& draw) {
    const size_t part = static_cast<size_t>(
        std::upper_bound(begins.begin(), begins.end(), draw.line) - begins.begin() - 1);
    return makers[part] ? makers[part]({draw.line - begins[part], draw.pass}) : (*fixed)[draw.line];
  };
}

std::vector<int64_t> Quotas(const std::vector<PartSource>& sources,
                            const std::vector<int64_t>& lines, const MixtureFlags& f) {
  if (sources[0].rate == 0) return ProportionalQuotas(lines, f.cap, f.temperature);
  std::vector<double> rates;
  rates.reserve(sources.size());
  for (const PartSource& source : sources) rates.push_back(source.rate);
  return SplitByShares(std::accumulate(lines.begin(), lines.end(), int64_t{0}), rates);
}

}  // namespace

void AddMixtureFlags(CLI::App* app, MixtureFlags& f) {
  app->add_option("--mixture", f.file,
                  "instead of --data: JSON list of parts, e.g. [{\"data\": \"a.tsv\", \"task\": "
                  "\"sst2\", \"rate\": 2}, ...]; without rates in proportion to their lines. The "
                  "flags of data then describe --eval-data, and parts without a template");
  app->add_option("--mixture-cap", f.cap, "most lines that a part counts for (T5's K)")
      ->check(Positive());
  app->add_option("--mixture-temperature", f.temperature,
                  "parts count lines^(1/T): 1 proportional, larger nearer to equal")
      ->check(Between(1e-3, 1e9))
      ->capture_default_str();
}

absl::StatusOr<Mixture> LoadMixture(const MixtureFlags& f, const DataFlags& flags,
                                    const Session& session, const AdapterSet& adapters) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<PartSource> sources, ReadParts(f.file, flags));
  if (sources[0].rate > 0 && (f.cap > 0 || f.temperature != 1)) {
    return UsageError(
        absl::StrCat("--mixture-cap and --mixture-temperature: expected a mixture "
                     "without rates, found rates in ",
                     f.file));
  }
  Mixture mixture;
  std::vector<int64_t> lines;
  std::vector<LineMaker> makers;
  std::vector<size_t> begins;
  for (const PartSource& source : sources) {
    PERMAFROST_ASSIGN_OR_RETURN(
        LoadedData data, LoadData(source.path, source.flags, Labels::kRequired, session, adapters));
    mixture.files.push_back(source.path);
    begins.push_back(mixture.data.lines.size());
    lines.push_back(static_cast<int64_t>(data.lines.size()));
    makers.push_back(std::move(data.make_line));
    std::move(data.lines.begin(), data.lines.end(), std::back_inserter(mixture.data.lines));
  }
  const std::vector<int64_t> quotas = Quotas(sources, lines, f);
  for (size_t i = 0; i < lines.size(); ++i) mixture.parts.push_back({lines[i], quotas[i]});
  mixture.data.make_line = JoinedMaker(makers, begins, mixture.data.lines);
  return mixture;
}

}  // namespace permafrost
