#include "peft/targets.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "io/regex.h"

namespace permafrost {
namespace {

std::string KnownModules(const Model& model, bool embeddings) {
  std::set<std::string> leaves;
  const auto add = [&](const std::string& module) {
    leaves.insert(module.substr(module.rfind('.') + 1));
  };
  for (const LinearPlace& p : model.linears()) add(p.module);
  if (embeddings) {
    for (const EmbeddingPlace& p : EmbeddingPlaces(model)) add(p.module);
  }
  return absl::StrJoin(leaves, ", ");
}

// Whether `module` is a target. Targets that name it leave `unused`.
absl::StatusOr<bool> IsTarget(const Targets& targets, const std::string& module, int layer,
                              bool linear, std::set<std::string>& unused) {
  bool hit = false, excluded = false;
  for (const std::string& target : targets.modules) {
    bool match = linear && target == "all-linear";
    if (!match) {
      PERMAFROST_ASSIGN_OR_RETURN(match, NamesModule(target, targets.modules_are_regex, module));
    }
    if (!match) continue;
    hit = true;
    unused.erase(target);
  }
  for (const std::string& e : targets.exclude) {
    PERMAFROST_ASSIGN_OR_RETURN(const bool match, NamesModule(e, targets.exclude_is_regex, module));
    excluded = excluded || match;
  }
  const std::vector<int>& layers = targets.layers;
  const bool layer_named =
      layers.empty() || std::find(layers.begin(), layers.end(), layer) != layers.end();
  return hit && !excluded && layer_named;
}

absl::StatusOr<MatchedTargets> Match(const Targets& targets, const Model& model, bool embeddings) {
  MatchedTargets matched;
  std::set<std::string> unused(targets.modules.begin(), targets.modules.end());
  for (const LinearPlace& place : model.linears()) {
    PERMAFROST_ASSIGN_OR_RETURN(const bool hit, IsTarget(targets, place.module, place.site.layer,
                                                         /*linear=*/true, unused));
    if (hit) matched.linears.push_back(place.index);
  }
  if (embeddings) {
    constexpr int kNoLayer = -1;
    for (EmbeddingPlace& place : EmbeddingPlaces(model)) {
      PERMAFROST_ASSIGN_OR_RETURN(
          const bool hit, IsTarget(targets, place.module, kNoLayer, /*linear=*/false, unused));
      if (hit) matched.embeddings.push_back(std::move(place));
    }
  }
  if (!unused.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("target ", absl::StrJoin(unused, ", "), ": matches no linear",
                     embeddings ? " or embedding" : "", " of this ", model.info().model_type,
                     " base; it has ", KnownModules(model, embeddings)));
  }
  if (matched.linears.empty() && matched.embeddings.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "targets ", absl::StrJoin(targets.modules, ", "), ": expected at least one linear, ",
        "found none; check exclude_modules and layers_to_transform"));
  }
  return matched;
}

}  // namespace

absl::StatusOr<bool> NamesModule(const std::string& target, bool regex, const std::string& module) {
  if (regex) return FullMatch(target, module);
  return module == target || absl::EndsWith(module, absl::StrCat(".", target));
}

std::vector<EmbeddingPlace> EmbeddingPlaces(const Model& model) {
  if (model.info().encoder_decoder) {
    return {{Stack::kEncoder, "encoder.embed_tokens"}, {Stack::kDecoder, "decoder.embed_tokens"}};
  }
  const std::string& name = model.tensors()[static_cast<size_t>(model.embedding_tensor())].name;
  return {{Stack::kDecoder, name.substr(0, name.rfind('.'))}};
}

absl::StatusOr<MatchedTargets> MatchLinearsAndEmbeddings(const Targets& targets,
                                                         const Model& model) {
  return Match(targets, model, /*embeddings=*/true);
}

absl::StatusOr<std::vector<int>> MatchTargets(const Targets& targets, const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(MatchedTargets matched, Match(targets, model, /*embeddings=*/false));
  return std::move(matched.linears);
}

}  // namespace permafrost
