#include "io/gguf.h"

#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/safetensors.h"
#include "tests/io/test_files.h"

namespace permafrost {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kSmall[] = PERMAFROST_GOLDEN "/gguf/small.gguf";

std::string Str(std::string_view text) { return Raw<uint64_t>(text.size()) + std::string(text); }

// A key-value pair and a tensor info as they lie in a file.
std::string Pair(std::string_view key, uint32_t type, std::string_view value) {
  return Str(key) + Raw(type) + std::string(value);
}
std::string Info(std::string_view name, std::vector<int64_t> dims, uint32_t type, uint64_t offset) {
  std::string bytes = Str(name) + Raw<uint32_t>(dims.size());
  for (const int64_t size : dims) bytes += Raw(size);
  return bytes + Raw(type) + Raw(offset);
}

struct FileParts {
  uint32_t version = 3;
  std::vector<std::string> pairs;
  std::vector<std::string> infos;
  size_t data_bytes = 0;
  size_t alignment = 32;
};

std::string Build(const FileParts& parts) {
  std::string bytes = "GGUF" + Raw(parts.version) + Raw<int64_t>(parts.infos.size()) +
                      Raw<int64_t>(parts.pairs.size());
  for (const std::string& pair : parts.pairs) bytes += pair;
  for (const std::string& info : parts.infos) bytes += info;
  bytes.resize((bytes.size() + parts.alignment - 1) / parts.alignment * parts.alignment, '\0');
  return bytes + std::string(parts.data_bytes, '\1');
}

std::string ErrorOf(std::string_view bytes) {
  const auto file = GgufFile::Parse(AsBytes(bytes), "f");
  return file.ok() ? "no error" : std::string(file.status().message());
}

void ExpectSameBits(absl::Span<const float> got, absl::Span<const float> expected,
                    std::string_view what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(expected[i]))
        << what << " element " << i << ": " << got[i] << " instead of " << expected[i];
  }
}

TEST(Dequantize, EveryTypeEqualsThePythonPackageBitForBit) {
  absl::StatusOr<SafetensorsFile> golden =
      SafetensorsFile::Open(PERMAFROST_GOLDEN "/gguf/dequantize.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  int tested = 0;
  for (const GgmlType& type : GgmlTypes()) {
    if (type.dequantize == nullptr || type.name == "F32") continue;
    const TensorView* blocks = golden->Find(std::string(type.name) + ".blocks");
    const TensorView* values = golden->Find(std::string(type.name) + ".values");
    ASSERT_TRUE(blocks != nullptr && values != nullptr) << type.name;
    const int64_t count = blocks->num_elements() / type.block_bytes;
    ASSERT_EQ(count * type.block_elements, values->num_elements());
    std::vector<float> expected(values->num_elements()), got(expected.size());
    ASSERT_TRUE(ReadAsF32(*values, 0, absl::MakeSpan(expected)).ok());
    // From an odd address: blocks in files have no alignment.
    std::vector<std::byte> shifted(blocks->bytes.size() + 1);
    std::copy(blocks->bytes.begin(), blocks->bytes.end(), shifted.begin() + 1);
    type.dequantize(shifted.data() + 1, count, got.data());
    ExpectSameBits(got, expected, type.name);
    ++tested;
  }
  EXPECT_EQ(tested, 10);
}

TEST(Gguf, ReadsTensorsThatPythonWrote) {
  absl::StatusOr<GgufFile> file = GgufFile::Open(kSmall);
  ASSERT_TRUE(file.ok()) << file.status();
  absl::StatusOr<SafetensorsFile> golden =
      SafetensorsFile::Open(PERMAFROST_GOLDEN "/gguf/small.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  EXPECT_EQ(file->version(), 3u);
  ASSERT_EQ(file->tensors().size(), golden->tensors().size());
  for (const TensorView& expected : golden->tensors()) {
    const GgufTensor* tensor = file->Find(expected.name);
    ASSERT_NE(tensor, nullptr) << expected.name;
    EXPECT_EQ(tensor->shape, expected.shape);
    std::vector<float> want(expected.num_elements()), got(want.size());
    ASSERT_TRUE(ReadAsF32(expected, 0, absl::MakeSpan(want)).ok());
    ASSERT_TRUE(ReadAsF32(*tensor, 0, absl::MakeSpan(got)).ok());
    ExpectSameBits(got, want, expected.name);
    // The second row alone.
    const int64_t width = tensor->shape[1];
    std::vector<float> row(width);
    ASSERT_TRUE(ReadAsF32(*tensor, width, absl::MakeSpan(row)).ok());
    ExpectSameBits(row, absl::MakeSpan(want).subspan(width, width), expected.name);
  }
  EXPECT_EQ(file->Find("blk.0.f64.weight"), nullptr);
}

TEST(Gguf, RefusesRangesInsideOfBlocksAndOutside) {
  absl::StatusOr<GgufFile> file = GgufFile::Open(kSmall);
  ASSERT_TRUE(file.ok()) << file.status();
  const GgufTensor& tensor = *file->Find("blk.0.q4_0.weight");
  std::vector<float> out(32);
  EXPECT_TRUE(ReadAsF32(tensor, 160, absl::MakeSpan(out)).ok());
  EXPECT_TRUE(ReadAsF32(tensor, 192, {}).ok());
  for (const int64_t first : {-32, 1, 16, 192, 1 << 30}) {
    EXPECT_THAT(ReadAsF32(tensor, first, absl::MakeSpan(out)).message(), HasSubstr("blocks of 32"));
  }
  EXPECT_FALSE(ReadAsF32(tensor, 0, absl::MakeSpan(out).subspan(1)).ok());
}

TEST(Gguf, ReadsMetadataOfEveryType) {
  absl::StatusOr<GgufFile> file = GgufFile::Open(kSmall);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*file->String("general.architecture"), "llama");
  EXPECT_EQ(*file->Int("llama.block_count"), 2);
  EXPECT_EQ(*file->Int("test.u64"), int64_t{1} << 40);
  EXPECT_EQ(*file->Int("test.i32"), -7);
  EXPECT_EQ(*file->Int("test.u8"), 200);
  EXPECT_EQ(*file->Float("test.f32"), static_cast<double>(0.1f));
  EXPECT_EQ(*file->Float("test.f64"), 0.1);
  EXPECT_TRUE(*file->Bool("test.true"));
  EXPECT_FALSE(*file->Bool("test.false"));
  EXPECT_EQ(*file->String("test.text"), "W\xc3\xa4rme\n");
  EXPECT_THAT(*file->StringArray("test.strings"), ElementsAre("a", "", "\xc3\x9f"));
  EXPECT_THAT(*file->FloatArray("test.floats"), ElementsAre(0.5, -1.25));
  EXPECT_THAT(*file->IntArray("test.ints"), ElementsAre(1, -2, 3));
}

TEST(Gguf, GettersNameKeyExpectedAndFound) {
  absl::StatusOr<GgufFile> file = GgufFile::Open(kSmall);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*file->IntOr("none", 5), 5);
  EXPECT_EQ(*file->FloatOr("none", 0.5), 0.5);
  EXPECT_TRUE(*file->BoolOr("none", true));
  EXPECT_EQ(*file->StringOr("none", "x"), "x");
  EXPECT_EQ(*file->IntOr("test.u8", 5), 200);
  EXPECT_THAT(file->Int("none").status().message(), HasSubstr("key 'none'"));
  EXPECT_THAT(file->Int("none").status().message(), HasSubstr("found no such key"));
  EXPECT_THAT(file->IntOr("test.text", 1).status().message(),
              HasSubstr("'test.text': expected integer that fits i64, found string"));
  EXPECT_THAT(file->String("test.ints").status().message(), HasSubstr("found array of 3 i32"));
  EXPECT_THAT(file->StringArray("test.ints").status().message(),
              HasSubstr("expected array of string, found array of 3 i32"));
  EXPECT_FALSE(file->Float("test.i32").ok());
  EXPECT_FALSE(file->Bool("test.u8").ok());
  EXPECT_FALSE(file->IntArray("test.i32").ok());
}

TEST(Gguf, ReadsStories260K) {
  absl::StatusOr<GgufFile> file =
      GgufFile::Open(PERMAFROST_SOURCE_DIR "/tests/data/stories260k/stories260K.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), 48u);
  EXPECT_EQ(*file->String("general.architecture"), "llama");
  EXPECT_EQ(*file->Int("llama.attention.head_count_kv"), 4);
  const std::vector<std::string> tokens = *file->StringArray("tokenizer.ggml.tokens");
  ASSERT_EQ(tokens.size(), 512u);
  EXPECT_EQ(tokens[0], "<unk>");
  EXPECT_EQ(file->FloatArray("tokenizer.ggml.scores")->size(), 512u);
  EXPECT_EQ(file->IntArray("tokenizer.ggml.token_type")->at(1), 3);
  const GgufTensor* key = file->Find("blk.0.attn_k.weight");
  ASSERT_NE(key, nullptr);
  EXPECT_THAT(key->shape, ElementsAre(32, 64));
  std::vector<float> values(3);
  ASSERT_TRUE(ReadAsF32(*key, 0, absl::MakeSpan(values)).ok());
  // As the Python package prints them.
  EXPECT_NEAR(values[0], 0.21613011, 1e-8);
  EXPECT_NEAR(values[2], -0.2169893, 1e-7);
}

TEST(GgufAttacks, Header) {
  const std::string good = Build({});
  EXPECT_EQ(ErrorOf(good), "no error");
  EXPECT_EQ(ErrorOf(Build({.version = 2, .pairs = {}, .infos = {}})), "no error");
  EXPECT_THAT(ErrorOf(""), HasSubstr("not a GGUF file"));
  EXPECT_THAT(ErrorOf(good.substr(0, 20)), HasSubstr("not a GGUF file"));
  EXPECT_THAT(ErrorOf("X" + good.substr(1)), HasSubstr("not a GGUF file"));
  for (const uint32_t version : {0u, 1u, 4u, 0x03000000u}) {
    EXPECT_NE(ErrorOf(Build({.version = version, .pairs = {}, .infos = {}})), "no error");
  }
  EXPECT_THAT(ErrorOf(Build({.version = 0x03000000u, .pairs = {}, .infos = {}})),
              HasSubstr("big-endian"));
  for (const int64_t count : {int64_t{-1}, int64_t{1}, int64_t{1} << 40, INT64_MAX, INT64_MIN}) {
    std::string bytes = good;
    bytes.replace(8, 8, Raw(count));
    EXPECT_THAT(ErrorOf(bytes), HasSubstr("tensors")) << count;
    bytes = good;
    bytes.replace(16, 8, Raw(count));
    EXPECT_THAT(ErrorOf(bytes), HasSubstr("keys")) << count;
  }
}

TEST(GgufAttacks, Metadata) {
  const auto error = [](std::vector<std::string> pairs) {
    pairs.push_back(Pair("z.padding", 8, Str(std::string(100, 'x'))));
    return ErrorOf(Build({.pairs = std::move(pairs), .infos = {}}));
  };
  EXPECT_EQ(error({Pair("a", 4, Raw(1u))}), "no error");
  EXPECT_THAT(error({Pair("", 4, Raw(1u))}), HasSubstr("empty key"));
  EXPECT_THAT(error({Pair("a", 4, Raw(1u)), Pair("a", 4, Raw(1u))}),
              HasSubstr("duplicate key 'a'"));
  EXPECT_THAT(error({Pair("a", 13, Raw(1u))}), HasSubstr("unknown value type 13"));
  EXPECT_THAT(error({Pair("a", 8, Raw(uint64_t{1} << 20) + "x")}), HasSubstr("claims"));
  EXPECT_THAT(error({Pair("a", 8, Raw(UINT64_MAX))}), HasSubstr("claims"));
  const auto array = [](uint32_t type, uint64_t count, std::string_view bytes) {
    return Pair("a", 9, Raw(type) + Raw(count) + std::string(bytes));
  };
  EXPECT_EQ(error({array(4, 2, Raw(1u) + Raw(2u))}), "no error");
  EXPECT_EQ(error({array(8, 0, "")}), "no error");
  EXPECT_THAT(error({array(9, 1, array(4, 1, Raw(1u)))}), HasSubstr("nested arrays"));
  EXPECT_THAT(error({array(99, 1, "x")}), HasSubstr("unknown value type 99"));
  for (const uint64_t count : {uint64_t{1000}, uint64_t{1} << 31, uint64_t{1} << 61, UINT64_MAX}) {
    for (const uint32_t type : {0u, 4u, 8u, 10u}) {
      EXPECT_THAT(error({array(type, count, "")}), HasSubstr("claims")) << type << " " << count;
    }
  }
  EXPECT_THAT(error({array(8, 2, Str("a") + Raw(UINT64_MAX))}), HasSubstr("claims"));
  for (const uint32_t alignment : {0u, 3u, 48u}) {
    EXPECT_THAT(error({Pair("general.alignment", 4, Raw(alignment))}), HasSubstr("power of two"));
  }
  EXPECT_THAT(error({Pair("general.alignment", 10, Raw(uint64_t{32}))}), HasSubstr("expected u32"));
}

TEST(GgufAttacks, Tensors) {
  const auto error = [](std::vector<std::string> infos, size_t data_bytes) {
    return ErrorOf(Build({.pairs = {}, .infos = std::move(infos), .data_bytes = data_bytes}));
  };
  EXPECT_EQ(error({Info("a", {4, 2}, 0, 0), Info("b", {32}, 2, 32)}, 50), "no error");
  EXPECT_EQ(error({Info("a", {}, 0, 0)}, 4), "no error");
  EXPECT_EQ(error({Info("a", {4, 0}, 0, 0), Info("b", {1}, 0, 0)}, 4), "no error");
  EXPECT_THAT(error({Info("a", {4, 2}, 0, 0), Info("b", {32}, 2, 32)}, 49), HasSubstr("cut off"));
  EXPECT_THAT(error({Info("a", {4, 2}, 0, 0), Info("a", {32}, 2, 32)}, 50),
              HasSubstr("duplicate tensor 'a'"));
  EXPECT_THAT(error({Info("", {4}, 0, 0)}, 16), HasSubstr("tensor name"));
  EXPECT_EQ(error({Info(std::string(63, 'n'), {4}, 0, 0)}, 16), "no error");
  EXPECT_THAT(error({Info(std::string(64, 'n'), {4}, 0, 0)}, 16), HasSubstr("tensor name"));
  EXPECT_THAT(error({Info("a\nb", {4}, 0, 0)}, 16), HasSubstr("tensor name"));
  EXPECT_THAT(error({Info("a", {1, 1, 1, 1, 1}, 0, 0)}, 4), HasSubstr("5 dimensions"));
  EXPECT_THAT(error({Info("a", {-4}, 0, 0)}, 16), HasSubstr("out of range"));
  EXPECT_THAT(error({Info("a", {INT64_MAX, 2}, 0, 0)}, 16), HasSubstr("out of range"));
  EXPECT_THAT(error({Info("a", {int64_t{1} << 62}, 0, 0)}, 16), HasSubstr("out of range"));
  EXPECT_THAT(error({Info("a", {int64_t{1} << 40}, 0, 0)}, 16), HasSubstr("cut off"));
  EXPECT_THAT(error({Info("a", {33}, 2, 0)}, 99), HasSubstr("multiple of 32"));
  EXPECT_THAT(error({Info("a", {32, 8}, 12, 0)}, 999), HasSubstr("multiple of 256"));
  for (const uint32_t type : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u, 1000u}) {
    EXPECT_THAT(error({Info("a", {256}, type, 0)}, 999), HasSubstr("unknown type")) << type;
  }
  EXPECT_THAT(error({Info("a", {4}, 0, 32)}, 99), HasSubstr("offset 32, expected 0"));
  EXPECT_THAT(error({Info("a", {4}, 0, 0), Info("b", {4}, 0, 16)}, 99),
              HasSubstr("offset 16, expected 32"));
  EXPECT_THAT(error({Info("a", {4}, 0, 0), Info("b", {4}, 0, 64)}, 99),
              HasSubstr("offset 64, expected 32"));
  const std::string whole = Build({.pairs = {}, .infos = {Info("a", {4}, 0, 0)}, .data_bytes = 16});
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(ErrorOf(whole.substr(0, size)), "no error") << size;
  }
}

TEST(GgufAttacks, TypesWithoutDequantizationAreListedButNotRead) {
  const std::string bytes =
      Build({.pairs = {}, .infos = {Info("a", {256}, 10, 0)}, .data_bytes = 84});
  absl::StatusOr<GgufFile> file = GgufFile::Parse(AsBytes(bytes), "f");
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<float> out(256);
  EXPECT_THAT(ReadAsF32(file->tensors()[0], 0, absl::MakeSpan(out)).message(),
              HasSubstr("type Q2_K is not supported"));
}

TEST(Gguf, OwnAlignmentMovesTheData) {
  const std::string bytes = Build({.pairs = {Pair("general.alignment", 4, Raw(8u))},
                                   .infos = {Info("a", {1}, 0, 0), Info("b", {1}, 0, 8)},
                                   .data_bytes = 12,
                                   .alignment = 8});
  EXPECT_EQ(ErrorOf(bytes), "no error");
}

}  // namespace
}  // namespace permafrost
