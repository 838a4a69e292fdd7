#include "io/metrics_log.h"

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "io/file.h"
#include "io/json.h"
#include "io/lines.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

std::string NumberText(double value) {
  if (!std::isfinite(value)) return "null";
  char buffer[32];
  const std::to_chars_result end = std::to_chars(buffer, buffer + sizeof(buffer), value);
  std::string text(buffer, end.ptr);
  // A reader that tells integers from floats should see the same type on every line.
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string ValueText(const MetricValue& value) {
  if (const auto* integer = std::get_if<int64_t>(&value)) return absl::StrCat(*integer);
  if (const auto* number = std::get_if<double>(&value)) return NumberText(*number);
  return DumpJson(nlohmann::json(std::get<std::string>(value)));
}

absl::Status SystemError(const std::string& path, const char* action) {
  return absl::UnavailableError(
      absl::StrCat(path, ": cannot ", action, ": ", std::strerror(errno)));
}

bool IsKept(std::string_view line, int64_t last_step) {
  const absl::StatusOr<nlohmann::json> object = ParseJson(line, "metrics");
  if (!object.ok() || !object->is_object()) return false;
  const absl::StatusOr<int64_t> step = JsonFields(*object, "metrics").Int("step");
  return step.ok() && *step <= last_step;
}

}  // namespace

std::string MetricsLine(const MetricFields& fields) {
  std::string line = "{";
  for (const auto& [name, value] : fields) {
    if (line.size() > 1) line += ", ";
    absl::StrAppend(&line, DumpJson(nlohmann::json(name)), ": ", ValueText(value));
  }
  line += "}";
  return line;
}

absl::StatusOr<MetricsLog> MetricsLog::OpenForAppend(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "ab");
  if (file == nullptr) return SystemError(path, "open the metrics log");
  return MetricsLog(path, file);
}

absl::StatusOr<MetricsLog> MetricsLog::Create(const std::string& path) {
  if (absl::Status status = WriteFileAtomically(path, std::string_view()); !status.ok()) {
    return status;
  }
  return OpenForAppend(path);
}

absl::StatusOr<MetricsLog> MetricsLog::Resume(const std::string& path, int64_t last_step) {
  if (!FileExists(path)) return Create(path);
  const absl::StatusOr<std::string> old = ReadFile(path);
  if (!old.ok()) return old.status();
  std::string kept;
  for (LineReader reader(*old); reader.Next();) {
    if (!IsKept(reader.line(), last_step)) continue;
    kept += reader.line();
    kept += '\n';
  }
  if (absl::Status status = WriteFileAtomically(path, std::string_view(kept)); !status.ok()) {
    return status;
  }
  return OpenForAppend(path);
}

absl::Status MetricsLog::Append(const MetricFields& fields) {
  const std::string line = MetricsLine(fields) + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() ||
      std::fflush(file_.get()) != 0) {
    return SystemError(path_, "write the metrics log");
  }
  return absl::OkStatus();
}

}  // namespace permafrost
