#include "peft/config_visitor.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace permafrost {

namespace {

// Gates are written as null, "running", "whole" or a constant; prefixes say whether keys and values
// share one.
constexpr char kSharedGates[] = "shared_gates";

}  // namespace

void FieldReader::Fail(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

void FieldReader::operator()(const char* name, bool& value) {
  known_.insert(name);
  const absl::StatusOr<bool> read = file_.fields.BoolOr(name, value);
  if (!read.ok()) return Fail(read.status());
  value = *read;
}

void FieldReader::operator()(const char* name, int64_t& value) {
  known_.insert(name);
  const absl::StatusOr<int64_t> read = file_.fields.IntOr(name, value);
  if (!read.ok()) return Fail(read.status());
  if (*read < 0 || *read > int64_t{1} << 31) {
    return Fail(ConfigError(file_.fields, name, "a number from 0 to 2^31", absl::StrCat(*read)));
  }
  value = *read;
}

void FieldReader::operator()(const char* name, double& value) {
  known_.insert(name);
  const absl::StatusOr<double> read = file_.fields.DoubleOr(name, value);
  if (!read.ok()) return Fail(read.status());
  value = *read;
}

void FieldReader::operator()(const char* name, std::vector<int>& value) {
  known_.insert(name);
  if (!file_.fields.Has(name)) return;
  const absl::StatusOr<std::vector<int64_t>> read = file_.fields.IntList(name);
  if (!read.ok()) return Fail(read.status());
  value.assign(read->begin(), read->end());
}

void FieldReader::operator()(const char* name, std::map<int, int64_t>& value) {
  known_.insert(name);
  const nlohmann::json* found = file_.fields.Find(name);
  if (found == nullptr || found->is_null()) return;
  if (!found->is_object()) {
    return Fail(ConfigError(file_.fields, name, "an object of layer numbers", found->dump()));
  }
  for (const auto& [key, entry] : found->items()) {
    int layer = 0;
    if (!absl::SimpleAtoi(key, &layer) || !entry.is_number_integer()) {
      return Fail(ConfigError(file_.fields, name, "layer numbers and whole numbers",
                              absl::StrCat(key, ": ", entry.dump())));
    }
    value[layer] = entry.get<int64_t>();
  }
}

void FieldReader::operator()(const char* name, GateConfig& value) {
  known_.insert({name, kSharedGates});
  const absl::StatusOr<bool> shared = file_.fields.BoolOr(kSharedGates, true);
  if (!shared.ok()) return Fail(shared.status());
  value.shared = *shared;
  const nlohmann::json* found = file_.fields.Find(name);
  if (found == nullptr || found->is_null()) return;
  if (found->is_number()) {
    value.kind = GateConfig::Kind::kConstant;
    value.value = found->get<double>();
  } else if (*found == "running") {
    value.kind = GateConfig::Kind::kRunning;
  } else if (*found == "whole") {
    value.kind = GateConfig::Kind::kWhole;
  } else {
    Fail(ConfigError(file_.fields, name, "null, running, whole or a number", found->dump()));
  }
}

void FieldReader::operator()(const char*, Targets& value) {
  known_.insert(kTargetFields.begin(), kTargetFields.end());
  absl::StatusOr<Targets> read = ReadTargets(file_, {});
  if (!read.ok()) return Fail(read.status());
  value = *std::move(read);
}

bool FieldReader::String(const char* name, std::string& value) {
  known_.insert(name);
  if (!file_.fields.Has(name)) return false;
  absl::StatusOr<std::string> read = file_.fields.String(name);
  if (!read.ok()) {
    Fail(read.status());
    return false;
  }
  value = *std::move(read);
  return true;
}

absl::Status FieldReader::Finish(const std::set<std::string>& others) const {
  if (!status_.ok()) return status_;
  std::set<std::string> known = known_;
  known.insert(others.begin(), others.end());
  return RefuseUnknown(file_, known);
}

void FieldWriter::operator()(const char* name, const std::map<int, int64_t>& value) {
  object_[name] = nlohmann::json::object();
  for (const auto& [layer, width] : value) object_[name][absl::StrCat(layer)] = width;
}

void FieldWriter::operator()(const char* name, const GateConfig& value) {
  nlohmann::ordered_json& gate = object_[name];
  switch (value.kind) {
    case GateConfig::Kind::kNone:
      gate = nullptr;
      break;
    case GateConfig::Kind::kRunning:
      gate = "running";
      break;
    case GateConfig::Kind::kWhole:
      gate = "whole";
      break;
    case GateConfig::Kind::kConstant:
      gate = value.value;
      break;
  }
  object_[kSharedGates] = value.shared;
}

void FieldWriter::operator()(const char*, const Targets& value) {
  if (!value.modules.empty()) WriteTargets(value, object_);
}

}  // namespace permafrost
