// What generation remembers of the rows seen so far.
#ifndef PERMAFROST_MODELS_CACHE_H_
#define PERMAFROST_MODELS_CACHE_H_

#include <map>
#include <vector>

#include "engine/tensor.h"

namespace permafrost {

struct Cache {
  std::vector<Tensor> keys, values;              // [capacity, G K] by decoder layer; a row a slot
  std::vector<int32_t> slots;                    // by row of the next forward: where it goes
  std::vector<int32_t> previous;                 // by row: slot of the row before its first, or -1
  std::vector<Tensor> cross_keys, cross_values;  // T5: of the encoder rows, made once
  // Running sums of gates (RunningSums), a row a slot, by the gate that owns them.
  std::map<const void*, Tensor> sums;
};

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_CACHE_H_
