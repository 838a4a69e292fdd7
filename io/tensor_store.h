// The tensors of a base model or adapter, whatever file or files they are in.
//
// A store is opened from a Hugging Face folder (model.safetensors, or the shards that
// model.safetensors.index.json names), from one .safetensors file, or from a .gguf file. GGUF
// tensors keep their GGUF names; shapes are in PyTorch order everywhere.
//
// Non-goals: renaming tensors, caching converted values, pickled checkpoints (they can run code).

#ifndef PERMAFROST_IO_TENSOR_STORE_H_
#define PERMAFROST_IO_TENSOR_STORE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/gguf.h"
#include "io/safetensors.h"

namespace permafrost {

// What a store knows of a tensor without reading it.
struct TensorInfo {
  std::vector<int64_t> shape;  // outermost first
  std::string_view dtype;      // the container's name of the type: "BF16", "Q4_K", ...
};

class TensorStore {
 public:
  // Opens and checks all files. Errors: nothing to open (says what was looked for; pickles are
  // named and refused), any error of the readers, and for shards: a file name that is not a plain
  // name, a mapped tensor that its shard lacks, a shard's tensor that is mapped elsewhere or not at
  // all.
  static absl::StatusOr<TensorStore> Open(const std::string& path);

  // Sorted.
  const std::vector<std::string>& names() const { return names_; }
  // Shape and type of a tensor, or nothing if there is none of that name.
  std::optional<TensorInfo> Find(std::string_view name) const;
  // Converts out.size() elements from `first_element` (row-major) to f32. Errors name the source:
  // no such tensor; those of ReadAsF32 for safetensors and GGUF (whole blocks only).
  absl::Status ReadF32(std::string_view name, int64_t first_element, absl::Span<float> out) const;

  // Gives all mapped pages back; see MappedFile::DropPages.
  void DropPages() const;
  // A fingerprint of names, types, shapes and samples of every tensor's bytes: the "hash of the
  // base" in run.json. Stable over machines and runs; cheap (at most 2 KiB are read a tensor), so
  // it tells different checkpoints apart but proves nothing about a file that was tampered with.
  uint64_t bytes_hash() const;
  // The path it was opened from.
  const std::string& source() const { return source_; }
  // The GGUF file, for its metadata; nullptr for safetensors.
  const GgufFile* gguf() const { return gguf_.has_value() ? &*gguf_ : nullptr; }

 private:
  // Where a name's tensor is; parallel to names_. `shard` is unused for GGUF.
  struct Place {
    size_t shard;
    size_t index;
  };

  absl::Status OpenShards(const std::string& index_path);
  void TakeFile(SafetensorsFile file);
  void TakeGguf(GgufFile file);
  const Place* FindPlace(std::string_view name) const;

  std::string source_;
  std::vector<SafetensorsFile> files_;
  std::optional<GgufFile> gguf_;
  std::vector<std::string> names_;
  std::vector<Place> places_;
};

}  // namespace permafrost

#endif  // PERMAFROST_IO_TENSOR_STORE_H_
