// The pieces of the vocabulary next to the virtual tokens of a soft prompt (Lester et al. 2021,
// section 7), and the discrete prompt made of the nearest ones.
//
// Shapes: P virtual tokens, D model width, V vocabulary.
//
// Non-goals: approximate search; a prompt's neighbours in another base.
#ifndef PERMAFROST_PEFT_NEIGHBORS_H_
#define PERMAFROST_PEFT_NEIGHBORS_H_

#include <vector>

#include "models/model.h"

namespace permafrost {

struct Neighbor {
  double value = 0;  // cosine, or Euclidean distance
  int32_t id = -1;
};

// Of one virtual token, the nearest piece first; of equal ones the one with the lower id.
struct TokenNeighbors {
  double norm = 0;
  std::vector<Neighbor> cosine, euclidean;
};

// The `top` nearest of the V rows of the embedding for each row of prompt [P, D], by brute force.
// A row of zeros has the cosine 0 with everything.
std::vector<TokenNeighbors> FindNeighbors(Context& c, const Model& model, const Tensor& prompt,
                                          int top);

enum class Nearness { kCosine, kEuclidean };

// The ids [P] of the nearest pieces. Their embeddings, model.embedding().Rows(c, ids), are the
// discrete prompt.
std::vector<int32_t> NearestIds(const std::vector<TokenNeighbors>& tokens, Nearness nearness);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_NEIGHBORS_H_
