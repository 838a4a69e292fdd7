// The GGUF file format (ggml, llama.cpp), versions 2 and 3, little-endian: a hostile-safe reader.
//
// The reader checks everything that the reference (ggml, gguf_init_from_file) checks. Metadata
// values stay in the file and are decoded when asked for. Tensor shapes are given in PyTorch order,
// outermost first, which is the file's order reversed; the bytes are the same.
//
// Non-goals: writing, version 1, big-endian files, split files, renaming tensors to Hugging Face's
// names, undoing llama's row permutation.

#ifndef PERMAFROST_IO_GGUF_H_
#define PERMAFROST_IO_GGUF_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/dequantize.h"
#include "io/file.h"

namespace permafrost {

struct GgufTensor {
  std::string name;
  const GgmlType* type = nullptr;
  std::vector<int64_t> shape;  // outermost first
  absl::Span<const std::byte> bytes;

  int64_t num_elements() const;
};

class GgufFile {
 public:
  // Maps and checks a file. Errors name the path and the key or tensor.
  static absl::StatusOr<GgufFile> Open(const std::string& path);
  // The same for bytes in memory, which must outlive the result.
  static absl::StatusOr<GgufFile> Parse(absl::Span<const std::byte> bytes, std::string source);

  // All tensors, sorted by name. Their bytes live as long as this object (moves keep them).
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  // The tensor of that name, or nullptr.
  const GgufTensor* Find(std::string_view name) const;
  uint32_t version() const { return version_; }
  const std::string& source() const { return source_; }
  void DropPages() const { file_.DropPages(); }

  // Metadata. X(key) requires the key; XOr(key, default) gives the default only if it is missing. A
  // value of another type is an error that names source, key, expected and found type.
  bool Has(std::string_view key) const { return FindEntry(key) != nullptr; }
  std::vector<std::string> keys() const;  // sorted
  // Any integer type whose value fits int64.
  absl::StatusOr<int64_t> Int(std::string_view key) const;
  absl::StatusOr<int64_t> IntOr(std::string_view key, int64_t fallback) const;
  // f32 or f64.
  absl::StatusOr<double> Float(std::string_view key) const;
  absl::StatusOr<double> FloatOr(std::string_view key, double fallback) const;
  absl::StatusOr<bool> Bool(std::string_view key) const;
  absl::StatusOr<bool> BoolOr(std::string_view key, bool fallback) const;
  absl::StatusOr<std::string> String(std::string_view key) const;
  absl::StatusOr<std::string> StringOr(std::string_view key, std::string fallback) const;
  // Arrays of any integer type, of f32 or f64, of strings.
  absl::StatusOr<std::vector<int64_t>> IntArray(std::string_view key) const;
  absl::StatusOr<std::vector<double>> FloatArray(std::string_view key) const;
  absl::StatusOr<std::vector<std::string>> StringArray(std::string_view key) const;

 private:
  friend class GgufParser;
  // A key and where its checked value lies.
  struct Entry {
    std::string key;
    uint32_t type = 0;  // of the value, or of the elements of an array
    bool is_array = false;
    uint64_t count = 1;                 // of elements
    absl::Span<const std::byte> bytes;  // of the elements; strings with their lengths
  };

  const Entry* FindEntry(std::string_view key) const;
  absl::Status TypeError(std::string_view key, std::string_view expected) const;
  template <typename T>
  absl::StatusOr<T> Get(std::string_view key) const;
  template <typename T>
  absl::StatusOr<std::vector<T>> GetArray(std::string_view key) const;
  template <typename T>
  absl::StatusOr<T> GetOr(std::string_view key, T fallback) const;

  MappedFile file_;
  std::string source_;
  uint32_t version_ = 0;
  std::vector<Entry> entries_;  // sorted by key
  std::vector<GgufTensor> tensors_;
};

// Converts out.size() elements from `first_element` (row-major) to f32. Both must be multiples of
// the type's block (rows are). Errors: a type that is not implemented, a range outside of the
// tensor or inside of a block.
absl::Status ReadAsF32(const GgufTensor& tensor, int64_t first_element, absl::Span<float> out);

}  // namespace permafrost

#endif  // PERMAFROST_IO_GGUF_H_
