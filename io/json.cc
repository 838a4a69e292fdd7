#include "io/json.h"

#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "io/file.h"
#include "io/json_sax.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace json_internal {
namespace {

// Control characters and bytes beyond ASCII escaped; quotes stay as they are.
std::string OneLine(std::string_view text) {
  return absl::StrReplaceAll(absl::CHexEscape(std::string(text)),
                             {{"\\'", "'"}, {"\\\"", "\""}, {"\\\\", "\\"}});
}

}  // namespace

absl::Status JsonError(std::string_view source, std::string_view text, size_t byte,
                       std::string_view message) {
  size_t line = 1, column = 1;
  for (const char c : text.substr(0, byte)) {
    column = c == '\n' ? 1 : column + 1;
    if (c == '\n') ++line;
  }
  return absl::InvalidArgumentError(absl::StrCat(std::string(source), ": JSON error in line ", line,
                                                 ", column ", column, " (byte ", byte,
                                                 "): ", OneLine(message)));
}

std::string CleanParserMessage(std::string_view what) {
  // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error while ..."
  if (const size_t end = what.find("] "); end != std::string_view::npos)
    what.remove_prefix(end + 2);
  if (what.substr(0, 14) == "parse error at") {
    const size_t end = what.find(": ");
    if (end != std::string_view::npos) what.remove_prefix(end + 2);
  }
  constexpr size_t kMaxLength = 300;
  if (what.size() <= kMaxLength) return std::string(what);
  return std::string(what.substr(0, kMaxLength)) + "...";
}

}  // namespace json_internal

namespace {

using nlohmann::json;

constexpr int64_t kMaxJsonFileBytes = int64_t{1} << 30;

// Builds the value tree.
class TreeBuilder {
 public:
  bool Null() { return Put(json()); }
  bool Bool(bool value) { return Put(json(value)); }
  bool Int(int64_t value) { return Put(json(value)); }
  bool Uint(uint64_t value) { return Put(json(value)); }
  bool Float(double value) { return Put(json(value)); }
  bool String(std::string& value) { return Put(json(std::move(value))); }
  bool StartObject() { return Open(json::object()); }
  bool Key(std::string& key) {
    slot_ = &(*open_.back())[std::move(key)];
    return true;
  }
  bool EndObject() { return Close(); }
  bool StartArray() { return Open(json::array()); }
  bool EndArray() { return Close(); }

  json root;
  std::string error;

 private:
  json* Place(json value) {
    json* place = nullptr;
    if (open_.empty()) {
      place = &root;
    } else if (open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      return &open_.back()->back();
    } else {
      place = slot_;
    }
    *place = std::move(value);
    return place;
  }
  bool Put(json value) {
    Place(std::move(value));
    return true;
  }
  bool Open(json value) {
    open_.push_back(Place(std::move(value)));
    return true;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }

  std::vector<json*> open_;  // addresses stay valid: only the innermost container grows
  json* slot_ = nullptr;     // of the key read last
};

// The conversions behind JsonFields: a value, or nothing if it has another type.
template <typename T>
struct Converter;

template <>
struct Converter<int64_t> {
  static constexpr char kExpected[] = "a whole number";
  static std::optional<int64_t> Convert(const json& value) {
    if (value.is_number_unsigned()) {
      const uint64_t number = value.get<uint64_t>();
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(number);
    }
    if (value.is_number_integer()) return value.get<int64_t>();
    return std::nullopt;
  }
};

template <>
struct Converter<double> {
  static constexpr char kExpected[] = "a number";
  static std::optional<double> Convert(const json& value) {
    if (!value.is_number()) return std::nullopt;
    return value.get<double>();
  }
};

template <>
struct Converter<bool> {
  static constexpr char kExpected[] = "true or false";
  static std::optional<bool> Convert(const json& value) {
    if (!value.is_boolean()) return std::nullopt;
    return value.get<bool>();
  }
};

template <>
struct Converter<std::string> {
  static constexpr char kExpected[] = "a string";
  static std::optional<std::string> Convert(const json& value) {
    if (!value.is_string()) return std::nullopt;
    return value.get_ref<const std::string&>();
  }
};

template <typename T>
struct Converter<std::vector<T>> {
  static std::optional<std::vector<T>> Convert(const json& value) {
    if (!value.is_array()) return std::nullopt;
    std::vector<T> list;
    list.reserve(value.size());
    for (const json& element : value) {
      std::optional<T> converted = Converter<T>::Convert(element);
      if (!converted.has_value()) return std::nullopt;
      list.push_back(*std::move(converted));
    }
    return list;
  }
};

template <typename T>
struct Expected {
  static std::string Text() { return Converter<T>::kExpected; }
};

template <typename T>
struct Expected<std::vector<T>> {
  static std::string Text() {
    return absl::StrCat("an array whose elements are each ", Converter<T>::kExpected);
  }
};

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text, std::string_view source) {
  TreeBuilder builder;
  if (absl::Status s = ParseJsonEvents(text, source, builder); !s.ok()) return s;
  return std::move(builder.root);
}

absl::StatusOr<json> ReadJsonFile(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kMaxJsonFileBytes);
  if (!text.ok()) return text.status();
  return ParseJson(*text, path);
}

std::string DumpJson(const json& value, int indent) {
  return value.dump(indent, ' ', false, json::error_handler_t::replace);
}

std::string DescribeJson(const json& value) {
  constexpr size_t kMaxLength = 60;
  if (value.is_array()) return absl::StrCat("an array of ", value.size());
  if (value.is_object()) return absl::StrCat("an object of ", value.size());
  std::string text =
      value.is_string()
          ? absl::StrCat(
                "\"",
                absl::Utf8SafeCHexEscape(value.get_ref<const std::string&>().substr(0, kMaxLength)),
                "\"")
          : DumpJson(value);
  return value.is_string() ? absl::StrCat("the string ", text) : text;
}

JsonFields::JsonFields(const json& object, std::string source)
    : object_(&object), source_(std::move(source)) {}

const json* JsonFields::Find(std::string_view field) const {
  if (!object_->is_object()) return nullptr;
  const auto found = object_->find(std::string(field));
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

template <typename T>
absl::StatusOr<T> JsonFields::Get(std::string_view field) const {
  const json* value = Find(field);
  if (value != nullptr) {
    std::optional<T> converted = Converter<T>::Convert(*value);
    if (converted.has_value()) return *std::move(converted);
  }
  if (!object_->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(source_, ": expected an object with field \"",
                                                   std::string(field), "\", found ",
                                                   DescribeJson(*object_)));
  }
  std::string found = value != nullptr                        ? DescribeJson(*value)
                      : object_->contains(std::string(field)) ? "null"
                                                              : "no such field";
  return absl::InvalidArgumentError(absl::StrCat(source_, ": field \"", std::string(field),
                                                 "\": expected ", Expected<T>::Text(), ", found ",
                                                 found));
}

template <typename T>
absl::StatusOr<T> JsonFields::GetOr(std::string_view field, T fallback) const {
  if (Find(field) == nullptr) return fallback;
  return Get<T>(field);
}

absl::StatusOr<int64_t> JsonFields::Int(std::string_view field) const {
  return Get<int64_t>(field);
}
absl::StatusOr<int64_t> JsonFields::IntOr(std::string_view field, int64_t fallback) const {
  return GetOr<int64_t>(field, fallback);
}
absl::StatusOr<double> JsonFields::Double(std::string_view field) const {
  return Get<double>(field);
}
absl::StatusOr<double> JsonFields::DoubleOr(std::string_view field, double fallback) const {
  return GetOr<double>(field, fallback);
}
absl::StatusOr<bool> JsonFields::Bool(std::string_view field) const { return Get<bool>(field); }
absl::StatusOr<bool> JsonFields::BoolOr(std::string_view field, bool fallback) const {
  return GetOr<bool>(field, fallback);
}
absl::StatusOr<std::string> JsonFields::String(std::string_view field) const {
  return Get<std::string>(field);
}
absl::StatusOr<std::string> JsonFields::StringOr(std::string_view field,
                                                 std::string fallback) const {
  return GetOr<std::string>(field, std::move(fallback));
}
absl::StatusOr<std::vector<int64_t>> JsonFields::IntList(std::string_view field) const {
  return Get<std::vector<int64_t>>(field);
}
absl::StatusOr<std::vector<double>> JsonFields::DoubleList(std::string_view field) const {
  return Get<std::vector<double>>(field);
}
absl::StatusOr<std::vector<std::string>> JsonFields::StringList(std::string_view field) const {
  return Get<std::vector<std::string>>(field);
}

}  // namespace permafrost
