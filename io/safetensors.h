// The safetensors file format: a hostile-safe reader over a memory map, and an atomic writer.
//
// Layout: u64 little-endian N, N bytes of JSON header, tensor data. Everything that the reference
// implementation (huggingface/safetensors, validate()) refuses is refused here, and also duplicate
// keys, names with control characters, more than 8 dimensions and more than 2^20 tensors.
//
// Non-goals: in-place changes, compression, tensors of sub-byte types (listed, never read), shared
// tensors (the format cannot say that two names are one tensor).

#ifndef PERMAFROST_IO_SAFETENSORS_H_
#define PERMAFROST_IO_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/file.h"

namespace permafrost {

// Element types of the format, in its own order, which is the reverse of the writing order.
enum class FileDType {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

// "F32", "BF16", ...: the names in the header.
std::string_view FileDTypeName(FileDType dtype);
std::optional<FileDType> FileDTypeFromName(std::string_view name);
// 4, 6, 8, 16, 32 or 64.
int FileDTypeBits(FileDType dtype);

// One tensor of a file or to be written: row-major, little-endian, at any alignment.
struct TensorView {
  std::string name;
  FileDType dtype = FileDType::kF32;
  std::vector<int64_t> shape;  // empty for a scalar
  absl::Span<const std::byte> bytes;

  int64_t num_elements() const;
};

struct SafetensorsLimits {
  int64_t max_header_bytes = 100'000'000;  // the reference's limit
  size_t max_tensors = size_t{1} << 20;
  size_t max_rank = 8;
};

class SafetensorsFile {
 public:
  // Maps and checks a file. Errors name the path, and the tensor if there is one.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path,
                                              const SafetensorsLimits& limits = {});
  // The same for bytes in memory, which must outlive the result; `source` is for messages.
  static absl::StatusOr<SafetensorsFile> Parse(absl::Span<const std::byte> bytes,
                                               std::string source,
                                               const SafetensorsLimits& limits = {});

  // All tensors, sorted by name. Their bytes live as long as this object (moves keep them).
  const std::vector<TensorView>& tensors() const { return tensors_; }
  // The tensor of that name, or nullptr.
  const TensorView* Find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& source() const { return source_; }
  void DropPages() const { file_.DropPages(); }

 private:
  MappedFile file_;
  std::string source_;
  std::vector<TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Converts out.size() elements from `first_element` (row-major) to f32: F64 (rounded), F32, F16 and
// BF16 (exact). Errors: another type, a range outside of the tensor.
absl::Status ReadAsF32(const TensorView& tensor, int64_t first_element, absl::Span<float> out);

// A view of f32 values as a tensor to write; `values` must outlive it.
TensorView F32View(std::string name, std::vector<int64_t> shape, absl::Span<const float> values);

// Writes a file that the reference reads: wide types first, then by name, so that every tensor is
// naturally aligned; the header is padded to 8 bytes and holds {"format": "pt"} and `metadata`.
// Errors: a name that is empty, reserved, used twice or has control characters; bytes that do not
// match type and shape; and those of AtomicFile. Nothing is left behind on an error.
absl::Status WriteSafetensors(const std::string& path, absl::Span<const TensorView> tensors,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace permafrost

#endif  // PERMAFROST_IO_SAFETENSORS_H_
