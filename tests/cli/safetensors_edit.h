// A safetensors file taken apart by hand, to be put together wrongly.
#ifndef PERMAFROST_TESTS_CLI_SAFETENSORS_EDIT_H_
#define PERMAFROST_TESTS_CLI_SAFETENSORS_EDIT_H_

#include <cstdint>
#include <cstring>
#include <string>

#include "nlohmann/json.hpp"
#include "tests/cli/command_test_util.h"

namespace permafrost {

struct RawSafetensors {
  nlohmann::json header;
  std::string data;

  static RawSafetensors Read(const std::string& path) {
    const std::string bytes = ReadWhole(path);
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof(length));
    return {nlohmann::json::parse(bytes.substr(8, length)), bytes.substr(8 + length)};
  }

  std::string Bytes() const { return WithLength(header.dump().size()); }
  // With a header length that need not be true.
  std::string WithLength(uint64_t length) const {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, sizeof(length));
    return bytes + header.dump() + data;
  }

  size_t Begin(const std::string& name) const { return header[name]["data_offsets"][0]; }
  void SetFloat(const std::string& name, size_t element, float value) {
    std::memcpy(data.data() + Begin(name) + 4 * element, &value, sizeof(value));
  }
  void Rename(const std::string& from, const std::string& to) {
    header[to] = header[from];
    header.erase(from);
  }
  // An F32 tensor of zeros behind the others.
  void Add(const std::string& name, int64_t count) {
    const size_t begin = data.size();
    data.append(static_cast<size_t>(4 * count), '\0');
    header[name] = {{"dtype", "F32"}, {"shape", {count}}, {"data_offsets", {begin, data.size()}}};
  }
};

}  // namespace permafrost

#endif  // PERMAFROST_TESTS_CLI_SAFETENSORS_EDIT_H_
