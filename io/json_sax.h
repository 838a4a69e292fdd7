// Event-wise JSON parsing under the rules that all readers here share: depth at most 64, no
// duplicate keys, valid UTF-8, no exceptions, errors with source, line and column. It lets a reader
// of hostile headers stop early and keep only what it needs. Internal to io/; use io/json.h.

#ifndef PERMAFROST_IO_JSON_SAX_H_
#define PERMAFROST_IO_JSON_SAX_H_

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace permafrost {

inline constexpr size_t kMaxJsonDepth = 64;
// Members of one object. Vocabularies are the largest objects in real files (about 300,000).
inline constexpr size_t kMaxJsonMembers = size_t{1} << 22;

namespace json_internal {

// Walks over text and reports how far the parser has read, for error positions.
struct TrackedIterator {
  using iterator_category = std::forward_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  reference operator*() const { return *at; }
  TrackedIterator& operator++() {
    *furthest = ++at;
    return *this;
  }
  TrackedIterator operator++(int) {
    TrackedIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const TrackedIterator& other) const { return at == other.at; }
  bool operator!=(const TrackedIterator& other) const { return at != other.at; }

  const char* at;
  const char** furthest;
};

// "SOURCE: JSON error in line 3, column 7 (byte 40): MESSAGE", all printable.
absl::Status JsonError(std::string_view source, std::string_view text, size_t byte,
                       std::string_view message);

// What nlohmann's parser said, without its error number and position.
std::string CleanParserMessage(std::string_view what);

// Sits between nlohmann's parser and a Handler and enforces the common rules.
template <class Handler>
class StrictEvents {
 public:
  explicit StrictEvents(Handler& handler) : handler_(handler) {}

  bool null() { return handler_.Null(); }
  bool boolean(bool value) { return handler_.Bool(value); }
  bool number_integer(int64_t value) { return handler_.Int(value); }
  bool number_unsigned(uint64_t value) { return handler_.Uint(value); }
  bool number_float(double value, const std::string&) { return handler_.Float(value); }
  bool string(std::string& value) { return handler_.String(value); }
  bool binary(std::vector<uint8_t>&) { return false; }  // never in JSON text
  bool start_object(size_t) {
    keys_.emplace_back();
    return CheckDepth() && handler_.StartObject();
  }
  bool key(std::string& key) {
    if (keys_.back().size() == kMaxJsonMembers) {
      error_ = "object with too many members";
      return false;
    }
    if (!keys_.back().insert(key).second) {
      error_ = "duplicate key \"" + key.substr(0, 200) + "\"";
      return false;
    }
    return handler_.Key(key);
  }
  bool end_object() {
    keys_.pop_back();
    return handler_.EndObject();
  }
  bool start_array(size_t) {
    keys_.emplace_back();
    return CheckDepth() && handler_.StartArray();
  }
  bool end_array() {
    keys_.pop_back();
    return handler_.EndArray();
  }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) {
    error_ = CleanParserMessage(error.what());
    return false;
  }

  const std::string& error() const { return error_.empty() ? handler_.error : error_; }

 private:
  bool CheckDepth() {
    if (keys_.size() <= kMaxJsonDepth) return true;
    error_ = "nested deeper than " + std::to_string(kMaxJsonDepth) + " levels";
    return false;
  }

  Handler& handler_;
  std::vector<absl::flat_hash_set<std::string>> keys_;  // of the open objects; unused for arrays
  std::string error_;
};

}  // namespace json_internal

// Sends the events of one JSON text to `handler`, which has
//   bool Null(), Bool(bool), Int(int64_t) (negative only), Uint(uint64_t), Float(double),
//   String(std::string&), StartObject(), Key(std::string&), EndObject(), StartArray(), EndArray()
// that return false to stop, and `std::string error`, which says why. `source` names the text in
// the error.
template <class Handler>
absl::Status ParseJsonEvents(std::string_view text, std::string_view source, Handler& handler) {
  // nlohmann's lexer takes a NUL byte for the end of the text and skips a byte order mark.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return json_internal::JsonError(source, text, nul, "NUL byte");
  }
  if (!text.empty() && text[0] == '\xef') {
    return json_internal::JsonError(source, text, 0, "byte order mark or other text before JSON");
  }
  const char* furthest = text.data();
  json_internal::StrictEvents<Handler> events(handler);
  const bool done = nlohmann::json::sax_parse(
      json_internal::TrackedIterator{text.data(), &furthest},
      json_internal::TrackedIterator{text.data() + text.size(), &furthest}, &events);
  if (done) return absl::OkStatus();
  const size_t read = static_cast<size_t>(furthest - text.data());
  return json_internal::JsonError(source, text, read == 0 ? 0 : read - 1, events.error());
}

}  // namespace permafrost

#endif  // PERMAFROST_IO_JSON_SAX_H_
