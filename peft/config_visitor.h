// Fields of a method's config in a PERMAFROST_… adapter_config.json, listed once for both
// directions: VisitFields(config, visitor) calls visitor("name", config.member) for each.
#ifndef PERMAFROST_PEFT_CONFIG_VISITOR_H_
#define PERMAFROST_PEFT_CONFIG_VISITOR_H_

#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "peft/config_reading.h"
#include "peft/gate.h"

namespace permafrost {

template <class E>
using Names = std::initializer_list<std::pair<const char*, E>>;

// Reads fields that are there; the first error stays in `status`.
class FieldReader {
 public:
  explicit FieldReader(const ConfigFile& file) : file_(file) {}

  void operator()(const char* name, bool& value);
  void operator()(const char* name, int64_t& value);
  void operator()(const char* name, double& value);
  void operator()(const char* name, std::vector<int>& value);
  void operator()(const char* name, std::map<int, int64_t>& value);
  void operator()(const char* name, GateConfig& value);
  void operator()(const char* name, Targets& value);
  template <class E>
  void Choice(const char* name, E& value, Names<E> names) {
    std::string found;
    if (!String(name, found)) return;
    std::string known;
    for (const auto& [text, e] : names) {
      if (found == text) {
        value = e;
        return;
      }
      known += (known.empty() ? "" : ", ") + std::string(text);
    }
    Fail(ConfigError(file_.fields, name, "one of " + known, found));
  }

  // An error of a field, or a field that nobody asked for and that is not in `others`.
  absl::Status Finish(const std::set<std::string>& others = {}) const;

 private:
  // The field's text; false if it is absent or not a text.
  bool String(const char* name, std::string& value);
  void Fail(absl::Status status);

  const ConfigFile& file_;
  std::set<std::string> known_;
  absl::Status status_;
};

class FieldWriter {
 public:
  explicit FieldWriter(nlohmann::ordered_json& object) : object_(object) {}

  template <class T>
  void operator()(const char* name, const T& value) {
    object_[name] = value;
  }
  void operator()(const char* name, const std::map<int, int64_t>& value);
  void operator()(const char* name, const GateConfig& value);
  void operator()(const char* name, const Targets& value);
  template <class E>
  void Choice(const char* name, const E& value, Names<E> names) {
    for (const auto& [text, e] : names) {
      if (e == value) object_[name] = text;
    }
  }

 private:
  nlohmann::ordered_json& object_;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_CONFIG_VISITOR_H_
