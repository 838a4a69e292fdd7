// The serialized events and the record below were made with TensorBoard 2.21.0:
//   from tensorboard.compat.proto import event_pb2
//   e = event_pb2.Event(wall_time=1700000000.25, step=300)
//   e.summary.value.add(tag="train/loss", simple_value=0.6931472)
//   e.summary.value.add(tag="lr", simple_value=-3e-5)
//   e.SerializeToString().hex()
//   event_pb2.Event(wall_time=1700000000.25, file_version="brain.Event:2")
//   e = event_pb2.Event(wall_time=1700000000.25, step=7); e.session_log.status = 1
//   tensorboard.summary.writer.record_writer.RecordWriter(file).write(b"123456789")

#include "io/tensorboard.h"

#include <cstring>
#include <string>

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"
#include "io/file.h"

namespace permafrost {
namespace {

constexpr double kTime = 1700000000.25;

std::string Hex(const std::string& bytes) { return absl::BytesToHexString(bytes); }

uint64_t LittleEndian(const std::string& bytes, size_t at, int size) {
  uint64_t value = 0;
  for (int i = 0; i < size; ++i) {
    value |= static_cast<uint64_t>(static_cast<unsigned char>(bytes.at(at + i))) << (8 * i);
  }
  return value;
}

// The data of each record of a file; checks both checksums.
std::vector<std::string> Records(const std::string& file) {
  std::vector<std::string> records;
  for (size_t at = 0; at < file.size();) {
    const uint64_t length = LittleEndian(file, at, 8);
    EXPECT_EQ(LittleEndian(file, at + 8, 4), MaskedCrc32c(file.substr(at, 8)));
    const std::string data = file.substr(at + 12, length);
    EXPECT_EQ(LittleEndian(file, at + 12 + length, 4), MaskedCrc32c(data));
    records.push_back(data);
    at += 16 + length;
  }
  return records;
}

TEST(Crc32c, GoldenVectors) {
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(Crc32c(""), 0u);
  // RFC 3720, B.4.
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
}

TEST(TfRecord, EqualsTensorBoards) {
  EXPECT_EQ(Hex(TfRecord("123456789")), "090000000000000037f97139313233343536373839e5b08ac7");
}

TEST(Event, EqualsTensorBoards) {
  EXPECT_EQ(
      Hex(ScalarsEvent(kTime, 300, {{"train/loss", 0.6931472f}, {"lr", -3e-5f}})),
      "0900001040fc54d94110ac022a1e0a110a0a747261696e2f6c6f7373151872313f0a090a026c721582a8fbb7");
  EXPECT_EQ(Hex(FileVersionEvent(kTime)), "0900001040fc54d9411a0d627261696e2e4576656e743a32");
  EXPECT_EQ(Hex(RestartEvent(kTime, 7)), "0900001040fc54d94110073a020801");
}

TEST(Event, LongTagsAndSteps) {
  const std::string event = ScalarsEvent(kTime, int64_t{1} << 40, {{std::string(300, 't'), 1.0f}});
  EXPECT_EQ(Hex(event.substr(9, 7)), "10808080808020");  // Key, then 2^40 in six groups of 7 bits.
  // 300 bytes of tag, 3 before them, 5 after: value 308, with its key and length 311.
  EXPECT_EQ(Hex(event.substr(16, 9)), "2ab7020ab4020aac02");
  EXPECT_EQ(event.size(), 16u + 3 + 3 + 308);
}

TEST(EventFile, ReadsBack) {
  std::string path;
  {
    auto writer = EventFileWriter::Create(testing::TempDir());
    ASSERT_TRUE(writer.ok()) << writer.status();
    path = writer->path();
    ASSERT_TRUE(writer->Add(1, {{"train/loss", 2.0f}}).ok());
    EXPECT_EQ(Records(*ReadFile(path)).size(), 2u);  // Visible at once.
    ASSERT_TRUE(writer->Add(2, {{"train/loss", 1.0f}}).ok());
  }
  EXPECT_NE(path.find("/events.out.tfevents."), std::string::npos);
  const std::vector<std::string> records = Records(*ReadFile(path));
  ASSERT_EQ(records.size(), 3u);
  EXPECT_NE(records[0].find("brain.Event:2"), std::string::npos);
  double time;
  std::memcpy(&time, records[2].data() + 1, sizeof(time));
  EXPECT_GT(time, 1.6e9);
  EXPECT_EQ(records[2], ScalarsEvent(time, 2, {{"train/loss", 1.0f}}));
}

TEST(EventFile, ResumedRunsForgetLaterSteps) {
  auto writer = EventFileWriter::Create(testing::TempDir(), 11);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::vector<std::string> records = Records(*ReadFile(writer->path()));
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(Hex(records[1].substr(9)), "100b3a020801");
}

TEST(EventFile, WritersNeverShareAFile) {
  auto first = EventFileWriter::Create(testing::TempDir());
  auto second = EventFileWriter::Create(testing::TempDir());
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->path(), second->path());
}

TEST(EventFile, Errors) {
  const auto writer = EventFileWriter::Create(testing::TempDir() + "/no_such_folder");
  EXPECT_NE(writer.status().message().find("no_such_folder"), std::string::npos);
}

}  // namespace
}  // namespace permafrost
