// Llama-type GGUF files in Hugging Face's terms: config, tensor names, row order.
#ifndef PERMAFROST_MODELS_GGUF_NAMES_H_
#define PERMAFROST_MODELS_GGUF_NAMES_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "io/tensor_store.h"

namespace permafrost {

// The config.json that transformers would have for this file. Errors: an architecture other than
// llama, a missing key, a rope scaling.
absl::StatusOr<std::string> GgufConfigJson(const GgufFile& file);

struct GgufNames {
  struct Entry {
    std::string gguf_name;
    int64_t rotated_heads = 0;  // rows are stored with adjacent rotation pairs in this many heads
  };
  std::map<std::string, Entry> tensors;  // by Hugging Face name
};
// Error: a tensor whose name the llama architecture does not have.
absl::StatusOr<GgufNames> MapGgufNames(const TensorStore& store);

// The stored row that holds Hugging Face's row `row` when heads have `head_size` rows: within a
// head, stored row 2 j + s is row s * head_size / 2 + j.
int64_t GgufRowOf(int64_t row, int64_t head_size);

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_GGUF_NAMES_H_
