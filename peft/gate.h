// Gates of UniPELT (Mao et al. 2022): how much a row uses a module. A gate is the mean of
// sigmoid(w . x + b) over the real rows that the row may see: a running mean in a causal stack,
// which reads no future and is the same in training and in cached generation, and the mean over the
// text in a bidirectional one. w [n, D], b [1, n]; rows that see no real row have gate 0.
//
// Non-goals: what a gate multiplies; that is its module's business.
#ifndef PERMAFROST_PEFT_GATE_H_
#define PERMAFROST_PEFT_GATE_H_

#include <string>
#include <vector>

#include "engine/parameter.h"
#include "engine/random.h"
#include "peft/method.h"

namespace permafrost {

struct GateConfig {
  enum class Kind {
    kNone,
    kRunning,   // as above
    kWhole,     // over the whole text also in causal stacks, as AdapterHub's: reads the future
    kConstant,  // `value`
  };
  Kind kind = Kind::kNone;
  double value = 1;
  // Prefixes: one gate for keys and values, or one each.
  bool shared = true;

  bool reads_future() const { return kind == Kind::kWhole; }
  bool trained() const { return kind == Kind::kRunning || kind == Kind::kWhole; }
  bool constant() const { return kind == Kind::kConstant; }
};

class Gate {
 public:
  // Adds NAME.weight [outputs, width] from N(0, 0.02) and NAME.bias [1, outputs] of 0 to `list`,
  // which must outlive the gate.
  Gate(ParameterList& list, const std::string& name, int64_t width, int64_t outputs,
       GateConfig::Kind kind, Random& random);

  // [R, outputs] for rows x [R, D] of a place that has all rows of its stack.
  Var Of(Context& c, const Var& x, const PlaceRows& rows, int task);

  // Appends the means over the task's rows since the last call, an entry an output; nothing if no
  // row has passed. Rows of training are not counted.
  void TakeMeans(std::vector<GateMean>& means);

 private:
  ParameterList* list_;
  size_t weight_;
  GateConfig::Kind kind_;
  std::string name_;
  std::vector<double> sums_;  // by output
  int64_t rows_ = 0;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_GATE_H_
