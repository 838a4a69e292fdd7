#include "io/tensor_store.h"

#include <filesystem>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/json.h"
#include "nlohmann/json.hpp"
#include "tests/io/test_files.h"

namespace permafrost {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kGguf[] = PERMAFROST_GOLDEN "/gguf/small.gguf";

// Folders with model.safetensors or two shards that hold a.x [2, 3], b.y [4], c.z [1].
class Store : public testing::Test {
 protected:
  void WriteFile(const std::string& name, std::vector<TensorView> tensors) {
    ASSERT_TRUE(WriteSafetensors(folder_.File(name), tensors).ok());
  }
  void WriteIndex(const nlohmann::json& map) {
    PutFile(folder_.File("model.safetensors.index.json"),
            DumpJson({{"metadata", {{"total_size", 44}}}, {"weight_map", map}}));
  }
  void WriteShards() {
    WriteFile("model-1.safetensors", {c_, a_});
    WriteFile("model-2.safetensors", {b_});
    WriteIndex(map_);
  }
  std::string Error() {
    absl::StatusOr<TensorStore> store = TensorStore::Open(folder_.path());
    return store.ok() ? "no error" : std::string(store.status().message());
  }

  TemporaryFolder folder_;
  std::vector<float> values_ = {0, 1, 2, 3, 4, 5};
  TensorView a_ = F32View("a.x", {2, 3}, values_);
  TensorView b_ = F32View("b.y", {4}, absl::MakeSpan(values_).subspan(1, 4));
  TensorView c_ = F32View("c.z", {1}, absl::MakeSpan(values_).subspan(5, 1));
  nlohmann::json map_ = {{"a.x", "model-1.safetensors"},
                         {"b.y", "model-2.safetensors"},
                         {"c.z", "model-1.safetensors"}};
};

void ExpectContent(const TensorStore& store) {
  EXPECT_THAT(store.names(), ElementsAre("a.x", "b.y", "c.z"));
  ASSERT_TRUE(store.Find("a.x").has_value());
  EXPECT_THAT(store.Find("a.x")->shape, ElementsAre(2, 3));
  EXPECT_EQ(store.Find("a.x")->dtype, "F32");
  EXPECT_FALSE(store.Find("a").has_value());
  std::vector<float> out(3);
  ASSERT_TRUE(store.ReadF32("a.x", 3, absl::MakeSpan(out)).ok());
  EXPECT_THAT(out, ElementsAre(3, 4, 5));
  store.DropPages();
  ASSERT_TRUE(store.ReadF32("b.y", 1, absl::MakeSpan(out)).ok());
  EXPECT_THAT(out, ElementsAre(2, 3, 4));
  EXPECT_THAT(store.ReadF32("b.y", 2, absl::MakeSpan(out)).message(), HasSubstr("'b.y'"));
  EXPECT_THAT(store.ReadF32("nope", 0, absl::MakeSpan(out)).message(),
              HasSubstr("no tensor 'nope'"));
  EXPECT_EQ(store.gguf(), nullptr);
}

TEST_F(Store, OpensFoldersShardsAndFiles) {
  WriteShards();
  absl::StatusOr<TensorStore> shards = TensorStore::Open(folder_.path());
  ASSERT_TRUE(shards.ok()) << shards.status();
  ExpectContent(*shards);
  EXPECT_EQ(shards->source(), folder_.path());
  absl::StatusOr<TensorStore> index =
      TensorStore::Open(folder_.File("model.safetensors.index.json"));
  ASSERT_TRUE(index.ok()) << index.status();
  ExpectContent(*index);

  WriteFile("model.safetensors", {a_, b_, c_});
  absl::StatusOr<TensorStore> folder = TensorStore::Open(folder_.path() + "/");
  ASSERT_TRUE(folder.ok()) << folder.status();
  ExpectContent(*folder);
  absl::StatusOr<TensorStore> file = TensorStore::Open(folder_.File("model.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  const TensorStore moved = *std::move(file);
  ExpectContent(moved);
  // The same tensors, however they are stored.
  EXPECT_EQ(shards->bytes_hash(), moved.bytes_hash());
}

TEST_F(Store, HashSeesNamesShapesAndContents) {
  const auto hash = [&](std::vector<TensorView> tensors) {
    WriteFile("model.safetensors", std::move(tensors));
    return TensorStore::Open(folder_.path())->bytes_hash();
  };
  const uint64_t base = hash({a_, b_});
  EXPECT_EQ(hash({b_, a_}), base);
  EXPECT_NE(hash({a_}), base);
  EXPECT_NE(hash({F32View("a.w", {2, 3}, values_), b_}), base);
  EXPECT_NE(hash({F32View("a.x", {3, 2}, values_), b_}), base);
  std::vector<float> other = values_;
  other[5] = 6;
  EXPECT_NE(hash({F32View("a.x", {2, 3}, other), b_}), base);
  // Large tensors are sampled; the last element is among the samples.
  std::vector<float> large(100000, 1.0f);
  const uint64_t before = hash({F32View("l", {100000}, large)});
  large.back() = 2;
  EXPECT_NE(hash({F32View("l", {100000}, large)}), before);
}

TEST_F(Store, OpensGguf) {
  std::filesystem::copy_file(kGguf, folder_.File("without_suffix"));
  for (const std::string& path : {std::string(kGguf), folder_.File("without_suffix")}) {
    absl::StatusOr<TensorStore> store = TensorStore::Open(path);
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_NE(store->gguf(), nullptr);
    EXPECT_EQ(*store->gguf()->Int("llama.block_count"), 2);
    ASSERT_TRUE(store->Find("blk.0.q4_1.weight").has_value());
    EXPECT_EQ(store->Find("blk.0.q4_1.weight")->dtype, "Q4_1");
    EXPECT_THAT(store->Find("blk.0.q4_1.weight")->shape, ElementsAre(3, 64));
    std::vector<float> out(64);
    EXPECT_TRUE(store->ReadF32("blk.0.q4_1.weight", 64, absl::MakeSpan(out)).ok());
    EXPECT_THAT(store->ReadF32("blk.0.q4_1.weight", 1, absl::MakeSpan(out)).message(),
                HasSubstr(path));
    EXPECT_NE(store->bytes_hash(), 0u);
    store->DropPages();
  }
}

TEST_F(Store, SaysWhatIsMissing) {
  EXPECT_THAT(Error(), HasSubstr("expected model.safetensors or model.safetensors.index.json"));
  PutFile(folder_.File("pytorch_model.bin"), "PK");
  EXPECT_THAT(Error(), HasSubstr("refused"));
  EXPECT_THAT(TensorStore::Open(folder_.File("pytorch_model.bin")).status().message(),
              HasSubstr("refused"));
  EXPECT_THAT(TensorStore::Open(folder_.File("none")).status().message(),
              HasSubstr("No such file"));
  PutFile(folder_.File("model.safetensors"), "x");
  EXPECT_THAT(Error(), HasSubstr(folder_.File("model.safetensors")));
}

TEST_F(Store, RefusesEscapingShardNames) {
  WriteShards();
  for (const char* name : {"../model-1.safetensors", "/etc/passwd", "a/b", "a\\b", "..", ".", ""}) {
    nlohmann::json map = map_;
    map["c.z"] = name;
    WriteIndex(map);
    EXPECT_THAT(Error(), HasSubstr("'c.z': expected a plain file name")) << name;
  }
  nlohmann::json map = map_;
  map["c.z"] = 7;
  WriteIndex(map);
  EXPECT_THAT(Error(), HasSubstr("expected a plain file name, found 7"));
}

TEST_F(Store, ChecksTheMapAgainstTheShards) {
  WriteShards();
  nlohmann::json map = map_;
  map["c.z"] = "model-3.safetensors";
  WriteIndex(map);
  EXPECT_THAT(Error(), HasSubstr("model-3.safetensors"));
  map["c.z"] = "model-2.safetensors";
  WriteIndex(map);
  EXPECT_THAT(Error(), HasSubstr("tensor 'c.z' is not in"));
  map.erase("c.z");
  WriteIndex(map);
  EXPECT_THAT(Error(), HasSubstr("tensor 'c.z' is not in the weight_map"));
  WriteIndex(map_);
  EXPECT_EQ(Error(), "no error");
  WriteFile("model-2.safetensors", {b_, c_});
  EXPECT_THAT(Error(), HasSubstr("tensor 'c.z' is in another shard"));
  PutFile(folder_.File("model-2.safetensors"), "short");
  EXPECT_THAT(Error(), HasSubstr("model-2.safetensors: too small"));
  for (const char* index : {"{}", "[]", "{\"weight_map\": []}", "{\"weight_map\": null}"}) {
    PutFile(folder_.File("model.safetensors.index.json"), index);
    EXPECT_THAT(Error(), HasSubstr("\"weight_map\": expected an object")) << index;
  }
}

}  // namespace
}  // namespace permafrost
