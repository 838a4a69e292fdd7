// A LoRA from the difference of two checkpoints of one architecture: per linear the best
// approximation of a rank (TruncatedSvd). N outputs, D inputs, r rank.
//
// Non-goals: what lies outside of the targeted linears (embeddings, norms, biases); it is measured.
#ifndef PERMAFROST_PEFT_EXTRACT_LORA_H_
#define PERMAFROST_PEFT_EXTRACT_LORA_H_

#include <string>
#include <vector>

#include "peft/adapter_file.h"

namespace permafrost {

struct Extraction {
  Adapter adapter;  // A = sqrt(S) V^T, B = U sqrt(S), scale 1
  struct Module {
    std::string name;
    double change = 0;  // ||tuned - base||, Frobenius
    double error = 0;   // ||tuned - base - B A|| / change; 0 where nothing changed
  };
  std::vector<Module> modules;
  double error = 0;      // of all targeted linears together, relative
  double uncovered = 0;  // ||tuned - base|| of all other tensors, relative to that of everything
};

// Errors: checkpoints with other tensors or shapes; a target that matches nothing or is an
// embedding; no difference in any targeted linear.
absl::StatusOr<Extraction> ExtractLora(Context& c, const Model& base, const Model& tuned,
                                       int64_t rank, const Targets& targets);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_EXTRACT_LORA_H_
