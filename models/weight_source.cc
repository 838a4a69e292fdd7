#include "models/weight_source.h"

#include <cmath>
#include <filesystem>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/file.h"
#include "io/json.h"
#include "kernels/dropout.h"
#include "models/gguf_names.h"

namespace permafrost {
namespace {

class FolderSource : public WeightSource {
 public:
  explicit FolderSource(TensorStore store) : store_(std::move(store)) {}
  std::vector<std::string> names() const override { return store_.names(); }
  std::optional<std::vector<int64_t>> ShapeOf(const std::string& name) const override {
    const auto info = store_.Find(name);
    if (!info.has_value()) return std::nullopt;
    return info->shape;
  }
  absl::Status Read(const std::string& name, int64_t first, absl::Span<float> out) const override {
    return store_.ReadF32(name, first, out);
  }
  std::string path() const override { return store_.source(); }
  uint64_t hash() const override { return store_.bytes_hash(); }
  void DropPages() const override { store_.DropPages(); }

 private:
  TensorStore store_;
};

// Llama-type GGUF: renamed, query and key rows put back into Hugging Face's order.
class GgufSource : public WeightSource {
 public:
  GgufSource(TensorStore store, GgufNames names)
      : store_(std::move(store)), names_(std::move(names)) {}
  std::vector<std::string> names() const override {
    std::vector<std::string> all;
    for (const auto& [name, entry] : names_.tensors) all.push_back(name);
    return all;
  }
  std::optional<std::vector<int64_t>> ShapeOf(const std::string& name) const override {
    const auto it = names_.tensors.find(name);
    if (it == names_.tensors.end()) return std::nullopt;
    return store_.Find(it->second.gguf_name)->shape;
  }
  absl::Status Read(const std::string& name, int64_t first, absl::Span<float> out) const override {
    const GgufNames::Entry& entry = names_.tensors.at(name);
    if (entry.rotated_heads == 0) return store_.ReadF32(entry.gguf_name, first, out);
    const std::vector<int64_t> shape = store_.Find(entry.gguf_name)->shape;
    const int64_t width = shape.size() == 2 ? shape[1] : 1;
    for (int64_t row = 0; row * width < static_cast<int64_t>(out.size()); ++row) {
      const int64_t from = GgufRowOf(first / width + row, shape[0] / entry.rotated_heads);
      PERMAFROST_RETURN_IF_ERROR(store_.ReadF32(
          entry.gguf_name, from * width,
          out.subspan(static_cast<size_t>(row * width), static_cast<size_t>(width))));
    }
    return absl::OkStatus();
  }
  std::string path() const override { return store_.source(); }
  uint64_t hash() const override { return store_.bytes_hash(); }
  void DropPages() const override { store_.DropPages(); }

 private:
  TensorStore store_;
  GgufNames names_;
};

class RandomSource : public WeightSource {
 public:
  RandomSource(uint64_t seed, float deviation) : seed_(seed), deviation_(deviation) {}
  std::vector<std::string> names() const override { return {}; }
  std::optional<std::vector<int64_t>> ShapeOf(const std::string& name) const override {
    if (name == "lm_head.weight") return std::nullopt;  // tied
    return std::vector<int64_t>{};                      // any shape
  }
  absl::Status Read(const std::string& name, int64_t first, absl::Span<float> out) const override {
    const bool is_norm = absl::StrContains(name, "norm") || absl::StrContains(name, "ln_");
    for (size_t i = 0; i < out.size(); ++i) {
      const uint64_t n = static_cast<uint64_t>(first) + i;
      const kernels::PhiloxWords w =
          kernels::Philox(seed_, static_cast<uint32_t>(n), static_cast<uint32_t>(n >> 32),
                          static_cast<uint32_t>(std::hash<std::string>{}(name)), 0);
      // The sum of four uniforms is near enough to a normal here.
      float sum = -2;
      for (uint32_t word : w.word) sum += static_cast<float>(word) * 0x1p-32f;
      out[i] = is_norm ? 1 : sum * 1.7320508f * deviation_;
    }
    return absl::OkStatus();
  }
  std::string path() const override { return "random weights"; }
  uint64_t hash() const override { return seed_; }

 private:
  uint64_t seed_;
  float deviation_;
};

}  // namespace

absl::StatusOr<BaseFiles> OpenBaseFiles(const std::string& path) {
  BaseFiles files;
  PERMAFROST_ASSIGN_OR_RETURN(TensorStore store, TensorStore::Open(path));
  if (store.gguf() != nullptr) {
    PERMAFROST_ASSIGN_OR_RETURN(files.config_json, GgufConfigJson(*store.gguf()));
    PERMAFROST_ASSIGN_OR_RETURN(GgufNames names, MapGgufNames(store));
    files.config_source = path;
    files.weights = std::make_unique<GgufSource>(std::move(store), std::move(names));
    return files;
  }
  files.config_source = absl::StrCat(path, "/config.json");
  PERMAFROST_ASSIGN_OR_RETURN(files.config_json, ReadFile(files.config_source));
  files.generation_source = absl::StrCat(path, "/generation_config.json");
  if (std::filesystem::exists(files.generation_source)) {
    PERMAFROST_ASSIGN_OR_RETURN(files.generation, ReadJsonFile(files.generation_source));
  }
  files.weights = std::make_unique<FolderSource>(std::move(store));
  return files;
}

std::unique_ptr<WeightSource> RandomWeights(uint64_t seed, float deviation) {
  return std::make_unique<RandomSource>(seed, deviation);
}

}  // namespace permafrost
