// AdaLoRA (Zhang et al. 2023) as PEFT stores it: y = W x + s B (A * E) dropout(x), A [r, D], B [N,
// r], E [r] scaling A's rows, s = alpha / (R + 1e-5) with R the rank before pruning, whatever is
// left of it. A pruned file holds the kept ranks only, perhaps none of a module. D inputs, N
// outputs. Non-goals: the budget's schedule and the orthogonality penalty; training goes on at the
// ranks of the file.
#ifndef PERMAFROST_PEFT_ADALORA_H_
#define PERMAFROST_PEFT_ADALORA_H_

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/random_tensor.h"
#include "nlohmann/json.hpp"
#include "peft/method.h"
#include "peft/targets.h"

namespace permafrost {

// The fields of PEFT's AdaLoraConfig that decide what an adapter computes, with its defaults.
struct AdaLoraConfig {
  int64_t rank = 12;  // init_r
  double alpha = 8;
  double dropout = 0;
  Targets targets;
  // Of a pruned adapter: by module, which of the ranks were kept.
  std::vector<std::pair<std::string, std::vector<bool>>> kept;
  // The budget's fields as they were read, to be written again.
  nlohmann::json budget = nlohmann::json::object();
};

class AdaLora : public Method {
 public:
  // A and B normal with deviation 0.02, E zero. Errors: a target that matches nothing, a pruned
  // module that is no target.
  static absl::StatusOr<std::unique_ptr<AdaLora>> Create(int task, const AdaLoraConfig& config,
                                                         const Model& model, Random& random);

  Var OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
               const PlaceRows& rows) override;

  bool mergeable() const override { return true; }
  void MergeInto(const Model& model, std::vector<Tensor>& values) const override;

 private:
  struct Triple {
    size_t a, b, e;  // into parameters_
    LowRank options;
  };

  explicit AdaLora(int task) : Method(task) {}
  std::vector<std::optional<Triple>> triples_;  // by linear index
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_ADALORA_H_
