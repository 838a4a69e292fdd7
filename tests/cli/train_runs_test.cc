// train --runs: several adapters at once end in the bytes that each has alone; wrong files of runs.
#include "command_test_util.h"

namespace permafrost {
namespace {

class TrainRuns : public CommandTest {
 protected:
  std::string Runs(const std::string& text) { return Write("runs.json", text); }
  std::string Bytes(const std::string& folder) {
    const std::string bytes = ReadWhole(folder + "/adapter_model.safetensors");
    EXPECT_FALSE(bytes.empty()) << folder;
    return bytes;
  }
  const std::string base_ = GoldenModel("llama-1");
  const std::string shared_ =
      " --base " + base_ + " --threads 1 --quiet --data " + base_ + "/data.jsonl --steps 3";
};

TEST_F(TrainRuns, EachEndsInTheBytesItHasAlone) {
  const std::string a = Path("a"), b = Path("b"), c = Path("c");
  const std::string runs = Runs(
      R"([{"method": "lora", "rank": 2, "dropout": 0.3, "seed": 5, "out": ")" + a +
      R"("}, {"method": "prompt", "init": "random", "virtual_tokens": 3, "lr": 0.01, "steps": 5, "out": ")" +
      b +
      R"("}, {"method": "unipelt", "bottleneck": 3, "accumulate": 2, "batch_size": 2, "out": ")" +
      c + R"("}])");
  ASSERT_EQ(Output("train --runs " + runs + shared_), "");
  const auto alone = [&](const std::string& flags) {
    const std::string out = Path("alone");
    EXPECT_EQ(Output("train" + shared_ + " --out " + out + flags), "");
    return Bytes(out);
  };
  EXPECT_EQ(Bytes(a), alone(" --method lora --rank 2 --dropout 0.3 --seed 5"));
  const std::string five =
      " --base " + base_ + " --threads 1 --quiet --data " + base_ + "/data.jsonl --steps 5";
  ASSERT_EQ(Output("train" + five + " --out " + Path("five") +
                   " --method prompt --init random --virtual-tokens 3 --lr 0.01"),
            "");
  EXPECT_EQ(Bytes(b), Bytes(Path("five")));
  EXPECT_EQ(Bytes(c), alone(" --method unipelt --bottleneck 3 --accumulate 2 --batch-size 2"));
  EXPECT_NE(ReadWhole(c + "/run.json").find("\"parts\""), std::string::npos);
}

TEST_F(TrainRuns, WrongFilesOfRuns) {
  const auto bad = [&](const std::string& text, const std::vector<std::string>& parts, int status) {
    ExpectBad("train --runs " + Runs(text) + shared_, parts, status);
  };
  bad("{}", {"expected a list of runs", "an object"}, 1);
  bad("[]", {"expected a list of runs"}, 1);
  bad(R"([{"method": "lora"}])", {"run 0", "--out"}, 2);
  bad(R"([{"method": "lora", "out": "x"}, {"method": "lora", "out": "x"}])",
      {"run 1", "folder of its own"}, 2);
  bad(R"([{"method": "lora", "out": "x", "base": "y"}])", {"run 0", "--base", "command line"}, 2);
  bad(R"([{"method": "lora", "out": "x", "bottleneck": 3}])", {"run 0", "--bottleneck"}, 2);
  bad(R"([{"method": "lora", "out": "x", "colour": 3}])", {"run 0", "colour is no flag"}, 2);
  bad(R"([{"method": "lora", "out": "x", "rank": "many"}])", {"run 0", "--rank"}, 2);
  bad("[3]", {"run 0", "expected an object"}, 1);
}

}  // namespace
}  // namespace permafrost
