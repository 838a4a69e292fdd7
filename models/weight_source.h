// Where a model's tensors come from, under Hugging Face names whatever the container.
#ifndef PERMAFROST_MODELS_WEIGHT_SOURCE_H_
#define PERMAFROST_MODELS_WEIGHT_SOURCE_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/tensor_store.h"
#include "nlohmann/json.hpp"

namespace permafrost {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual std::vector<std::string> names() const = 0;
  virtual std::optional<std::vector<int64_t>> ShapeOf(const std::string& name) const = 0;
  // out.size() elements from `first_element`, row-major, whole rows.
  virtual absl::Status Read(const std::string& name, int64_t first_element,
                            absl::Span<float> out) const = 0;
  virtual std::string path() const = 0;
  virtual uint64_t hash() const = 0;
  virtual void DropPages() const {}
};

// A base as it lies on disk: its config as JSON text and its tensors.
struct BaseFiles {
  std::string config_json;
  std::string config_source;  // for messages
  std::unique_ptr<WeightSource> weights;
  // generation_config.json, or null: its end tokens go before those of the config.
  nlohmann::json generation = nullptr;
  std::string generation_source = {};
};
// Errors: no config.json, unreadable or invalid files, a GGUF architecture other than llama.
absl::StatusOr<BaseFiles> OpenBaseFiles(const std::string& path);

// Normal random weights of a given config, for benchmarks: time does not depend on values.
std::unique_ptr<WeightSource> RandomWeights(uint64_t seed, float deviation);

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_WEIGHT_SOURCE_H_
