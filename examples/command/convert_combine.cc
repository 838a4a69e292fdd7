#include "convert_combine.h"

#include <cmath>
#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/check.h"
#include "nlohmann/json.hpp"
#include "peft/combine.h"
#include "peft/extract_lora.h"

namespace permafrost {
namespace {

absl::StatusOr<std::vector<double>> WeightsOf(const CombineFlags& flags, size_t count) {
  if (flags.weights.empty()) return std::vector<double>(count, 1);
  std::vector<double> weights;
  for (const std::string& text : std::vector<std::string>(absl::StrSplit(flags.weights, ','))) {
    double weight;
    if (!absl::SimpleAtod(text, &weight) || !std::isfinite(weight)) {
      return UsageError(
          absl::StrCat("--weights: expected numbers with commas between, found '", text, "'"));
    }
    weights.push_back(weight);
  }
  if (weights.size() == count) return weights;
  return UsageError(
      absl::StrCat("--weights: expected ", count, ", one an --adapter, found ", weights.size()));
}

}  // namespace

void AddCombineFlags(CLI::App* app, CombineFlags& flags) {
  app->add_option(
         "--combine", flags.how,
         "one adapter of several (--adapter DIR, repeated): LoRAs or prompts, weighted sum, "
         "concatenation or mean")
      ->check(CLI::IsMember({"linear", "cat", "average"}));
  app->add_option("--weights", flags.weights, "--combine: weights of the adapters, 0.5,0.5");
}

absl::Status CombineFolders(const CombineFlags& flags, const std::vector<std::string>& adapters,
                            const std::string& out, Context& c, const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<double> weights, WeightsOf(flags, adapters.size()));
  std::vector<Adapter> loaded;
  for (const std::string& folder : adapters) {
    PERMAFROST_ASSIGN_OR_RETURN(loaded.emplace_back(), LoadAdapter(folder, 0, c, model));
  }
  std::vector<WeightedAdapter> parts;
  for (size_t i = 0; i < loaded.size(); ++i) parts.push_back({&loaded[i], weights[i]});
  const Combination how = flags.how == "cat"       ? Combination::kCat
                          : flags.how == "average" ? Combination::kAverage
                                                   : Combination::kLinear;
  PERMAFROST_ASSIGN_OR_RETURN(const Adapter result, CombineAdapters(how, parts, c, model));
  return SaveAdapter(out, result, model);
}

void AddExtractFlags(CLI::App* app, ExtractFlags& flags) {
  app->add_option("--extract-lora", flags.rank,
                  "LoRA of this rank from the difference of --tuned and --base")
      ->check(Between(1, 65536));
  app->add_option("--tuned", flags.tuned, "--extract-lora: the other checkpoint");
  app->add_option("--targets", flags.targets, "--extract-lora: module names")
      ->capture_default_str();
}

absl::Status ExtractFolder(const ExtractFlags& flags, const std::string& out, Context& c,
                           const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::unique_ptr<Model> tuned, OpenModel(c, flags.tuned));
  Targets targets;
  targets.modules = absl::StrSplit(flags.targets, ',');
  PERMAFROST_ASSIGN_OR_RETURN(const Extraction result,
                              ExtractLora(c, model, *tuned, flags.rank, targets));
  PERMAFROST_RETURN_IF_ERROR(SaveAdapter(out, result.adapter, model));
  for (const Extraction::Module& module : result.modules) {
    const nlohmann::ordered_json line = {
        {"module", module.name}, {"change", module.change}, {"error", module.error}};
    std::printf("%s\n", line.dump().c_str());
  }
  const nlohmann::ordered_json total = {{"total_error", result.error},
                                        {"change_outside_of_targets", result.uncovered}};
  std::printf("%s\n", total.dump().c_str());
  return absl::OkStatus();
}

}  // namespace permafrost
