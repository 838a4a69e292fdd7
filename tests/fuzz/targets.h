// What the fuzzers run: each function takes any bytes and must return without crashing, reading out
// of bounds, hanging or using memory out of proportion. Whatever a reader accepts is read fully.
//
// Each NAME_fuzz.cc here is a libFuzzer program of one function, built by the preset asan:
//   build/asan/tests/NAME_fuzz -max_total_time=60 -rss_limit_mb=2048 FOLDER_OF_INPUTS
// fuzz_smoke_test.cc runs all of them for a moment in the normal test run.

#ifndef PERMAFROST_TESTS_FUZZ_TARGETS_H_
#define PERMAFROST_TESTS_FUZZ_TARGETS_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"
#include "io/json.h"
#include "io/npy.h"
#include "io/safetensors.h"
#include "nlohmann/json.hpp"

namespace permafrost::fuzz {

// Sanitizers see a bad read only if the bytes are used.
inline void Use(float value) {
  [[maybe_unused]] static volatile float sink;
  sink = value;
}

template <typename Tensor>
void ReadAll(const Tensor& tensor) {
  // A zero-size dimension or the checked file size bound the number of elements, but sub-byte types
  // and blocks hold more elements than bytes.
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  if (ReadAsF32(tensor, 0, absl::MakeSpan(values)).ok() && !values.empty()) Use(values.back());
}

inline absl::Span<const std::byte> Bytes(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const std::byte*>(data), size};
}

inline void Safetensors(const uint8_t* data, size_t size) {
  const auto file = SafetensorsFile::Parse(Bytes(data, size), "fuzz");
  if (!file.ok()) return;
  for (const TensorView& tensor : file->tensors()) {
    if (file->Find(tensor.name) != &tensor) std::abort();
    ReadAll(tensor);
  }
}

inline void Gguf(const uint8_t* data, size_t size) {
  const auto file = GgufFile::Parse(Bytes(data, size), "fuzz");
  if (!file.ok()) return;
  for (const GgufTensor& tensor : file->tensors()) {
    if (file->Find(tensor.name) != &tensor) std::abort();
    ReadAll(tensor);
  }
  for (const std::string& key : file->keys()) {
    const int readable = file->Int(key).ok() + file->Float(key).ok() + file->Bool(key).ok() +
                         file->String(key).ok() + file->IntArray(key).ok() +
                         file->FloatArray(key).ok() + file->StringArray(key).ok();
    Use(static_cast<float>(readable));
  }
}

inline void Json(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto value = ParseJson(text, "fuzz");
  if (!value.ok()) return;
  // What was accepted survives a round trip.
  const auto again = ParseJson(DumpJson(*value), "fuzz");
  if (!again.ok() || *again != *value) std::abort();
}

inline void Npy(const uint8_t* data, size_t size) {
  const auto array = ParseNpy(Bytes(data, size), "fuzz");
  if (array.ok() && !array->values.empty()) Use(array->values.back());
}

}  // namespace permafrost::fuzz

#endif  // PERMAFROST_TESTS_FUZZ_TARGETS_H_
