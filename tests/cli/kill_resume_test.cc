// A run that is killed at any step, again and again, and resumed ends in the bytes of a run that
// was not.
#include "tests/cli/command_test_util.h"

namespace permafrost {
namespace {

constexpr int kSteps = 24;

struct Case {
  const char* name;
  const char* base;
  const char* method;  // and its settings
  int accumulate, checkpoint_every;
};

class KillResume : public CommandTest, public testing::WithParamInterface<Case> {
 protected:
  std::string Flags(const std::string& out, int threads) const {
    const Case& c = GetParam();
    const std::string base = GoldenModel(c.base);
    return "train --quiet --base " + Quoted(base) + " --data " + Quoted(base + "/data.jsonl") +
           " --out " + Quoted(Path(out)) + " --method " + c.method + " --accumulate " +
           std::to_string(c.accumulate) + " --checkpoint-every " +
           std::to_string(c.checkpoint_every) + " --steps " + std::to_string(kSteps) +
           " --batch-size 4 --lr 0.01 --clip 1 --threads " + std::to_string(threads);
  }
  // The same run, resumed if it got to a checkpoint.
  std::string Continue(const std::string& out, int threads) const {
    const bool resume = Exists(out + "/checkpoint/state.safetensors");
    return Flags(out, threads) + (resume ? " --resume" : "");
  }
  // Starts or resumes the run and kills it when `condition` holds; false if it ended before.
  bool RunAndKill(const std::string& out, int threads, const std::function<bool()>& condition) {
    Process process(Continue(out, threads), "", Path("o"), Path("e"));
    process.WaitUntil(condition);
    process.Signal(SIGKILL);
    const Outcome o = process.Wait();
    EXPECT_TRUE(o.status == -1 || o.status == 0) << o.err;
    return o.status == -1;
  }
  size_t LoggedSteps(const std::string& out) const {
    const std::string log = Read(out + "/metrics.jsonl");
    return static_cast<size_t>(std::count(log.begin(), log.end(), '\n'));
  }
  void ExpectSameRun(const std::string& out, const std::string& expected) const {
    EXPECT_EQ(Read(out + "/adapter_config.json"), Read(expected + "/adapter_config.json"));
    EXPECT_TRUE(Read(out + "/adapter_model.safetensors") ==
                Read(expected + "/adapter_model.safetensors"));
    EXPECT_TRUE(Read(out + "/checkpoint/state.safetensors") ==
                Read(expected + "/checkpoint/state.safetensors"));
    const std::vector<nlohmann::json> a = JsonLines(Read(out + "/metrics.jsonl")),
                                      b = JsonLines(Read(expected + "/metrics.jsonl"));
    ASSERT_EQ(a.size(), static_cast<size_t>(kSteps));
    ASSERT_EQ(b.size(), static_cast<size_t>(kSteps));
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i]["step"], i + 1);
      for (const char* field : {"step", "loss", "lr", "grad_norm", "tokens"}) {
        EXPECT_EQ(a[i][field], b[i][field]) << field << " of step " << i + 1;
      }
    }
  }
};

TEST_P(KillResume, EndsInTheSameBytes) {
  ASSERT_EQ(Run(Flags("whole", 1)).status, 0);
  ASSERT_EQ(Run(Flags("two", 2)).status, 0);
  ExpectSameRun("two", "whole");

  // Once each of these steps is in the log. A later target is reached from the last checkpoint.
  int kills = 0;
  for (const size_t step : {2, 5, 6, 11, 17, 22}) {
    kills += RunAndKill("steps", 1, [&] { return LoggedSteps("steps") >= step; });
  }
  EXPECT_GE(kills, 1);
  ASSERT_EQ(Run(Continue("steps", 1)).status, 0);
  ExpectSameRun("steps", "whole");

  // At any moment, whatever is being written; threads change from run to run.
  bool killed = true;
  for (int milliseconds = 15; killed; milliseconds += 5 + milliseconds / 4) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
    killed = RunAndKill("moments", milliseconds % 2 + 1,
                        [&] { return std::chrono::steady_clock::now() >= end; });
  }
  ExpectSameRun("moments", "whole");
}

INSTANTIATE_TEST_SUITE_P(
    Runs, KillResume,
    testing::Values(Case{"prompt_every_step", "llama-1", "prompt --virtual-tokens 3", 1, 1},
                    Case{"prompt_t5", "t5-v1_1-1", "prompt --virtual-tokens 3", 2, 2},
                    Case{"lora_accumulated", "llama-2", "lora --rank 3 --dropout 0.2", 2, 3},
                    Case{"lora_gpt2", "gpt2-1", "lora --optimizer adafactor", 1, 2},
                    Case{"full_sgd", "qwen2-1", "full --optimizer sgd", 2, 1}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace permafrost
