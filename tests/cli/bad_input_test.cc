// What a user can do wrong, through the command itself: one line `error: ...` that names the place,
// and the exit status.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr char kLlama[] = PERMAFROST_GOLDEN "/models/llama-1";
constexpr char kT5[] = PERMAFROST_GOLDEN "/models/t5-v1_0-1";
constexpr char kGpt2[] = PERMAFROST_GOLDEN "/models/gpt2-1";

struct Outcome {
  int status = -1;
  std::string output;  // stdout and stderr
};

Outcome RunCommand(const std::string& arguments, const std::string& before = "") {
  const std::string command = before + PERMAFROST_BINARY " " + arguments + " 2>&1";
  Outcome outcome;
  FILE* pipe = popen(command.c_str(), "r");
  char buffer[4096];
  size_t n;
  while ((n = fread(buffer, 1, sizeof(buffer), pipe)) > 0) outcome.output.append(buffer, n);
  outcome.status = WEXITSTATUS(pclose(pipe));
  return outcome;
}

class BadInput : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "/bad_input_" + std::to_string(getpid()) + "_" +
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name), std::ios::binary) << text;
    return Path(name);
  }
  // A copy of a golden base to damage.
  std::string Base(const std::string& from) const {
    for (const char* name : {"config.json", "model.safetensors"}) {
      std::filesystem::copy_file(from + "/" + name, Path(name),
                                 std::filesystem::copy_options::overwrite_existing);
    }
    return folder_;
  }
  void ReplaceInFile(const std::string& name, const std::string& from,
                     const std::string& to) const {
    std::ifstream in(Path(name), std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(in)), {});
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    text.replace(at, from.size(), to);
    Write(name, text);
  }
  std::string Forward(const std::string& base, const std::string& data) const {
    return "forward --base " + base + " --data " + data + " --out " + Path("out.safetensors");
  }
  std::string Train(const std::string& base, const std::string& data) const {
    return "train --base " + base + " --data " + data +
           " --method prompt --virtual-tokens 2 --steps 2 --threads 1 --out " + Path("out");
  }
  std::string GoodLines() const {
    return Write("good.jsonl", "{\"input_ids\": [5, 6, 7], \"labels\": [-100, 6, 7]}\n");
  }

  void ExpectError(const Outcome& o, int status, const std::vector<std::string>& parts) const {
    EXPECT_EQ(o.status, status) << o.output;
    EXPECT_THAT(o.output, HasSubstr("error: "));
    for (const std::string& part : parts) EXPECT_THAT(o.output, HasSubstr(part));
  }

  std::string folder_;
};

TEST_F(BadInput, WrongCommandLine) {
  ExpectError(RunCommand(""), 2, {"subcommand"});
  ExpectError(RunCommand("fly"), 2, {"fly"});
  ExpectError(RunCommand("train --no-such-flag"), 2, {});
  ExpectError(RunCommand("train --base x --data y --out z --method telepathy"), 2, {"telepathy"});
  ExpectError(RunCommand("eval --base x"), 2, {"--data"});
  ExpectError(RunCommand("forward --base x --data y --out z --threads many"), 2, {"many"});
}

TEST_F(BadInput, DamagedBases) {
  const std::string data = GoodLines();
  ExpectError(RunCommand(Forward(Path("nowhere"), data)), 1, {"nowhere"});

  Base(kLlama);
  std::filesystem::resize_file(Path("model.safetensors"),
                               std::filesystem::file_size(Path("model.safetensors")) - 5);
  ExpectError(RunCommand(Forward(folder_, data)), 1, {"model.safetensors"});

  Base(kLlama);
  ReplaceInFile("config.json", "\"llama\"", "\"lemur\"");
  ExpectError(RunCommand(Forward(folder_, data)), 1, {"model_type", "lemur"});

  Base(kLlama);
  ReplaceInFile("config.json", "{", "{{");
  ExpectError(RunCommand(Forward(folder_, data)), 1, {"config.json"});

  Base(kLlama);
  ReplaceInFile("config.json", "\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"");
  ExpectError(RunCommand(Forward(folder_, data)), 1, {"rope_type", "yarn"});

  Base(kLlama);
  ReplaceInFile("config.json", "\"silu\"", "\"mish\"");
  ExpectError(RunCommand(Forward(folder_, data)), 1, {"hidden_act", "mish"});
}

TEST_F(BadInput, TensorsThatDoNotMatch) {
  const std::string data = GoodLines();
  Base(kLlama);
  // One name changed in place: the old one is missing, the new one unused.
  ReplaceInFile("model.safetensors", "model.norm.weight", "model.nose.weight");
  ExpectError(RunCommand(Forward(folder_, data)), 1,
              {"missing: model.norm.weight", "unused: model.nose.weight"});
}

TEST_F(BadInput, DataLines) {
  const std::string good = "{\"input_ids\": [5, 6, 7], \"labels\": [-100, 6, 7]}\n";
  ExpectError(RunCommand(Train(kLlama, Write("a.jsonl", good + "\n{\"input_ids\": [5,\n"))), 1,
              {"a.jsonl:3"});
  ExpectError(RunCommand(Train(
                  kLlama, Write("b.jsonl", good + "{\"input_ids\": [5], \"labels\": [99999]}\n"))),
              1, {"b.jsonl:2", "99999"});
  ExpectError(RunCommand(Train(kLlama, Write("c.jsonl", ""))), 1, {"c.jsonl"});
  ExpectError(RunCommand(Train(
                  kLlama, Write("d.jsonl", "{\"input_ids\": [5, 6], \"labels\": [-100, -100]}\n"))),
              1, {"d.jsonl", "label"});
  ExpectError(
      RunCommand(Train(kLlama, Write("e.jsonl", "{\"input_ids\": [\"\xff\"], \"labels\": [1]}\n"))),
      1, {"e.jsonl:1"});
  ExpectError(RunCommand(Train(kLlama, Path("missing.jsonl"))), 1, {"missing.jsonl"});
  std::string longer = "{\"input_ids\": [5";
  for (int i = 0; i < 3000; ++i) longer += ",5";
  ExpectError(RunCommand(Forward(kGpt2, Write("f.jsonl", longer + "]}\n"))), 1,
              {"f.jsonl:1", "n_positions"});
}

TEST_F(BadInput, Adapters) {
  const std::string data = GoodLines();
  const std::string adapter = PERMAFROST_GOLDEN "/models/llama-1/adapters/prompt";
  ExpectError(RunCommand(Forward(kT5, data) + " --adapter " + adapter), 1, {"another base"});
  const std::string lora = PERMAFROST_GOLDEN "/models/llama-1/adapters/lora";
  ExpectError(RunCommand(Forward(kGpt2, data) + " --adapter " + lora), 1,
              {"adapter_config.json", "q_proj", "c_attn"});
  ExpectError(RunCommand(Train(kLlama, data) + " --method lora --targets q_proj,nose_proj"), 2,
              {"--method"});
  ExpectError(
      RunCommand("train --base " + std::string(kLlama) + " --data " + data +
                 " --method lora --targets q_proj,nose_proj --steps 1 --out " + Path("out")),
      1, {"nose_proj", "q_proj"});
  const std::string line = Write("named.jsonl", "{\"input_ids\": [5], \"adapter\": \"nobody\"}\n");
  ExpectError(RunCommand(Forward(kLlama, line) + " --adapter a=" + adapter), 1,
              {"named.jsonl:1", "nobody"});
}

TEST_F(BadInput, OutputThatCannotBeWritten) {
  const std::string data = GoodLines();
  const std::string out = Write("file", "x") + "/folder";
  ExpectError(RunCommand("train --base " + std::string(kLlama) + " --data " + data +
                         " --method prompt --steps 1 --out " + out),
              1, {"file/folder"});
  // A full disk: no file may grow beyond 4 KiB.
  ExpectError(RunCommand(Forward(kLlama, std::string(kLlama) + "/data.jsonl"), "ulimit -f 4; "), 1,
              {"out.safetensors"});
  EXPECT_FALSE(std::filesystem::exists(Path("out.safetensors")));
}

TEST_F(BadInput, LossThatIsNotFinite) {
  const Outcome o = RunCommand(Train(kLlama, GoodLines()) +
                               " --optimizer sgd --schedule constant --lr 1e38 --steps 20");
  EXPECT_EQ(o.status, 2);  // --steps twice
  ExpectError(
      RunCommand("train --base " + std::string(kLlama) + " --data " + GoodLines() +
                 " --method prompt --virtual-tokens 2 --optimizer sgd --schedule constant --lr "
                 "3e38 --steps 30 --out " +
                 Path("out")),
      1, {"step", "finite"});
}

TEST_F(BadInput, ResumeWithoutOrWithOtherSettings) {
  const std::string data = GoodLines();
  ExpectError(RunCommand(Train(kLlama, data) + " --resume"), 1, {"no checkpoint"});
  EXPECT_EQ(RunCommand(Train(kLlama, data) + " --quiet").status, 0);
  ExpectError(RunCommand(Train(kLlama, data) + " --resume --lr 0.5"), 1, {"other settings"});
  Write("out/checkpoint/state.safetensors", "damaged");
  ExpectError(RunCommand(Train(kLlama, data) + " --resume"), 1, {"state.safetensors"});
}

TEST_F(BadInput, InterruptLeavesACheckpointToResumeFrom) {
  const std::string data = GoodLines();
  const std::string steps = "train --base " + std::string(kLlama) + " --data " + data +
                            " --method prompt --virtual-tokens 2 --threads 1 --schedule constant "
                            "--quiet --steps 100000 --out " +
                            Path("out");
  const Outcome o = RunCommand(steps, "timeout --preserve-status -s INT 1 ");
  EXPECT_EQ(o.status, 130) << o.output;
  EXPECT_THAT(o.output, HasSubstr("--resume"));
  EXPECT_TRUE(std::filesystem::exists(Path("out/checkpoint/state.safetensors")));
}

}  // namespace
