// metrics.jsonl: one JSON object a line and logging step, in the order in which its values were
// given.
//
// A line is flushed to the operating system before Append returns, so a killed run loses at most
// the line that is being written, and Open drops such a torn line.
//
// Non-goals: nested values, reading the log for plots.

#ifndef PERMAFROST_IO_METRICS_LOG_H_
#define PERMAFROST_IO_METRICS_LOG_H_

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace permafrost {

using MetricValue = std::variant<int64_t, double, std::string>;
using MetricFields = std::vector<std::pair<std::string, MetricValue>>;

// The fields as one line of JSON without line end. Doubles are written with the fewest digits that
// give the same double back; NaN and infinities, which JSON lacks, as null.
std::string MetricsLine(const MetricFields& fields);

class MetricsLog {
 public:
  // An empty log at `path`; an old one there is replaced. Errors: folder missing or unwritable,
  // disk full.
  static absl::StatusOr<MetricsLog> Create(const std::string& path);

  // Goes on with the log at `path` (or starts it) after `last_step`: lines of later steps, lines
  // without an integer "step" and torn lines are removed. Errors: as Create, unreadable file.
  static absl::StatusOr<MetricsLog> Resume(const std::string& path, int64_t last_step);

  // Adds a line. Errors: disk full, I/O error.
  absl::Status Append(const MetricFields& fields);

 private:
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  MetricsLog(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}
  static absl::StatusOr<MetricsLog> OpenForAppend(const std::string& path);

  std::string path_;
  std::unique_ptr<std::FILE, Closer> file_;
};

}  // namespace permafrost

#endif  // PERMAFROST_IO_METRICS_LOG_H_
