// JSON from strangers: strict parsing and typed access to fields, all errors as one-line statuses.
//
// A thin layer over nlohmann::json. Include "nlohmann/json.hpp" where values are looked into; this
// header needs only its forward declarations.
//
// Non-goals: comments, trailing commas, key order (objects are sorted), schema languages.

#ifndef PERMAFROST_IO_JSON_H_
#define PERMAFROST_IO_JSON_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace permafrost {

// Parses one JSON text. Refused: anything that is not strict JSON, duplicate keys, more than 64
// levels, invalid UTF-8 (also lone surrogates in escapes), NUL bytes, a byte order mark, numbers
// beyond double. The error names `source`, line, column and byte.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view source);

// ReadFile + ParseJson; `source` is the path. Files over 1 GiB are refused.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path);

// Text of a value; `indent` < 0 gives one line. Never throws: invalid UTF-8 in strings is replaced
// by U+FFFD.
std::string DumpJson(const nlohmann::json& value, int indent = -1);

// "null", "true", "12", "a string \"relu\"", "an array of 3", ...: a value as error messages name
// it, cut to a readable length.
std::string DescribeJson(const nlohmann::json& value);

// Typed access to the fields of one object:
//
//   JsonFields config(json, "config.json");
//   absl::StatusOr<int64_t> width = config.Int("d_model");
//   absl::StatusOr<int64_t> distance = config.IntOr("relative_attention_max_distance", 128);
//
// X(field) requires the field; XOr(field, default) gives the default if it is missing or null. The
// error names source, field, what was expected and what was found. A value that is not an object
// has no fields: requiring one says so. Holds a reference to the object.
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, std::string source);

  // True if the field is there and not null.
  bool Has(std::string_view field) const { return Find(field) != nullptr; }
  // The value of a field, or nullptr if it is missing or null.
  const nlohmann::json* Find(std::string_view field) const;
  const std::string& source() const { return source_; }

  // Whole numbers that fit int64; 3.0 is not one.
  absl::StatusOr<int64_t> Int(std::string_view field) const;
  absl::StatusOr<int64_t> IntOr(std::string_view field, int64_t fallback) const;
  // Any number.
  absl::StatusOr<double> Double(std::string_view field) const;
  absl::StatusOr<double> DoubleOr(std::string_view field, double fallback) const;
  absl::StatusOr<bool> Bool(std::string_view field) const;
  absl::StatusOr<bool> BoolOr(std::string_view field, bool fallback) const;
  absl::StatusOr<std::string> String(std::string_view field) const;
  absl::StatusOr<std::string> StringOr(std::string_view field, std::string fallback) const;
  // Arrays whose elements all have the type.
  absl::StatusOr<std::vector<int64_t>> IntList(std::string_view field) const;
  absl::StatusOr<std::vector<double>> DoubleList(std::string_view field) const;
  absl::StatusOr<std::vector<std::string>> StringList(std::string_view field) const;

 private:
  template <typename T>
  absl::StatusOr<T> Get(std::string_view field) const;
  template <typename T>
  absl::StatusOr<T> GetOr(std::string_view field, T fallback) const;

  const nlohmann::json* object_;
  std::string source_;
};

}  // namespace permafrost

#endif  // PERMAFROST_IO_JSON_H_
