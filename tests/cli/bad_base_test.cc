// Bases that a stranger damaged: files that are cut off or lie, configs that the engine does not
// implement, tensors that do not match. Each is one line that names the place, and exit status 1.
#include <cmath>
#include <limits>

#include "tests/cli/command_test_util.h"
#include "tests/cli/safetensors_edit.h"

namespace permafrost {
namespace {

constexpr char kWeights[] = "base/model.safetensors";
constexpr char kNorm[] = "model.norm.weight";

class BadBase : public CommandTest {
 protected:
  void SetUp() override {
    CommandTest::SetUp();
    data_ = GoodLine();
    Fresh("llama-1");
  }
  void Fresh(const std::string& model) {
    std::filesystem::create_directories(Path("base"));
    for (const char* name : {"config.json", "model.safetensors"}) {
      std::filesystem::copy_file(GoldenModel(model) + "/" + name, Path("base/") + name,
                                 std::filesystem::copy_options::overwrite_existing);
    }
    raw_ = RawSafetensors::Read(Path(kWeights));
    config_ = nlohmann::json::parse(Read("base/config.json"));
  }
  void Expect(const std::vector<std::string>& parts) const {
    ExpectBad(Forward(Path("base"), data_), parts);
    EXPECT_FALSE(Exists("out.safetensors"));
  }
  void ExpectWeights(const std::string& bytes, const std::vector<std::string>& parts) const {
    Write(kWeights, bytes);
    Expect(parts);
  }
  // The config with `field` at another value.
  void ExpectConfig(const std::string& field, const nlohmann::json& value,
                    std::vector<std::string> parts) const {
    nlohmann::json changed = config_;
    changed[field] = value;
    Write("base/config.json", changed.dump());
    parts.push_back("config.json");
    Expect(parts);
  }

  std::string data_;
  RawSafetensors raw_;
  nlohmann::json config_;
};

TEST_F(BadBase, NothingThere) {
  ExpectBad(Forward(Path("nowhere"), data_), {"nowhere", "No such file"});
  std::filesystem::remove(Path(kWeights));
  Expect({"base", "expected model.safetensors"});
  Write("base/pytorch_model.bin", "x");
  Expect({"pytorch_model.bin", "pickled"});
}

TEST_F(BadBase, TruncatedSafetensors) {
  const std::string whole = Read(kWeights);
  for (const size_t size : {size_t{0}, size_t{7}, size_t{8}, size_t{100}, whole.size() - 5}) {
    SCOPED_TRACE(size);
    ExpectWeights(whole.substr(0, size), {"model.safetensors"});
  }
  ExpectWeights(whole + "more", {"model.safetensors", "header covers"});
}

TEST_F(BadBase, LyingSafetensors) {
  ExpectWeights(raw_.WithLength(1u << 30), {"model.safetensors", "header"});
  ExpectWeights(raw_.WithLength(~uint64_t{0}), {"model.safetensors", "header"});
  ExpectWeights(raw_.WithLength(raw_.header.dump().size() + raw_.data.size() + 1),
                {"model.safetensors", "invalid header length", "cut off"});
  ExpectWeights(raw_.WithLength(raw_.header.dump().size() - 1), {"model.safetensors", "JSON"});

  const auto change = [&](const char* field, const nlohmann::json& value,
                          const std::vector<std::string>& parts) {
    RawSafetensors lie = raw_;
    lie.header[kNorm][field] = value;
    std::vector<std::string> all = {"model.safetensors"};
    all.insert(all.end(), parts.begin(), parts.end());
    ExpectWeights(lie.Bytes(), all);
  };
  const size_t begin = raw_.Begin(kNorm), size = raw_.data.size();
  change("data_offsets", {size, size + 120}, {kNorm, "expected begin"});
  change("data_offsets", {begin, begin + 116}, {kNorm, "invalid size"});
  change("data_offsets", {begin - 4, begin + 116}, {"overlap"});
  change("data_offsets", {begin + 4, begin + 124}, {kNorm, "overlap"});
  change("data_offsets", {begin + 120, begin}, {kNorm, "invalid offsets"});
  change("data_offsets", {-4, 116}, {kNorm, "negative"});
  change("data_offsets", {begin}, {kNorm, "expected 2 numbers"});
  change("dtype", "F16", {kNorm, "F16", "takes 60 bytes"});
  change("dtype", "F99", {kNorm, "F99"});
  change("shape", {int64_t{1} << 40, int64_t{1} << 40}, {kNorm, "overflow"});
  change("shape", "thirty", {kNorm, "shape"});
  RawSafetensors longer = raw_;
  longer.Add("model.zzz.weight", 3);
  longer.data.resize(longer.data.size() - 4);
  ExpectWeights(longer.Bytes(), {"model.zzz.weight", "data_offsets end at", "incomplete file"});
}

TEST_F(BadBase, DamagedIndex) {
  std::filesystem::rename(Path(kWeights), Path("base/a.safetensors"));
  const std::string index = "base/model.safetensors.index.json";
  const auto expect = [&](const std::string& text, const std::vector<std::string>& parts) {
    Write(index, text);
    Expect(parts);
  };
  nlohmann::json map;
  for (const auto& [name, tensor] : raw_.header.items()) {
    if (name != "__metadata__") map[name] = "a.safetensors";
  }
  const auto whole = [](const nlohmann::json& m) {
    return nlohmann::json{{"weight_map", m}}.dump();
  };
  Write(index, whole(map));
  EXPECT_EQ(Run(Forward(Path("base"), data_)).status, 0);
  std::filesystem::remove(Path("out.safetensors"));

  expect(whole(map).substr(0, 40), {"index.json", "JSON error"});
  expect("{}", {"index.json", "weight_map"});
  expect(whole({{kNorm, 3}}), {"index.json"});
  nlohmann::json changed = map;
  changed[kNorm] = "b.safetensors";
  expect(whole(changed), {"b.safetensors"});
  changed[kNorm] = "../base/a.safetensors";
  expect(whole(changed), {"index.json", "../base"});
  changed = map;
  changed.erase(kNorm);
  expect(whole(changed), {kNorm});
  changed = map;
  changed["model.nose.weight"] = "a.safetensors";
  expect(whole(changed), {"model.nose.weight"});
}

TEST_F(BadBase, DamagedConfig) {
  const std::string whole = Read("base/config.json");
  for (const std::string& text : {std::string(), whole.substr(0, whole.size() / 2), "{" + whole,
                                  whole + "x", std::string("[]"), std::string("null")}) {
    SCOPED_TRACE(text.substr(0, 20));
    Write("base/config.json", text);
    Expect({"config.json"});
  }
  std::filesystem::remove(Path("base/config.json"));
  Expect({"config.json", "No such file"});
}

TEST_F(BadBase, ConfigValuesThatAreNotImplemented) {
  ExpectConfig("model_type", "lemur", {"model_type", "llama", "found lemur"});
  ExpectConfig("model_type", 3, {"model_type", "found 3"});
  ExpectConfig("hidden_act", "mish", {"hidden_act", "found mish"});
  ExpectConfig("rope_parameters", {{"rope_type", "yarn"}, {"rope_theta", 1e4}},
               {"rope_type", "found yarn"});
  ExpectConfig("rope_scaling", {{"type", "linear"}, {"factor", 2}}, {"rope_scaling", "linear"});
  ExpectConfig("hidden_size", -1, {"hidden_size", "found -1"});
  ExpectConfig("hidden_size", "30", {"hidden_size", "found the string"});
  ExpectConfig("hidden_size", nullptr, {"hidden_size"});
  ExpectConfig("num_key_value_heads", 4, {"num_key_value_heads", "found 4"});
  ExpectConfig("head_dim", 7, {"head_dim", "found 7"});
  ExpectConfig("vocab_size", int64_t{1} << 40, {"vocab_size"});
  Fresh("gpt2-1");
  ExpectConfig("activation_function", "mish", {"activation_function", "mish"});
  ExpectConfig("scale_attn_by_inverse_layer_idx", true, {"scale_attn_by_inverse_layer_idx"});
  Fresh("t5-v1_0-1");
  ExpectConfig("feed_forward_proj", "gated-mish", {"feed_forward_proj", "found mish"});
}

// A window shorter than the input would change the result.
TEST_F(BadBase, SlidingWindow) {
  Fresh("mistral-1");
  nlohmann::json changed = config_;
  changed["sliding_window"] = 2;
  Write("base/config.json", changed.dump());
  Expect({"good.jsonl:1", "sliding_window 2", "found 3 tokens"});
  changed["sliding_window"] = 3;
  Write("base/config.json", changed.dump());
  EXPECT_EQ(Run(Forward(Path("base"), data_)).status, 0);
}

TEST_F(BadBase, TensorsThatDoNotMatch) {
  RawSafetensors changed = raw_;
  changed.Rename(kNorm, "model.nose.weight");
  ExpectWeights(changed.Bytes(), {"missing: model.norm.weight", "unused: model.nose.weight"});

  changed = raw_;
  changed.Add("model.layers.9.extra.weight", 4);
  ExpectWeights(changed.Bytes(), {"unused: model.layers.9.extra.weight"});

  changed = raw_;
  nlohmann::json& shape = changed.header["model.layers.0.mlp.down_proj.weight"]["shape"];
  std::swap(shape[0], shape[1]);
  ExpectWeights(
      changed.Bytes(),
      {"wrong shape", "model.layers.0.mlp.down_proj.weight (expected [30, 37], found [37, 30])"});

  changed = raw_;  // 30 numbers of 4 bytes that are no floats
  changed.header[kNorm]["dtype"] = "I32";
  ExpectWeights(changed.Bytes(), {kNorm, "I32"});

  Write(kWeights, raw_.Bytes());
  ExpectConfig("vocab_size", 132,
               {"expected [132, 30], found [131, 30]", "embed_tokens", "lm_head"});
}

TEST_F(BadBase, WeightsThatAreNotFinite) {
  for (const char* name : {kNorm, "model.embed_tokens.weight",
                           "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"}) {
    for (const float value : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      RawSafetensors changed = raw_;
      changed.SetFloat(name, 7, value);
      ExpectWeights(changed.Bytes(), {name, "NaN or infinite"});
    }
  }
  RawSafetensors changed = raw_;
  changed.SetFloat(kNorm, 0, std::nanf(""));
  Write(kWeights, changed.Bytes());
  for (const char* precision : {"f32", "bf16"}) {
    ExpectBad(Train(Path("base"), data_,
                    std::string("--method prompt --steps 1 --precision ") + precision),
              {kNorm});
  }
  Fresh("gpt2-1");
  changed = raw_;
  changed.SetFloat("transformer.h.0.attn.c_attn.weight", 1, std::nanf(""));
  ExpectWeights(changed.Bytes(), {"transformer.h.0.attn.c_attn.weight"});
}

// Every weight is finite, what is computed with them is not.
TEST_F(BadBase, WeightsThatOverflow) {
  RawSafetensors changed = raw_;
  for (size_t i = 0; i < 30; ++i) {
    changed.SetFloat(kNorm, i, 3e38f);
    changed.SetFloat("lm_head.weight", i, 1e3f);
  }
  ExpectWeights(changed.Bytes(), {"good.jsonl:1", "not finite"});
  ExpectBad(Train(Path("base"), data_, "--method prompt --virtual-tokens 2 --steps 3"),
            {"step 1: ", "finite"});
  EXPECT_FALSE(Exists("out/checkpoint/state.safetensors"));
}

TEST_F(BadBase, DamagedGguf) {
  const std::string whole = ReadWhole(Stories());
  for (const size_t size : {size_t{0}, size_t{3}, size_t{24}, size_t{1000}, whole.size() - 5}) {
    SCOPED_TRACE(size);
    ExpectBad(Forward(Write("cut.gguf", whole.substr(0, size)), data_), {"cut.gguf"});
  }
  std::string lying = whole;
  lying.replace(8, 8, 8, '\xff');  // the number of tensors
  ExpectBad(Forward(Write("lying.gguf", lying), data_), {"lying.gguf"});
}

TEST_F(BadBase, NoTokenizer) {
  ExpectBad("generate --base " + Quoted(Path("base")) + " --prompt x", {"base", "no tokenizer"});
  const std::string texts = Write("t.jsonl", "{\"text\": \"a\"}\n");
  const std::string tokenize = "tokenize --base " + Quoted(Path("base")) + " --data " + texts;
  ExpectBad(tokenize, {"base", "tokenizer"});
  Write("base/tokenizer.json", "{\"model\": {");
  ExpectBad(tokenize, {"tokenizer.json"});
  std::filesystem::remove(Path("base/tokenizer.json"));
  Write("base/tokenizer.model", "\x0a\xff\xff");
  ExpectBad(tokenize, {"tokenizer.model"});
}

}  // namespace
}  // namespace permafrost
