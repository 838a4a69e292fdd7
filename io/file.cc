#include "io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>

#include "absl/strings/str_cat.h"

namespace permafrost {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 18;
// Linux writes at most 2^31 - 4096 bytes a call; stay well below and aligned.
constexpr size_t kMaxWriteBytes = size_t{1} << 30;

absl::Status SystemError(std::string_view action, const std::string& path, int error_number) {
  return absl::ErrnoToStatus(error_number,
                             absl::StrCat("cannot ", std::string(action), " '", path, "'"));
}

// Retries a system call that a signal interrupted.
template <typename Call>
auto RetryInterrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

std::string FolderOf(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// Makes a rename durable. File systems that cannot sync a folder say EINVAL; there is nothing more
// to do on them.
absl::Status SyncFolder(const std::string& folder) {
  const int descriptor =
      RetryInterrupted([&] { return open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (descriptor < 0) {
    return errno == EACCES ? absl::OkStatus() : SystemError("open folder", folder, errno);
  }
  const int result = RetryInterrupted([&] { return fsync(descriptor); });
  const int error_number = errno;
  close(descriptor);
  if (result != 0 && error_number != EINVAL) {
    return SystemError("sync folder", folder, error_number);
  }
  return absl::OkStatus();
}

std::string_view AsText(absl::Span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  const int descriptor = RetryInterrupted([&] { return open(path.c_str(), O_RDONLY | O_CLOEXEC); });
  if (descriptor < 0) return SystemError("open", path, errno);
  std::string content;
  struct stat info;
  if (fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0 &&
      info.st_size <= max_bytes) {
    content.reserve(static_cast<size_t>(info.st_size) + 1);
  }
  absl::Status status;
  size_t used = 0;
  while (true) {
    // The reserved byte beyond the known size lets the end show without growing the buffer.
    if (used == content.size()) content.resize(std::max(content.capacity(), 2 * used + 4096));
    const ssize_t count = RetryInterrupted(
        [&] { return read(descriptor, content.data() + used, content.size() - used); });
    if (count < 0) {
      status = SystemError("read", path, errno);
      break;
    }
    if (count == 0) break;
    used += static_cast<size_t>(count);
    if (used > static_cast<size_t>(max_bytes)) {
      status = absl::InvalidArgumentError(absl::StrCat(
          "cannot read '", path, "': it is larger than the limit of ", max_bytes, " bytes"));
      break;
    }
  }
  close(descriptor);
  if (!status.ok()) return status;
  content.resize(used);
  return content;
}

bool FileExists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

bool FolderExists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  // O_NONBLOCK: opening a pipe without a writer must not hang before it is refused.
  const int descriptor =
      RetryInterrupted([&] { return open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  if (descriptor < 0) return SystemError("open", path, errno);
  MappedFile file;
  absl::Status status;
  struct stat info;
  if (fstat(descriptor, &info) != 0) {
    status = SystemError("stat", path, errno);
  } else if (!S_ISREG(info.st_mode)) {
    status = absl::InvalidArgumentError(absl::StrCat("cannot map '", path, "': it is ",
                                                     S_ISDIR(info.st_mode) ? "a folder" : "special",
                                                     ", expected a regular file"));
  } else if (info.st_size > 0) {  // an empty mapping is not allowed, an empty file is
    const size_t size = static_cast<size_t>(info.st_size);
    void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data == MAP_FAILED) {
      status = SystemError("map", path, errno);
    } else {
      file.data_ = static_cast<std::byte*>(data);
      file.size_ = size;
    }
  }
  close(descriptor);
  if (!status.ok()) return status;
  return file;
}

void MappedFile::DropPages() const {
  // A hint: failure costs memory, not correctness.
  if (data_ != nullptr) (void)madvise(data_, size_, MADV_DONTNEED);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_path_(std::exchange(other.temporary_path_, std::string())),
      descriptor_(std::exchange(other.descriptor_, -1)),
      buffer_(std::move(other.buffer_)),
      status_(std::move(other.status_)) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temporary_path_, other.temporary_path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(buffer_, other.buffer_);
  std::swap(status_, other.status_);
  return *this;
}

AtomicFile::~AtomicFile() { Abandon(); }

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot write '", path, "': it exists and is ",
                     S_ISDIR(info.st_mode) ? "a folder" : "not a regular file"));
  }
  static std::atomic<uint32_t> counter{0};
  while (true) {
    // Same folder as the target: rename is atomic only inside one file system.
    std::string temporary = absl::StrCat(path, ".tmp-", getpid(), "-", counter.fetch_add(1));
    const int descriptor = RetryInterrupted(
        [&] { return open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
    if (descriptor >= 0) return AtomicFile(path, std::move(temporary), descriptor);
    if (errno != EEXIST) return SystemError("write", path, errno);
  }
}

absl::Status AtomicFile::Append(absl::Span<const std::byte> bytes) { return Append(AsText(bytes)); }

absl::Status AtomicFile::Append(std::string_view text) {
  if (!status_.ok()) return status_;
  if (descriptor_ < 0) {
    return absl::FailedPreconditionError(absl::StrCat("'", path_, "' is already committed"));
  }
  if (buffer_.size() + text.size() <= kBufferBytes) {
    buffer_.append(text);
    return absl::OkStatus();
  }
  if (absl::Status s = WriteThrough(buffer_.data(), buffer_.size()); !s.ok()) return s;
  buffer_.clear();
  if (text.size() >= kBufferBytes) return WriteThrough(text.data(), text.size());
  buffer_.append(text);
  return absl::OkStatus();
}

absl::Status AtomicFile::WriteThrough(const char* data, size_t size) {
  while (size > 0) {
    const size_t part = std::min(size, kMaxWriteBytes);
    const ssize_t count = RetryInterrupted([&] { return write(descriptor_, data, part); });
    if (count < 0) return Fail("write", errno);
    data += count;
    size -= static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Commit() {
  if (!status_.ok()) return status_;
  if (descriptor_ < 0) {
    return absl::FailedPreconditionError(absl::StrCat("'", path_, "' is already committed"));
  }
  if (absl::Status s = WriteThrough(buffer_.data(), buffer_.size()); !s.ok()) return s;
  buffer_.clear();
  if (RetryInterrupted([&] { return fsync(descriptor_); }) != 0) return Fail("sync", errno);
  // Network file systems report a full disk only here. Not retried: the descriptor is gone.
  if (close(std::exchange(descriptor_, -1)) != 0 && errno != EINTR) return Fail("close", errno);
  if (rename(temporary_path_.c_str(), path_.c_str()) != 0) return Fail("rename to", errno);
  temporary_path_.clear();
  return SyncFolder(FolderOf(path_));
}

absl::Status AtomicFile::Fail(std::string_view action, int error_number) {
  status_ = SystemError(action, path_, error_number);
  Abandon();
  return status_;
}

void AtomicFile::Abandon() {
  if (descriptor_ >= 0) close(std::exchange(descriptor_, -1));
  if (!temporary_path_.empty()) unlink(temporary_path_.c_str());
  temporary_path_.clear();
  buffer_.clear();
}

absl::Status WriteFileAtomically(const std::string& path, absl::Span<const std::byte> bytes) {
  return WriteFileAtomically(path, AsText(bytes));
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view text) {
  absl::StatusOr<AtomicFile> file = AtomicFile::Create(path);
  if (!file.ok()) return file.status();
  if (absl::Status s = file->Append(text); !s.ok()) return s;
  return file->Commit();
}

}  // namespace permafrost
