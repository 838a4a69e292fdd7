// P-tuning (Liu et al. 2021) as PEFT's PromptEncoder defines it: a soft prompt that a small network
// makes from a trained table E [P, D]. The network trains faster than the prompt alone; what an
// adapter file holds, and inference reads, is its output. P virtual tokens, D width, h encoder
// width.
//   MLP:  prompt = Linear(h, D)(ReLU(Linear(h, h)(ReLU(Linear(D, h)(E)))))
//   LSTM: prompt = Linear(2 h, D)(ReLU(Linear(2 h, 2 h)(LSTM(E)))), the LSTM in both directions
//   over
//         the P rows. (PEFT's runs over 2 P rows on a sequence-to-sequence base, of which the model
//         reads the first P.)
//
// Non-goals: dropout in the encoder.
#ifndef PERMAFROST_PEFT_P_TUNING_H_
#define PERMAFROST_PEFT_P_TUNING_H_

#include <string>
#include <vector>

#include "engine/random_tensor.h"
#include "peft/method.h"

namespace permafrost {

enum class PromptEncoder { kMlp, kLstm };

struct PTuningConfig {
  int64_t virtual_tokens = 20;  // P
  int64_t encoder_width = 0;    // h, PEFT's encoder_hidden_size; 0: D
  PromptEncoder encoder = PromptEncoder::kMlp;
  int64_t encoder_layers = 2;       // of the LSTM; the MLP has three linears
  std::string input_template = {};  // PromptTuningConfig::input_template
};

class PTuning : public Method {
 public:
  // E from N(0, 1), linears from U(-1/sqrt(in), 1/sqrt(in)), the LSTM from U(-1/sqrt(h),
  // 1/sqrt(h)), biases too: torch's defaults. Parameters have the names of PEFT's PromptEncoder.
  PTuning(int task, const PTuningConfig& config, int64_t width, Random& random);

  int64_t VirtualTokens(int task) const override;
  int64_t AnchoredTokens(int task) const override;
  std::string InputTemplate() const override { return input_template_; }
  Var OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) override;

  // The prompt [P, D] alone, by the name that prompt tuning has.
  std::vector<FileTensor> FileTensors() const override;

 private:
  void AddLinear(const std::string& name, int64_t inputs, int64_t outputs, double bound,
                 Random& random);
  void AddLstm(int64_t width, int64_t h, Random& random);
  // The virtual tokens [P, D].
  Var Encode(Context& c) const;
  // The LSTM's last layer, forwards and backwards: two times [P, h]. `next` is the parameter after
  // those that were read.
  std::vector<Var> RunLstm(Context& c, size_t& next) const;

  int64_t virtual_tokens_;
  std::string input_template_;
  int64_t lstm_layers_;  // 0: an MLP
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_P_TUNING_H_
