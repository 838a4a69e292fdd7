// NumPy's .npy files, versions 1.0 and 2.0: how Google's prompt-tuning code publishes prompts.
//
// Non-goals: other types than little-endian f4 and f8, Fortran order, .npz archives, pickled
// objects.

#ifndef PERMAFROST_IO_NPY_H_
#define PERMAFROST_IO_NPY_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace permafrost {

struct NpyArray {
  std::vector<int64_t> shape;  // empty for a scalar
  std::vector<float> values;   // row-major; f8 is rounded to f32
};

// Reads a file. Errors: not .npy, another version, type or order, a header that is not the plain
// dictionary NumPy writes, a size that does not match the shape, more than 8 dimensions.
absl::StatusOr<NpyArray> ReadNpy(const std::string& path);
// The same for bytes in memory; `source` is for messages.
absl::StatusOr<NpyArray> ParseNpy(absl::Span<const std::byte> bytes, const std::string& source);

// Writes f4 in C order, version 1.0, atomically. Errors: values that do not fill the shape, and
// those of AtomicFile.
absl::Status WriteNpy(const std::string& path, absl::Span<const int64_t> shape,
                      absl::Span<const float> values);

}  // namespace permafrost

#endif  // PERMAFROST_IO_NPY_H_
