#include "io/npy.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/io/test_files.h"

namespace permafrost {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string Npy(std::string_view header, size_t data_bytes, std::string_view version = "\x01") {
  std::string bytes = "\x93NUMPY" + std::string(version) + std::string(1, '\0');
  bytes += version == "\x01" ? Raw<uint16_t>(header.size()) : Raw<uint32_t>(header.size());
  return bytes + std::string(header) + std::string(data_bytes, '\0');
}

std::string ErrorOf(std::string_view bytes) {
  const auto array = ParseNpy(AsBytes(bytes), "f.npy");
  return array.ok() ? "no error" : std::string(array.status().message());
}

TEST(Npy, ReadsWhatNumpyWrote) {
  absl::StatusOr<NpyArray> array = ReadNpy(PERMAFROST_GOLDEN "/gguf/f8.npy");
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_THAT(array->shape, ElementsAre(2, 3));
  EXPECT_THAT(array->values, ElementsAre(0.1f, -2.0f, 0.0f, INFINITY, 5.0f, 6.0f));
  array = ReadNpy(PERMAFROST_GOLDEN "/gguf/f4_v2.npy");
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_THAT(array->shape, ElementsAre(5));
  EXPECT_THAT(array->values, ElementsAre(0, 1, 2, 3, 4));
}

TEST(Npy, RoundTripsAndWritesTheHeaderOfNumpy) {
  TemporaryFolder folder;
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{}, {3}, {2, 0}, {2, 3}, {1, 2, 3, 4}}) {
    size_t count = 1;
    for (const int64_t size : shape) count *= static_cast<size_t>(size);
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i) values[i] = 1.5f * static_cast<float>(i) - 2;
    ASSERT_TRUE(WriteNpy(folder.File("f"), shape, values).ok());
    absl::StatusOr<NpyArray> array = ReadNpy(folder.File("f"));
    ASSERT_TRUE(array.ok()) << array.status();
    EXPECT_EQ(array->shape, shape);
    EXPECT_EQ(array->values, values);
  }
  ASSERT_TRUE(WriteNpy(folder.File("f"), {100, 768}, std::vector<float>(76800)).ok());
  const std::string bytes = GetFile(folder.File("f"));
  EXPECT_EQ(bytes.size(), 128u + 76800 * 4);
  EXPECT_EQ(bytes.substr(0, 75),
            std::string("\x93NUMPY\x01\0\x76\0", 10) +
                "{'descr': '<f4', 'fortran_order': False, 'shape': (100, 768), }  ");
  EXPECT_EQ(bytes[127], '\n');
}

TEST(Npy, AcceptsPlainVariants) {
  EXPECT_EQ(ErrorOf(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", 8)),
            "no error");
  EXPECT_EQ(ErrorOf(Npy("{\"shape\":(1,2),\"descr\":\"<f8\",\"fortran_order\":False}", 16)),
            "no error");
  EXPECT_EQ(ErrorOf(Npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }\n", 8)),
            "no error");
  EXPECT_EQ(ErrorOf(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", 4, "\x02")),
            "no error");
}

TEST(Npy, RefusesEverythingElse) {
  const std::string good = Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", 8);
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_NE(ErrorOf(good.substr(0, size)), "no error") << size;
  }
  EXPECT_THAT(ErrorOf(good + "x"), HasSubstr("does not match"));
  EXPECT_THAT(ErrorOf("PK\x03\x04" + good), HasSubstr("not a .npy file"));
  EXPECT_THAT(ErrorOf(Npy("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", 8)),
              HasSubstr("expected '<f4' or '<f8', found '>f4'"));
  EXPECT_THAT(ErrorOf(Npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", 8)),
              HasSubstr("found '|O'"));
  EXPECT_THAT(ErrorOf(Npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", 16)),
              HasSubstr("Fortran"));
  std::string version = good;
  version[6] = 3;
  EXPECT_THAT(ErrorOf(version), HasSubstr("version"));
  for (const char* header :
       {"",
        "{",
        "{}",
        "x",
        "{'descr': '<f4'}",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x",
        "{'descr': '<f4' 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 2}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2.0,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,1,1,1,1,1,1,1,1)}",
        "{'descr': '<f4"}) {
    EXPECT_NE(ErrorOf(Npy(header, 8)), "no error") << header;
  }
}

TEST(Npy, WriterChecksTheShape) {
  TemporaryFolder folder;
  EXPECT_FALSE(WriteNpy(folder.File("f"), {2, 2}, std::vector<float>(3)).ok());
  EXPECT_FALSE(WriteNpy(folder.File("f"), {-1}, std::vector<float>(1)).ok());
  EXPECT_THAT(folder.List(), IsEmpty());
}

}  // namespace
}  // namespace permafrost
