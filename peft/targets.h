// Which linears of a base an adapter names: PEFT's target_modules, exclude_modules,
// layers_to_transform.
#ifndef PERMAFROST_PEFT_TARGETS_H_
#define PERMAFROST_PEFT_TARGETS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/model.h"

namespace permafrost {

struct Targets {
  // Module-name suffixes at a dot boundary, or one regular expression for whole names, or
  // "all-linear".
  std::vector<std::string> modules;
  bool modules_are_regex = false;
  std::vector<std::string> exclude;  // suffixes, or one regular expression
  bool exclude_is_regex = false;
  std::vector<int> layers;  // empty: all
};

// Whether `target`, a whole-name regular expression or a suffix at a dot boundary, names `module`.
// Error: a bad expression.
absl::StatusOr<bool> NamesModule(const std::string& target, bool regex, const std::string& module);

// A token embedding that targets can name, "model.embed_tokens": T5 has one for each stack, on the
// same weight. "all-linear" names none.
struct EmbeddingPlace {
  Stack stack = Stack::kDecoder;
  std::string module;
};
std::vector<EmbeddingPlace> EmbeddingPlaces(const Model& model);

struct MatchedTargets {
  std::vector<int> linears;  // indices, ascending
  std::vector<EmbeddingPlace> embeddings;
};
// Linears and embeddings that are named. Error: a target that matches nothing (lists what exists).
absl::StatusOr<MatchedTargets> MatchLinearsAndEmbeddings(const Targets& targets,
                                                         const Model& model);

// Indices of the linears that are named, ascending. Error: a target that matches nothing (lists
// what exists).
absl::StatusOr<std::vector<int>> MatchTargets(const Targets& targets, const Model& model);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_TARGETS_H_
