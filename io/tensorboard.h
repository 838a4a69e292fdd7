// TensorBoard event files with scalars.
//
// The format: a sequence of TFRecords, each {length u64, masked CRC-32C of the length u32, data,
// masked CRC-32C of the data u32}, all little-endian; the data is a serialized `Event` protocol
// buffer (tensorflow/core/util/event.proto, framework/summary.proto), of which only the few fields
// used here are encoded, by hand.
//
// Non-goals: histograms, images, text, graphs; reading.

#ifndef PERMAFROST_IO_TENSORBOARD_H_
#define PERMAFROST_IO_TENSORBOARD_H_

#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace permafrost {

// CRC-32C (Castagnoli; reflected polynomial 0x82F63B78), as in RFC 3720.
uint32_t Crc32c(std::string_view bytes);

// What TFRecord stores instead of a CRC, because a CRC over data that holds its own CRC
// degenerates.
uint32_t MaskedCrc32c(std::string_view bytes);

// One framed TFRecord.
std::string TfRecord(std::string_view data);

using Scalars =
    std::vector<std::pair<std::string, float>>;  // {tag, value}, such as {"train/loss", 0.7}.

// Serialized `Event`s. `wall_time` is in seconds since 1970.
std::string FileVersionEvent(double wall_time);
std::string ScalarsEvent(double wall_time, int64_t step, const Scalars& scalars);
// Tells TensorBoard to forget what earlier files of the folder say of steps >= `step`.
std::string RestartEvent(double wall_time, int64_t step);

class EventFileWriter {
 public:
  // A new file `events.out.tfevents.TIME.HOST.PID.N` in `folder`, which must exist. `first_step` is
  // set when a run resumes: the first step that will be logged. Errors: unwritable folder, disk
  // full.
  static absl::StatusOr<EventFileWriter> Create(const std::string& folder,
                                                std::optional<int64_t> first_step = std::nullopt);

  // Adds the scalars of one step and flushes. Errors: disk full, I/O error.
  absl::Status Add(int64_t step, const Scalars& scalars);

  const std::string& path() const { return path_; }

 private:
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  EventFileWriter(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}
  absl::Status Write(const std::string& event);

  std::string path_;
  std::unique_ptr<std::FILE, Closer> file_;
};

}  // namespace permafrost

#endif  // PERMAFROST_IO_TENSORBOARD_H_
