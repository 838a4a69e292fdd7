#include "io/file.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/io/test_files.h"

namespace permafrost {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string_view Text(absl::Span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string Pattern(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 31 + i / 251);
  return text;
}

TEST(ReadFile, ReadsWholeFilesOfAnySize) {
  TemporaryFolder folder;
  for (const size_t size : {0, 1, 4095, 4096, 4097, 1000003}) {
    const std::string content = Pattern(size);
    PutFile(folder.File("f"), content);
    EXPECT_EQ(*ReadFile(folder.File("f")), content) << size;
  }
}

TEST(ReadFile, RefusesMoreThanTheLimit) {
  TemporaryFolder folder;
  PutFile(folder.File("f"), "12345");
  EXPECT_EQ(*ReadFile(folder.File("f"), 5), "12345");
  EXPECT_THAT(ReadFile(folder.File("f"), 4).status().message(), HasSubstr("limit of 4 bytes"));
  EXPECT_THAT(ReadFile("/dev/zero", 1 << 20).status().message(), HasSubstr("limit"));
}

TEST(ReadFile, ErrorsNamePathAndReason) {
  TemporaryFolder folder;
  const absl::Status missing = ReadFile(folder.File("missing")).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.message(), HasSubstr(folder.File("missing")));
  EXPECT_THAT(missing.message(), HasSubstr("No such file or directory"));
  EXPECT_THAT(ReadFile(folder.path()).status().message(), HasSubstr("Is a directory"));
}

TEST(MappedFile, MapsMovesAndDropsPages) {
  TemporaryFolder folder;
  const std::string content = Pattern(100001);
  PutFile(folder.File("f"), content);
  absl::StatusOr<MappedFile> opened = MappedFile::Open(folder.File("f"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(Text(opened->bytes()), content);
  const std::byte* address = opened->bytes().data();
  MappedFile moved = *std::move(opened);
  EXPECT_EQ(moved.bytes().data(), address);
  moved.DropPages();
  EXPECT_EQ(Text(moved.bytes()), content);
  MappedFile other;
  other = std::move(moved);
  EXPECT_EQ(Text(other.bytes()), content);
}

TEST(MappedFile, EmptyFileIsAnEmptySpan) {
  TemporaryFolder folder;
  PutFile(folder.File("f"), "");
  absl::StatusOr<MappedFile> file = MappedFile::Open(folder.File("f"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->bytes().empty());
  file->DropPages();
}

TEST(MappedFile, RefusesWhatIsNotARegularFile) {
  TemporaryFolder folder;
  EXPECT_THAT(MappedFile::Open(folder.path()).status().message(), HasSubstr("it is a folder"));
  ASSERT_EQ(mkfifo(folder.File("pipe").c_str(), 0600), 0);
  EXPECT_THAT(MappedFile::Open(folder.File("pipe")).status().message(), HasSubstr("special"));
  EXPECT_THAT(MappedFile::Open(folder.File("none")).status().message(),
              HasSubstr("No such file or directory"));
}

TEST(AtomicFile, AppearsOnlyOnCommit) {
  TemporaryFolder folder;
  const std::string path = folder.File("f");
  PutFile(path, "old");
  absl::StatusOr<AtomicFile> file = AtomicFile::Create(path);
  ASSERT_TRUE(file.ok()) << file.status();
  std::string expected;
  for (const size_t size : {1, 300000, 5, 262144, 262143, 0, 7}) {
    const std::string part = Pattern(size);
    ASSERT_TRUE(file->Append(part).ok());
    expected += part;
  }
  EXPECT_EQ(GetFile(path), "old");
  AtomicFile moved = *std::move(file);
  ASSERT_TRUE(moved.Commit().ok());
  EXPECT_EQ(GetFile(path), expected);
  EXPECT_THAT(folder.List(), ElementsAre("f"));
  EXPECT_FALSE(moved.Append("more").ok());
  EXPECT_FALSE(moved.Commit().ok());
  EXPECT_EQ(GetFile(path), expected);
}

TEST(AtomicFile, LeavesNothingWithoutCommit) {
  TemporaryFolder folder;
  {
    absl::StatusOr<AtomicFile> file = AtomicFile::Create(folder.File("f"));
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->Append("text").ok());
    EXPECT_EQ(folder.List().size(), 1u);
  }
  EXPECT_THAT(folder.List(), IsEmpty());
}

TEST(AtomicFile, TwoWritersDoNotDisturbEachOther) {
  TemporaryFolder folder;
  absl::StatusOr<AtomicFile> first = AtomicFile::Create(folder.File("f"));
  absl::StatusOr<AtomicFile> second = AtomicFile::Create(folder.File("f"));
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_TRUE(first->Append("first").ok());
  ASSERT_TRUE(second->Append("second").ok());
  ASSERT_TRUE(first->Commit().ok());
  EXPECT_EQ(GetFile(folder.File("f")), "first");
  ASSERT_TRUE(second->Commit().ok());
  EXPECT_EQ(GetFile(folder.File("f")), "second");
}

TEST(AtomicFile, RefusesFoldersDevicesAndMissingFolders) {
  TemporaryFolder folder;
  EXPECT_THAT(WriteFileAtomically(folder.path(), "x").message(), HasSubstr("is a folder"));
  EXPECT_THAT(WriteFileAtomically("/dev/full", "x").message(), HasSubstr("not a regular file"));
  const absl::Status missing = WriteFileAtomically(folder.File("none/f"), "x");
  EXPECT_THAT(missing.message(), HasSubstr(folder.File("none/f")));
  EXPECT_THAT(missing.message(), HasSubstr("No such file or directory"));
}

TEST(AtomicFile, RefusesAnUnwritableFolder) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  TemporaryFolder folder;
  ASSERT_EQ(chmod(folder.path().c_str(), 0500), 0);
  EXPECT_THAT(WriteFileAtomically(folder.File("f"), "x").message(), HasSubstr("Permission denied"));
  ASSERT_EQ(chmod(folder.path().c_str(), 0700), 0);
}

// A file size limit stands for a full disk: write fails after a part went through. In a child
// process, since the limit holds for everything that the process writes.
TEST(AtomicFile, FullDiskKeepsTheOldFileAndLeavesNothing) {
  TemporaryFolder folder;
  const std::string path = folder.File("f");
  PutFile(path, "old");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {100000, 100000};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(10);
    absl::StatusOr<AtomicFile> file = AtomicFile::Create(path);
    if (!file.ok()) _exit(11);
    absl::Status status = file->Append(Pattern(500000));
    if (status.ok() || status.message().find(path) == std::string::npos) _exit(12);
    if (status.message().find("File too large") == std::string::npos) _exit(13);
    if (file->Append("x") != status || file->Commit() != status) _exit(14);
    if (WriteFileAtomically(path, Pattern(200000)).ok()) _exit(15);  // fails in Commit
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(GetFile(path), "old");
  EXPECT_THAT(folder.List(), ElementsAre("f"));
}

}  // namespace
}  // namespace permafrost
