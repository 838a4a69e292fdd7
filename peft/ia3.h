// IA3 (Liu et al. 2022): learned vectors l rescale keys, values and the feed-forward's hidden rows.
// As in PEFT, a target's output (after its bias) is multiplied by l [N], or the input of a
// feed-forward target by l [D]; l starts at 1.
#ifndef PERMAFROST_PEFT_IA3_H_
#define PERMAFROST_PEFT_IA3_H_

#include <optional>
#include <string>
#include <vector>

#include "peft/method.h"
#include "peft/targets.h"

namespace permafrost {

// The fields of PEFT's IA3Config, with its defaults per model type (DefaultIa3Targets).
struct Ia3Config {
  Targets targets;
  // Those of the targets whose input is scaled: ends of module names, or one regular expression.
  std::vector<std::string> feedforward;
  bool feedforward_is_regex = false;
};

// PEFT's default target_modules and feedforward_modules of a model type. Source:
// TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING and ..._FEEDFORWARD_MODULES_MAPPING of PEFT
// 0.21.
std::vector<std::string> DefaultIa3Targets(const std::string& model_type);
std::vector<std::string> DefaultIa3Feedforward(const std::string& model_type);
// `targets` (the default ones if empty), and those of the default feed-forward modules that are
// among them, as PEFT asks.
Ia3Config DefaultIa3Config(const std::string& model_type, std::vector<std::string> targets);

class Ia3 : public Method {
 public:
  static absl::StatusOr<std::unique_ptr<Ia3>> Create(int task, const Ia3Config& config,
                                                     const Model& model);

  Var OnLinearInput(Context& c, const LinearPlace& place, Var x, const PlaceRows& rows) override;
  Var OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
               const PlaceRows& rows) override;

  // [1, D] of a feed-forward target, else [N, 1].
  std::vector<int64_t> FileShape(const Parameter& p) const override;
  bool mergeable() const override { return true; }
  // Columns of W, or rows of W and the bias, times l.
  void MergeInto(const Model& model, std::vector<Tensor>& values) const override;

 private:
  struct Scale {
    size_t vector;  // into parameters_
    bool input;     // of the input, else of the output
  };

  explicit Ia3(int task) : Method(task) {}
  std::vector<std::optional<Scale>> scales_;  // by linear index
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_IA3_H_
