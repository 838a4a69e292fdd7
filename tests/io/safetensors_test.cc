#include "io/safetensors.h"

#include <bit>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/bytes.h"
#include "tests/io/test_files.h"

namespace permafrost {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string WithHeader(std::string_view header, std::string_view data = "") {
  return Raw<uint64_t>(header.size()) + std::string(header) + std::string(data);
}

std::string ErrorOf(std::string_view bytes, const SafetensorsLimits& limits = {}) {
  const auto file = SafetensorsFile::Parse(AsBytes(bytes), "f", limits);
  return file.ok() ? "no error" : std::string(file.status().message());
}

std::string EntryOf(std::string_view name, std::string_view dtype, std::string_view shape,
                    std::string_view offsets) {
  return absl::StrCat("\"", std::string(name), "\":{\"dtype\":\"", std::string(dtype),
                      "\",\"shape\":", std::string(shape),
                      ",\"data_offsets\":", std::string(offsets), "}");
}

// A file whose header has these entries.
std::string WithEntries(const std::vector<std::string>& entries, std::string_view data) {
  return WithHeader(absl::StrCat("{", absl::StrJoin(entries, ","), "}"), data);
}

std::string OneTensor(std::string_view dtype, std::string_view shape, std::string_view offsets,
                      size_t data_bytes) {
  return WithEntries({EntryOf("t", dtype, shape, offsets)}, std::string(data_bytes, '\0'));
}

// The byte strings of the reference's own tests.
TEST(SafetensorsReference, RefusesBrokenFrames) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("too small"));
  EXPECT_THAT(ErrorOf(std::string(7, '\0')), HasSubstr("too small"));
  EXPECT_THAT(ErrorOf(Raw<uint64_t>(0x3c)), HasSubstr("invalid header length"));
  EXPECT_THAT(ErrorOf(Raw<uint64_t>(0xffffff000000003cu)), HasSubstr("header too large"));
  EXPECT_THAT(ErrorOf(WithHeader("\xff")), HasSubstr("JSON error"));
  EXPECT_THAT(ErrorOf(WithHeader("{")), HasSubstr("JSON error"));
  EXPECT_THAT(ErrorOf(WithHeader("")), HasSubstr("JSON error"));
  EXPECT_THAT(ErrorOf(Raw<uint64_t>(100'000'001) + "{}"), HasSubstr("header too large"));
  EXPECT_THAT(ErrorOf(Raw<uint64_t>(3) + "{}"), HasSubstr("invalid header length"));
}

TEST(SafetensorsReference, RefusesAliasesHolesAndOverlaps) {
  std::string header = "{";
  for (int i = 0; i < 10; ++i) {
    absl::StrAppend(&header, i > 0 ? "," : "",
                    EntryOf(absl::StrCat("t", i), "I32", "[2,2]", "[0,16]"));
  }
  EXPECT_THAT(ErrorOf(WithHeader(header + "}", std::string(16, '\0'))),
              HasSubstr("tensor 't1': invalid offsets"));
  EXPECT_THAT(ErrorOf(OneTensor("I32", "[1]", "[4,8]", 8)), HasSubstr("invalid offsets"));
  EXPECT_THAT(ErrorOf(OneTensor("I32", "[1]", "[4,0]", 8)), HasSubstr("invalid offsets"));
  EXPECT_THAT(
      ErrorOf(WithEntries({EntryOf("a", "U8", "[2]", "[0,2]"), EntryOf("b", "U8", "[2]", "[3,5]")},
                          "12345")),
      HasSubstr("tensor 'b': invalid offsets [3, 5]: expected begin 2"));
  EXPECT_THAT(
      ErrorOf(WithEntries({EntryOf("a", "U8", "[3]", "[0,3]"), EntryOf("b", "U8", "[3]", "[2,5]")},
                          "12345")),
      HasSubstr("tensor 'b': invalid offsets"));
}

TEST(SafetensorsReference, RefusesTrailingAndMissingBytes) {
  const std::string good = OneTensor("I32", "[2,2]", "[0,16]", 16);
  EXPECT_EQ(ErrorOf(good), "no error");
  EXPECT_THAT(ErrorOf(good + "extra"), HasSubstr("incomplete"));
  EXPECT_THAT(ErrorOf(good.substr(0, good.size() - 2)), HasSubstr("incomplete"));
}

TEST(SafetensorsReference, ChecksShapeAgainstBytes) {
  EXPECT_THAT(ErrorOf(OneTensor("I32", "[2,2]", "[0,4]", 4)), HasSubstr("invalid size"));
  EXPECT_THAT(ErrorOf(OneTensor("I32", "[2,18446744073709551614]", "[0,16]", 16)),
              HasSubstr("overflow"));
  EXPECT_THAT(ErrorOf(OneTensor("I32", "[2,9223372036854775807]", "[0,16]", 16)),
              HasSubstr("overflow"));
  EXPECT_THAT(ErrorOf(OneTensor("I32", "[4611686018427387904]", "[0,16]", 16)),
              HasSubstr("overflow"));
  EXPECT_THAT(ErrorOf(OneTensor("F4", "[1,3]", "[0,1]", 1)), HasSubstr("misaligned"));
  EXPECT_EQ(ErrorOf(OneTensor("F4", "[2,2]", "[0,2]", 2)), "no error");
  EXPECT_EQ(ErrorOf(OneTensor("F6_E2M3", "[4]", "[0,3]", 3)), "no error");
}

TEST(SafetensorsReference, AllowsEmptyTensorsScalarsAndWhitespace) {
  EXPECT_EQ(ErrorOf(OneTensor("I32", "[2,0]", "[0,0]", 0)), "no error");
  EXPECT_EQ(ErrorOf(OneTensor("I32", "[]", "[0,4]", 4)), "no error");
  EXPECT_EQ(ErrorOf(WithHeader("{}\r \t\n")), "no error");
  EXPECT_EQ(ErrorOf(WithHeader(" \n{}")), "no error");
  EXPECT_EQ(ErrorOf(WithHeader(R"({"t":{"dtype":"U8","more":[1,{"shape":[{}],"x":null}],)"
                               R"("shape":[1],"note":"x","data_offsets":[0,1],"n":-1.5}})",
                               "x")),
            "no error");
}

TEST(Safetensors, RefusesWrongTypesInTheHeader) {
  for (const char* header :
       {"[]",
        "1",
        "null",
        R"({"t":1})",
        R"({"t":[]})",
        R"({"t":"x"})",
        R"({"t":{"dtype":1,"shape":[1],"data_offsets":[0,1]}})",
        R"({"t":{"dtype":"F31","shape":[1],"data_offsets":[0,1]}})",
        R"({"t":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}})",
        R"({"t":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})",
        R"({"t":{"dtype":"U8","shape":{},"data_offsets":[0,1]}})",
        R"({"t":{"dtype":"U8","shape":null,"data_offsets":[0,1]}})",
        R"({"t":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})",
        R"({"t":{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}})",
        R"({"t":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}})",
        R"({"t":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})",
        R"({"t":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})",
        R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0]}})",
        R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})",
        R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1.5]}})",
        R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616]}})",
        R"({"t":{"shape":[1],"data_offsets":[0,1]}})",
        R"({"t":{"dtype":"U8","data_offsets":[0,1]}})",
        R"({"t":{"dtype":"U8","shape":[1]}})",
        R"({"__metadata__":1})",
        R"({"__metadata__":[]})",
        R"({"__metadata__":{"a":1}})",
        R"({"__metadata__":{"a":{}}})",
        R"({"__metadata__":{"a":["x"]}})",
        R"({"__metadata__":{"a":null}})"}) {
    EXPECT_NE(ErrorOf(WithHeader(header, "x")), "no error") << header;
  }
}

TEST(Safetensors, IsStricterThanTheReference) {
  const std::string t = EntryOf("t", "U8", "[1]", "[0,1]");
  EXPECT_THAT(ErrorOf(WithEntries({t, t}, "x")), HasSubstr("duplicate key"));
  EXPECT_THAT(ErrorOf(WithHeader(R"({"t":{"dtype":"U8","dtype":"U8","shape":[1],)"
                                 R"("data_offsets":[0,1]}})",
                                 "x")),
              HasSubstr("duplicate key"));
  EXPECT_THAT(ErrorOf(WithEntries({EntryOf("a\\u0000b", "U8", "[1]", "[0,1]")}, "x")),
              HasSubstr("control character"));
  EXPECT_THAT(ErrorOf(WithEntries({EntryOf("a\\nb", "U8", "[1]", "[0,1]")}, "x")),
              HasSubstr("control character"));
  EXPECT_EQ(ErrorOf(OneTensor("U8", "[1,1,1,1,1,1,1,1]", "[0,1]", 1)), "no error");
  EXPECT_THAT(ErrorOf(OneTensor("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]", 1)),
              HasSubstr("more than 8"));
  const std::string two =
      WithEntries({EntryOf("a", "U8", "[1]", "[0,1]"), EntryOf("b", "U8", "[1]", "[1,2]")}, "xy");
  EXPECT_EQ(ErrorOf(two), "no error");
  EXPECT_THAT(ErrorOf(two, {.max_tensors = 1}), HasSubstr("more than 1 tensors"));
  EXPECT_THAT(ErrorOf(WithHeader(R"({"t":{"x":)" + std::string(100, '['))),
              HasSubstr("deeper than 64"));
  EXPECT_THAT(ErrorOf(WithHeader("\xef\xbb\xbf{}")), HasSubstr("byte order mark"));
  EXPECT_THAT(ErrorOf(WithHeader(std::string_view("{}\0", 3))), HasSubstr("NUL"));
}

TEST(Safetensors, StopsTheAliasingAttack) {
  std::string header = "{";
  for (int i = 0; i < 20000; ++i) {
    absl::StrAppend(&header, i > 0 ? "," : "",
                    EntryOf(absl::StrCat(i), "F32", "[200,200]", "[0,160000]"));
  }
  EXPECT_THAT(ErrorOf(WithHeader(header + "}", std::string(160000, '\0'))),
              HasSubstr("invalid offsets"));
}

TEST(Safetensors, ReadsWhatPythonWrote) {
  const std::string path = PERMAFROST_GOLDEN "/gguf/python.safetensors";
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->metadata(),
              ElementsAre(std::pair<const std::string, std::string>("format", "pt")));
  EXPECT_EQ(file->tensors().size(), 11u);
  for (const char* name : {"f64", "f32", "f16"}) {
    const TensorView* tensor = file->Find(name);
    ASSERT_NE(tensor, nullptr);
    EXPECT_THAT(tensor->shape, ElementsAre(2, 3));
    std::vector<float> values(6);
    ASSERT_TRUE(ReadAsF32(*tensor, 0, absl::MakeSpan(values)).ok());
    const bool half = name[2] == '6' && name[1] == '1';
    EXPECT_EQ(values[0], 1.0f);
    EXPECT_EQ(values[1], -2.5f);
    EXPECT_EQ(values[2], half ? 0x1.998p-4f : 0.1f);
    EXPECT_EQ(values[3], half ? 0x1p-24f : 3e-8f);  // the smallest subnormal half
    EXPECT_EQ(values[4], 65504.0f);
    EXPECT_TRUE(values[5] == 0 && std::signbit(values[5]));
  }
  std::vector<float> one(1);
  ASSERT_TRUE(ReadAsF32(*file->Find("scalar"), 0, absl::MakeSpan(one)).ok());
  EXPECT_EQ(one[0], 4.0f);
  EXPECT_THAT(file->Find("empty")->shape, ElementsAre(2, 0));
  EXPECT_TRUE(ReadAsF32(*file->Find("empty"), 0, {}).ok());
  ASSERT_NE(file->Find("name \"with\" quotes/\xc3\xbc"), nullptr);
  EXPECT_EQ(file->Find("f3"), nullptr);
  EXPECT_THAT(ReadAsF32(*file->Find("i64"), 0, absl::MakeSpan(one)).message(),
              HasSubstr("tensor 'i64': expected type F64, F32, F16 or BF16, found I64"));
}

// What the reference wrote, written again by us, has the same bytes: same order, same header.
TEST(Safetensors, WritesWhatPythonWrites) {
  const std::string path = PERMAFROST_GOLDEN "/gguf/python.safetensors";
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  TemporaryFolder folder;
  ASSERT_TRUE(WriteSafetensors(folder.File("out"), file->tensors()).ok());
  EXPECT_EQ(GetFile(folder.File("out")), GetFile(path));
}

TEST(Safetensors, RoundTripsAnyTypeAndName) {
  TemporaryFolder folder;
  std::vector<TensorView> tensors;
  const std::string data(64, 'x');
  for (int i = 0; i <= static_cast<int>(FileDType::kU64); ++i) {
    const FileDType dtype = static_cast<FileDType>(i);
    EXPECT_EQ(FileDTypeFromName(FileDTypeName(dtype)), dtype);
    tensors.push_back({.name = absl::StrCat("t/\"", i, "\xe2\x82\xac"),
                       .dtype = dtype,
                       .shape = {2, 4},
                       .bytes = AsBytes(data).subspan(0, FileDTypeBits(dtype))});
  }
  const std::map<std::string, std::string> metadata = {{"k", "v \"\n"}, {"format", "np"}};
  ASSERT_TRUE(WriteSafetensors(folder.File("f"), tensors, metadata).ok());
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(folder.File("f"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->metadata(), metadata);
  ASSERT_EQ(file->tensors().size(), tensors.size());
  for (const TensorView& tensor : tensors) {
    const TensorView* read = file->Find(tensor.name);
    ASSERT_NE(read, nullptr) << tensor.name;
    EXPECT_EQ(read->dtype, tensor.dtype);
    EXPECT_EQ(read->shape, tensor.shape);
    EXPECT_EQ(read->bytes.size(), tensor.bytes.size());
    const size_t width = FileDTypeBits(tensor.dtype) / 8;
    if (width > 0) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(read->bytes.data()) % width, 0u);
    }
  }
}

TEST(Safetensors, EmptyFileOfTensors) {
  TemporaryFolder folder;
  ASSERT_TRUE(WriteSafetensors(folder.File("f"), {}).ok());
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(folder.File("f"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->tensors(), IsEmpty());
  EXPECT_EQ(ErrorOf(std::string("\x08\0\0\0\0\0\0\0{}      ", 16)), "no error");
}

TEST(Safetensors, WriterRefusesBadTensorsAndLeavesNothing) {
  TemporaryFolder folder;
  const std::vector<float> values(6);
  const auto error = [&](std::vector<TensorView> tensors) {
    return std::string(WriteSafetensors(folder.File("f"), tensors).message());
  };
  EXPECT_THAT(error({F32View("a", {2, 2}, values)}), HasSubstr("takes 16 bytes, 24 are given"));
  EXPECT_THAT(error({F32View("a", {6}, values), F32View("a", {6}, values)}), HasSubstr("twice"));
  EXPECT_THAT(error({F32View("", {6}, values)}), HasSubstr("name"));
  EXPECT_THAT(error({F32View("__metadata__", {6}, values)}), HasSubstr("name"));
  EXPECT_THAT(error({F32View("a\n", {6}, values)}), HasSubstr("name"));
  EXPECT_THAT(error({F32View("a", {-6}, values)}), HasSubstr("overflow"));
  EXPECT_THAT(folder.List(), IsEmpty());
  EXPECT_THAT(WriteSafetensors(folder.File("no/f"), {}).message(), HasSubstr("No such file"));
}

TEST(ReadAsF32, ReadsRangesAtAnyAlignment) {
  std::vector<float> values(100);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0.5f * static_cast<float>(i) - 7;
  std::string bytes = "x";  // odd address
  bytes.append(reinterpret_cast<const char*>(values.data()), 400);
  const TensorView tensor{"t", FileDType::kF32, {10, 10}, AsBytes(bytes).subspan(1)};
  std::vector<float> out(30);
  ASSERT_TRUE(ReadAsF32(tensor, 70, absl::MakeSpan(out)).ok());
  for (int i = 0; i < 30; ++i) EXPECT_EQ(out[i], values[70 + i]);
  EXPECT_FALSE(ReadAsF32(tensor, 71, absl::MakeSpan(out)).ok());
  EXPECT_FALSE(ReadAsF32(tensor, -1, absl::MakeSpan(out)).ok());
  EXPECT_FALSE(ReadAsF32(tensor, std::numeric_limits<int64_t>::max(), absl::MakeSpan(out)).ok());
  EXPECT_TRUE(ReadAsF32(tensor, 100, {}).ok());
}

// The definition of IEEE half for every bit pattern.
TEST(HalfToFloat, EqualsTheDefinition) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    const float value = HalfToFloat(static_cast<uint16_t>(bits));
    EXPECT_EQ(std::signbit(value), bits >= 32768) << bits;
    if (exponent == 31) {
      EXPECT_EQ(std::isinf(value), mantissa == 0) << bits;
      EXPECT_EQ(std::isnan(value), mantissa != 0) << bits;
    } else {
      const double magnitude =
          exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
      EXPECT_EQ(std::abs(value), static_cast<float>(magnitude)) << bits;
    }
  }
}

TEST(Bfloat16ToFloat, IsTheUpperHalf) {
  for (const float value : {1.0f, -2.5f, 0x1p-133f, std::numeric_limits<float>::infinity()}) {
    const uint16_t bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
    EXPECT_EQ(Bfloat16ToFloat(bits), value);
  }
  EXPECT_TRUE(std::isnan(Bfloat16ToFloat(0x7fc0)));
}

}  // namespace
}  // namespace permafrost
