// Adapters that a stranger damaged, that were made for another base, or that use what the engine
// does not implement: one line that names the place, exit status 1.
#include <cmath>

#include "tests/cli/command_test_util.h"
#include "tests/cli/safetensors_edit.h"

namespace permafrost {
namespace {

constexpr char kLoraA[] = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

class BadAdapter : public CommandTest {
 protected:
  void Fresh(const std::string& kind, const std::string& model = "llama-1") {
    base_ = GoldenModel(model);
    data_ = GoodLine();
    Copy(GoldenAdapter(model, kind), "adapter");
    raw_ = RawSafetensors::Read(Path("adapter/adapter_model.safetensors"));
    config_ = nlohmann::json::parse(Read("adapter/adapter_config.json"));
  }
  std::string Use(const std::string& base, const std::string& adapter) const {
    return Forward(base, data_, "--adapter " + Quoted(adapter));
  }
  void Expect(const std::vector<std::string>& parts) const {
    ExpectBad(Use(base_, Path("adapter")), parts);
  }
  void ExpectWeights(const std::string& bytes, const std::vector<std::string>& parts) const {
    Write("adapter/adapter_model.safetensors", bytes);
    std::vector<std::string> all = parts;
    all.push_back("adapter_model.safetensors");
    Expect(all);
  }
  void ExpectConfig(const std::string& field, const nlohmann::json& value,
                    const std::vector<std::string>& parts) const {
    SCOPED_TRACE(field);
    nlohmann::json changed = config_;
    changed[field] = value;
    Write("adapter/adapter_config.json", changed.dump());
    std::vector<std::string> all = parts;
    all.push_back("adapter_config.json");
    Expect(all);
  }

  std::string base_, data_;
  RawSafetensors raw_;
  nlohmann::json config_;
};

TEST_F(BadAdapter, NothingThere) {
  Fresh("lora");
  ExpectBad(Use(base_, Path("nowhere")), {"nowhere", "No such file"});
  std::filesystem::remove(Path("adapter/adapter_model.safetensors"));
  Expect({"adapter_model.safetensors", "No such file"});
  Write("adapter/adapter_model.bin", "x");
  Expect({"adapter_model.bin", "pickled"});
  std::filesystem::remove(Path("adapter/adapter_config.json"));
  Expect({"adapter_config.json", "No such file"});
}

TEST_F(BadAdapter, DamagedFiles) {
  Fresh("lora");
  const std::string whole = raw_.Bytes();
  for (const size_t size : {size_t{0}, size_t{7}, size_t{60}, whole.size() - 4}) {
    ExpectWeights(whole.substr(0, size), {});
  }
  ExpectWeights(raw_.WithLength(whole.size()), {"invalid header length"});
  RawSafetensors lie = raw_;
  lie.header[kLoraA]["data_offsets"] = {raw_.data.size(), raw_.data.size() + 480};
  ExpectWeights(lie.Bytes(), {"invalid offsets"});
  Write("adapter/adapter_model.safetensors", whole);

  const std::string text = config_.dump();
  for (const std::string& bad :
       {std::string(), text.substr(0, text.size() / 2), text + "}", std::string("[1]")}) {
    SCOPED_TRACE(bad);
    Write("adapter/adapter_config.json", bad);
    Expect({"adapter_config.json"});
  }
}

TEST_F(BadAdapter, LoraTensors) {
  Fresh("lora");
  RawSafetensors changed = raw_;
  changed.Rename(kLoraA, "base_model.model.nose.lora_A.weight");
  ExpectWeights(changed.Bytes(),
                {std::string("missing ") + kLoraA, "unused base_model.model.nose.lora_A.weight"});
  changed = raw_;
  changed.Add("extra", 3);
  ExpectWeights(changed.Bytes(), {"unused extra"});
  changed = raw_;
  changed.header[kLoraA]["shape"] = {30, 4};
  ExpectWeights(changed.Bytes(), {kLoraA, "expected [4, 30], found [30, 4]"});
  changed = raw_;
  changed.SetFloat(kLoraA, 5, std::nanf(""));
  ExpectWeights(changed.Bytes(), {kLoraA, "NaN or infinite"});
  changed = raw_;
  changed.header[kLoraA]["dtype"] = "I32";
  ExpectWeights(changed.Bytes(), {kLoraA, "I32"});
  Write("adapter/adapter_model.safetensors", raw_.Bytes());
  nlohmann::json wider = config_;
  wider["r"] = 5;
  Write("adapter/adapter_config.json", wider.dump());
  Expect({kLoraA, "expected [5, 30], found [4, 30]"});
}

TEST_F(BadAdapter, PromptTensors) {
  Fresh("prompt");
  RawSafetensors changed = raw_;
  changed.Rename("prompt_embeddings", "prompt");
  ExpectWeights(changed.Bytes(), {"missing prompt_embeddings", "unused prompt"});
  changed = raw_;
  changed.header["prompt_embeddings"]["shape"] = {30, 5};
  ExpectWeights(changed.Bytes(), {"prompt_embeddings", "expected [5, 30], found [30, 5]"});
  changed = raw_;
  changed.SetFloat("prompt_embeddings", 3, std::nanf(""));
  ExpectWeights(changed.Bytes(), {"prompt_embeddings", "NaN or infinite"});
  // Every command that reads an adapter refuses it.
  const std::string both = " --base " + Quoted(base_) + " --adapter " + Quoted(Path("adapter"));
  for (const std::string& command :
       {"eval --data " + data_, "predict --data " + data_, std::string("inspect"),
        std::string("neighbors"), "convert --to-npy " + Path("x.npy")}) {
    ExpectBad(command + both, {"prompt_embeddings", "NaN or infinite"});
  }
  ExpectBad(Train(base_, data_, "--steps 1 --init-adapter " + Quoted(Path("adapter"))),
            {"prompt_embeddings", "NaN or infinite"});
}

TEST_F(BadAdapter, ConfigsThatAreNotImplemented) {
  Fresh("lora");
  ExpectConfig("peft_type", "MAGIC", {"peft_type", "MAGIC"});
  ExpectConfig("peft_type", nullptr, {"peft_type"});
  ExpectConfig("r", 0, {"found 0"});
  ExpectConfig("r", "four", {"r"});
  ExpectConfig("lora_dropout", 1.5, {"lora_dropout", "1.5"});
  ExpectConfig("use_qalora", true, {"use_qalora", "not implemented"});
  ExpectConfig("use_dora", true, {"missing", "q_proj.lora_magnitude_vector"});
  ExpectConfig("lora_bias", true, {"missing", "q_proj.lora_B.bias"});
  ExpectConfig("bias", "some", {"bias", "some", "lora_only"});
  ExpectConfig("init_lora_weights", "pissa", {"init_lora_weights", "pissa"});
  ExpectConfig("a_field_of_tomorrow", 1, {"a_field_of_tomorrow", "not implemented"});
  ExpectConfig("modules_to_save", {"lm_head"}, {"missing", "base_model.model.lm_head.weight"});
  ExpectConfig("modules_to_save", {"classifier"}, {"modules_to_save", "classifier", "lm_head"});
  ExpectConfig("target_modules", "(", {"(", "regular expression"});
  ExpectConfig("target_modules", nlohmann::json::array(), {"targets", "found none"});
  Fresh("prompt");
  ExpectConfig("num_virtual_tokens", 0, {"num_virtual_tokens", "found 0"});
  ExpectConfig("num_virtual_tokens", int64_t{1} << 40, {"num_virtual_tokens"});
  ExpectConfig("num_transformer_submodules", 3, {"num_transformer_submodules", "found 3"});
}

TEST_F(BadAdapter, OfAnotherBase) {
  Fresh("prompt");  // by width, by layers, by kind of model
  ExpectConfig("token_dim", 32, {"token_dim", "expected 30", "found 32", "another base"});
  ExpectConfig("num_layers", 4, {"num_layers", "expected 3", "found 4", "another base"});
  ExpectConfig("task_type", "SEQ_2_SEQ_LM", {"task_type", "CAUSAL_LM", "another base"});
  ExpectBad(Use(GoldenModel("llama-2"), GoldenAdapter("llama-1", "prompt")), {"another base"});
  ExpectBad(Use(GoldenModel("t5-v1_0-1"), GoldenAdapter("llama-1", "prompt")),
            {"task_type", "another base"});
  ExpectBad(Use(GoldenModel("llama-1"), GoldenAdapter("t5-v1_0-1", "lora")),
            {"task_type", "another base"});
  // By the shape of its tensors, by their names.
  ExpectBad(Use(GoldenModel("mistral-2"), GoldenAdapter("llama-1", "lora")),
            {"adapter_model.safetensors", "expected ["});
  ExpectBad(Use(GoldenModel("gpt2-1"), GoldenAdapter("llama-1", "lora")),
            {"adapter_config.json", "q_proj", "c_attn"});
  ExpectBad(Train(GoldenModel("llama-2"), data_,
                  "--steps 1 --init-adapter " + Quoted(GoldenAdapter("llama-1", "prompt"))),
            {"another base"});
  EXPECT_FALSE(Exists("out/adapter_model.safetensors"));
}

TEST_F(BadAdapter, TargetThatMatchesNothing) {
  const std::string base = GoldenModel("llama-1"), data = GoodLine();
  for (const char* targets : {"nose_proj", "q_proj,nose_proj", "proj"}) {
    ExpectBad(Train(base, data, std::string("--method lora --steps 1 --targets ") + targets),
              {"matches no", "q_proj, up_proj, v_proj"});
  }
  EXPECT_FALSE(Exists("out/adapter_model.safetensors"));
  Fresh("lora");
  ExpectConfig("target_modules", {"q_proj", "nose_proj"}, {"nose_proj", "q_proj, up_proj, v_proj"});
  ExpectConfig("layers_to_transform", {17}, {"q_proj", "layers_to_transform"});
}

TEST_F(BadAdapter, NamesOfSeveral) {
  Fresh("lora");
  const std::string lora = Quoted(GoldenAdapter("llama-1", "lora")),
                    prompt = Quoted(GoldenAdapter("llama-1", "prompt"));
  const auto expect = [&](const std::string& line, const std::string& adapters,
                          const std::vector<std::string>& parts) {
    ExpectBad(Forward(base_, Write("named.jsonl", line + "\n"), adapters), parts);
  };
  const std::string named = "\n{\"input_ids\": [5], \"adapter\": \"nobody\"}";
  expect(named, "", {"named.jsonl:2", "nobody", "none"});
  expect(named, "--adapter " + lora, {"named.jsonl:2", "nobody"});
  expect(named, "--adapter a=" + lora + " --adapter b=" + prompt,
         {"named.jsonl:2", "nobody", "loaded: a, b"});
  ExpectBad(Forward(base_, data_, "--adapter " + lora + " --adapter " + prompt), {"NAME=DIR"}, 2);
  ExpectBad(Forward(base_, data_, "--adapter a=" + lora + " --adapter a=" + prompt),
            {"the name a stands twice"}, 2);
  ExpectBad(Train(base_, Path("named.jsonl"), "--method prompt --steps 1"), {"labels"});
  Write("named.jsonl", "{\"input_ids\": [5, 6], \"labels\": [5, 6], \"adapter\": \"nobody\"}\n");
  ExpectBad(Train(base_, Path("named.jsonl"), "--method prompt --steps 1"),
            {"named.jsonl:1", "nobody"});
}

}  // namespace
}  // namespace permafrost
