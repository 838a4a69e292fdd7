// P-tuning (Liu et al. 2021) as PEFT's PromptEncoder defines it: a soft prompt that a small network
// makes from a trained table, prompt = MLP(E), MLP = Linear(D, h), ReLU, Linear(h, h), ReLU,
// Linear(h, D). The network trains faster than the prompt alone; what an adapter file holds, and
// inference reads, is its output.
//
// Non-goals: the LSTM encoder, virtual tokens between those of the text.
#ifndef PERMAFROST_PEFT_P_TUNING_H_
#define PERMAFROST_PEFT_P_TUNING_H_

#include "engine/random_tensor.h"
#include "peft/method.h"

namespace permafrost {

struct PTuningConfig {
  int64_t virtual_tokens = 20;  // P
  int64_t encoder_width = 0;    // h, PEFT's encoder_hidden_size; 0: D
};

class PTuning : public Method {
 public:
  // E from N(0, 1), linears from U(-1/sqrt(in), 1/sqrt(in)), biases too: torch's defaults.
  PTuning(int task, const PTuningConfig& config, int64_t width, Random& random);

  int64_t VirtualTokens(int task) const override;
  Var OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) override;

  // The prompt [P, D] alone, by the name that prompt tuning has.
  std::vector<FileTensor> FileTensors() const override;

 private:
  // The virtual tokens [P, D].
  Var Encode(Context& c) const;

  int64_t virtual_tokens_;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_P_TUNING_H_
