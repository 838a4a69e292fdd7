// Files: whole-file reading, read-only memory maps and crash-safe writing.
//
// Every error is one line that carries the path and the system's reason. Writers never leave a half
// written file under the final name: they write a temporary file in the same folder, fsync it,
// rename it over the target and fsync the folder. A full disk, an unwritable folder or a killed
// process leaves the old file as it was.
//
// Non-goals: asynchronous or partial writes, files that another process truncates while they are
// mapped (the operating system raises SIGBUS then).

#ifndef PERMAFROST_IO_FILE_H_
#define PERMAFROST_IO_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace permafrost {

// A file larger than this is refused by ReadFile; it belongs into a MappedFile.
inline constexpr int64_t kMaxReadFileBytes = int64_t{1} << 32;

// The whole content of a file or pipe. Errors: missing, unreadable, a folder, more than
// `max_bytes`.
absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     int64_t max_bytes = kMaxReadFileBytes);

// True if `path` names a regular file (after following links) or a folder, respectively.
bool FileExists(const std::string& path);
bool FolderExists(const std::string& path);

// A regular file mapped read-only into memory; unmapped on destruction. The addresses of its bytes
// survive moves of the object.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  // Errors: missing, unreadable, not a regular file, not mappable.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  absl::Span<const std::byte> bytes() const { return {data_, size_}; }

  // Gives the pages of the mapping back to the operating system; they are read again on the next
  // access. Call it after weights have been packed, so that a base is not in memory twice.
  void DropPages() const;

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A file that appears under its name only when it is complete.
//
//   absl::StatusOr<AtomicFile> file = AtomicFile::Create(path);
//   if (!file.ok()) return file.status();
//   if (absl::Status s = file->Append(part); !s.ok()) return s;  // any number of times
//   return file->Commit();
//
// Without Commit, or when a step fails, the temporary file is removed and the old file is intact.
class AtomicFile {
 public:
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  // Errors: folder missing or unwritable; `path` exists and is not a regular file.
  static absl::StatusOr<AtomicFile> Create(const std::string& path);

  // Adds bytes at the end. Errors: disk full, size limit, I/O error; the file is given up then, and
  // every later call returns the same error.
  absl::Status Append(absl::Span<const std::byte> bytes);
  absl::Status Append(std::string_view text);

  // Makes the file durable under its final name. Call at most once.
  absl::Status Commit();

 private:
  AtomicFile(std::string path, std::string temporary_path, int descriptor)
      : path_(std::move(path)),
        temporary_path_(std::move(temporary_path)),
        descriptor_(descriptor) {}
  absl::Status WriteThrough(const char* data, size_t size);
  absl::Status Fail(std::string_view action, int error_number);
  void Abandon();

  std::string path_;
  std::string temporary_path_;  // empty after a commit, a failure or a move
  int descriptor_ = -1;
  std::string buffer_;  // gathers small appends into large writes
  absl::Status status_;
};

// Replaces the content of `path` by `bytes`, all or nothing. Errors as for AtomicFile.
absl::Status WriteFileAtomically(const std::string& path, absl::Span<const std::byte> bytes);
absl::Status WriteFileAtomically(const std::string& path, std::string_view text);

}  // namespace permafrost

#endif  // PERMAFROST_IO_FILE_H_
