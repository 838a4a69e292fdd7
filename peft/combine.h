// Arithmetic on adapters of one base: weighted sums, averages and concatenations of LoRAs, and of
// soft prompts. P virtual tokens, D width, N outputs of a linear, r rank; w weights, s LoRA scales.
//
// Non-goals: DoRA and other methods, combinations that prune or vote (TIES, DARE).
#ifndef PERMAFROST_PEFT_COMBINE_H_
#define PERMAFROST_PEFT_COMBINE_H_

#include "peft/adapter_file.h"

namespace permafrost {

// LoRA:
//   kLinear:  A = sum_i sign(w_i s_i) sqrt|w_i s_i| A_i, B = sum_i sqrt|w_i s_i| B_i, as PEFT's
//             add_weighted_adapter. It is not the sum of the B_i A_i: there are cross terms, and
//             half and half of one LoRA is twice that LoRA. All ranks are equal.
//   kAverage: A = sum_i v_i sign(s_i) sqrt|s_i| A_i, B = sum_i v_i sqrt|s_i| B_i, v = w / sum w:
//   the
//             mean of the tensors, of one LoRA that LoRA. All ranks are equal.
//   kCat:     A = [w_i s_i A_i] below each other, B = [B_i] side by side, as PEFT's: exactly the
//             weighted sum of the updates. The ranks add up; a module that one adapter lacks is
//             filled with zeros.
// The result's scale is 1 (alpha = r).
// Prompts: kLinear sum_i w_i P_i and kAverage sum_i v_i P_i of equal P, kCat [w_i P_i] below each
// other.
enum class Combination { kLinear, kAverage, kCat };

struct WeightedAdapter {
  const Adapter* adapter;
  double weight;
};

// Errors: fewer than one adapter; adapters of different methods, or of one that is neither; a LoRA
// with more than A and B at linears (DoRA, biases, whole modules, embeddings, gates); unequal
// ranks or prompt lengths; weights to average whose sum is 0; anchored prompts with different
// templates, or to concatenate.
absl::StatusOr<Adapter> CombineAdapters(Combination how, absl::Span<const WeightedAdapter> parts,
                                        Context& c, const Model& model);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_COMBINE_H_
