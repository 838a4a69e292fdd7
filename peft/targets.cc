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

std::string KnownModules(const Model& model) {
  std::set<std::string> leaves;
  for (const LinearPlace& p : model.linears()) {
    leaves.insert(p.module.substr(p.module.rfind('.') + 1));
  }
  return absl::StrJoin(leaves, ", ");
}

}  // namespace

absl::StatusOr<bool> NamesModule(const std::string& target, bool regex, const std::string& module) {
  if (regex) return FullMatch(target, module);
  return module == target || absl::EndsWith(module, absl::StrCat(".", target));
}

absl::StatusOr<std::vector<int>> MatchTargets(const Targets& targets, const Model& model) {
  std::vector<int> matched;
  std::set<std::string> unused(targets.modules.begin(), targets.modules.end());
  for (const LinearPlace& place : model.linears()) {
    bool hit = false, excluded = false;
    for (const std::string& target : targets.modules) {
      bool match = target == "all-linear";
      if (!match) {
        PERMAFROST_ASSIGN_OR_RETURN(match,
                                    NamesModule(target, targets.modules_are_regex, place.module));
      }
      if (!match) continue;
      hit = true;
      unused.erase(target);
    }
    for (const std::string& e : targets.exclude) {
      PERMAFROST_ASSIGN_OR_RETURN(const bool match,
                                  NamesModule(e, targets.exclude_is_regex, place.module));
      excluded = excluded || match;
    }
    const bool layer_named =
        targets.layers.empty() || std::find(targets.layers.begin(), targets.layers.end(),
                                            place.site.layer) != targets.layers.end();
    if (hit && !excluded && layer_named) matched.push_back(place.index);
  }
  if (!unused.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("target ", absl::StrJoin(unused, ", "), ": matches no linear of this ",
                     model.info().model_type, " base; it has ", KnownModules(model)));
  }
  if (matched.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "targets ", absl::StrJoin(targets.modules, ", "), ": expected at least one linear, ",
        "found none; check exclude_modules and layers_to_transform"));
  }
  return matched;
}

}  // namespace permafrost
