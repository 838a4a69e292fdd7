#include "io/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace permafrost {
namespace {

// Wire types of protocol buffers.
enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

// Field numbers. Event: wall_time 1 (double), step 2 (int64), file_version 3 (string), summary 5,
// session_log 7. Summary: value 1. Summary.Value: tag 1 (string), simple_value 2 (float).
// SessionLog: status 1 (enum, START = 1).
constexpr uint32_t kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5,
                   kEventSessionLog = 7, kSummaryValue = 1, kValueTag = 1, kValueSimple = 2,
                   kSessionStatus = 1, kSessionStart = 1;

constexpr std::array<uint32_t, 256> MakeCrcTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0u);
    table[byte] = crc;
  }
  return table;
}

template <typename T>
void AppendLittleEndian(T value, std::string* out) {
  for (size_t i = 0; i < sizeof(T); ++i) out->push_back(static_cast<char>(value >> (8 * i) & 0xFF));
}

void AppendVarint(uint64_t value, std::string* out) {
  while (value >= 0x80) {
    out->push_back(static_cast<char>((value & 0x7F) | 0x80));
    value >>= 7;
  }
  out->push_back(static_cast<char>(value));
}

void AppendKey(uint32_t field, WireType type, std::string* out) {
  AppendVarint(field << 3 | type, out);
}

void AppendVarintField(uint32_t field, uint64_t value, std::string* out) {
  AppendKey(field, kVarint, out);
  AppendVarint(value, out);
}

void AppendBytesField(uint32_t field, std::string_view bytes, std::string* out) {
  AppendKey(field, kBytes, out);
  AppendVarint(bytes.size(), out);
  out->append(bytes);
}

std::string EventStart(double wall_time, int64_t step) {
  std::string event;
  AppendKey(kEventWallTime, kFixed64, &event);
  AppendLittleEndian(std::bit_cast<uint64_t>(wall_time), &event);
  if (step != 0) AppendVarintField(kEventStep, static_cast<uint64_t>(step), &event);
  return event;
}

double Now() {
  const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since_epoch).count();
}

}  // namespace

uint32_t Crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = MakeCrcTable();
  uint32_t crc = ~0u;
  for (const char c : bytes) crc = crc >> 8 ^ kTable[(crc ^ static_cast<uint8_t>(c)) & 0xFF];
  return ~crc;
}

uint32_t MaskedCrc32c(std::string_view bytes) { return std::rotr(Crc32c(bytes), 15) + 0xA282EAD8u; }

std::string TfRecord(std::string_view data) {
  std::string record;
  AppendLittleEndian<uint64_t>(data.size(), &record);
  AppendLittleEndian(MaskedCrc32c(record), &record);
  record.append(data);
  AppendLittleEndian(MaskedCrc32c(data), &record);
  return record;
}

std::string FileVersionEvent(double wall_time) {
  std::string event = EventStart(wall_time, 0);
  AppendBytesField(kEventFileVersion, "brain.Event:2", &event);
  return event;
}

std::string ScalarsEvent(double wall_time, int64_t step, const Scalars& scalars) {
  std::string summary;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    AppendBytesField(kValueTag, tag, &value);
    AppendKey(kValueSimple, kFixed32, &value);
    AppendLittleEndian(std::bit_cast<uint32_t>(number), &value);
    AppendBytesField(kSummaryValue, value, &summary);
  }
  std::string event = EventStart(wall_time, step);
  AppendBytesField(kEventSummary, summary, &event);
  return event;
}

std::string RestartEvent(double wall_time, int64_t step) {
  std::string session;
  AppendVarintField(kSessionStatus, kSessionStart, &session);
  std::string event = EventStart(wall_time, step);
  AppendBytesField(kEventSessionLog, session, &event);
  return event;
}

absl::StatusOr<EventFileWriter> EventFileWriter::Create(const std::string& folder,
                                                        std::optional<int64_t> first_step) {
  const double now = Now();
  char host[256] = "localhost";
  gethostname(host, sizeof(host) - 1);
  const std::string stem = absl::StrFormat("%s/events.out.tfevents.%010d.%s.%d.", folder,
                                           static_cast<int64_t>(now), host, getpid());
  // Two writers of one process within a second must not share a file.
  std::string path;
  int descriptor = -1;
  for (int number = 0; descriptor < 0; ++number) {
    path = absl::StrCat(stem, number);
    descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0 && errno != EEXIST) {
      return absl::UnavailableError(
          absl::StrCat(path, ": cannot create the TensorBoard file: ", std::strerror(errno)));
    }
  }
  std::FILE* file = fdopen(descriptor, "wb");
  if (file == nullptr) {
    close(descriptor);
    return absl::UnavailableError(
        absl::StrCat(path, ": cannot open the TensorBoard file: ", std::strerror(errno)));
  }
  EventFileWriter writer(path, file);
  absl::Status status = writer.Write(FileVersionEvent(now));
  if (status.ok() && first_step.has_value()) status = writer.Write(RestartEvent(now, *first_step));
  if (!status.ok()) return status;
  return writer;
}

absl::Status EventFileWriter::Write(const std::string& event) {
  const std::string record = TfRecord(event);
  if (std::fwrite(record.data(), 1, record.size(), file_.get()) != record.size() ||
      std::fflush(file_.get()) != 0) {
    return absl::UnavailableError(
        absl::StrCat(path_, ": cannot write the TensorBoard file: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

absl::Status EventFileWriter::Add(int64_t step, const Scalars& scalars) {
  return Write(ScalarsEvent(Now(), step, scalars));
}

}  // namespace permafrost
