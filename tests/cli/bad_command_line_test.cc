// Wrong command lines: exit status 2 and one line; --config files; --help describes what the
// contract promises.
#include "tests/cli/command_test_util.h"

namespace permafrost {
namespace {

using testing::HasSubstr;
using testing::Not;

class CommandLine : public CommandTest {};

TEST_F(CommandLine, UnknownOrMissing) {
  ExpectBad("", {"subcommand"}, 2);
  ExpectBad("fly", {"unknown command fly"}, 2);
  ExpectBad("--fly", {"--fly"}, 2);
  ExpectBad("''", {"unknown command"}, 2);
  ExpectBad("train --no-such-flag", {"train --help"}, 2);
  ExpectBad("forward --base x --data y --out z --no-such-flag", {"--no-such-flag"}, 2);
  ExpectBad("forward --base x --data y --out z extra", {"extra"}, 2);
  ExpectBad("forward --base x --out z --data", {"--data"}, 2);
  ExpectBad("forward --base x --base y --data y --out z", {"--base"}, 2);
  ExpectBad("train --data x --out y --method prompt", {"--base"}, 2);
  ExpectBad("train --base x --out y --method prompt", {"--data"}, 2);
  ExpectBad("train --base x --data y --method prompt", {"--out"}, 2);
  ExpectBad("train --base x --data y --out z", {"--method", "--init-adapter"}, 2);
  ExpectBad("train --base x --data y --out z --method lora --init-adapter w",
            {"--method", "--init-adapter"}, 2);
  ExpectBad("eval --base x", {"--data"}, 2);
  ExpectBad("predict --base x", {"--data"}, 2);
  ExpectBad("predict --base x --data y --ensemble", {"--ensemble", "--adapter"}, 2);
  ExpectBad("generate --base x", {"--prompt"}, 2);
  ExpectBad("forward --base x --data y", {"--out"}, 2);
  ExpectBad("forward --base x --data y --out z --gradients g", {"--gradients", "--adapter"}, 2);
  ExpectBad("inspect", {"--base"}, 2);
  ExpectBad("neighbors --base x", {"--adapter"}, 2);
  ExpectBad("tokenize --base x", {"--data"}, 2);
  ExpectBad("convert --base x", {"--out DIR", "--to-npy FILE"}, 2);
  ExpectBad("convert --base x --to-npy y", {"--adapter"}, 2);
  ExpectBad("convert --base x --to-adapterhub y", {"--adapter"}, 2);
  ExpectBad("convert --base x --adapter a --to-peft y --to-adapterhub z", {"found several"}, 2);
  ExpectBad("convert --base x --out y --prompt-npy z --adapter w", {"--prompt-npy"}, 2);
  ExpectBad("bench", {"subcommand"}, 2);
  ExpectBad("bench fly", {"fly"}, 2);
}

TEST_F(CommandLine, ValuesThatAFlagDoesNotTake) {
  const std::string train = "train --base x --data y --out z --method prompt ";
  ExpectBad("train --base x --data y --out z --method telepathy", {"telepathy"}, 2);
  ExpectBad(train + "--optimizer magic", {"magic"}, 2);
  ExpectBad(train + "--steps 3 --epochs 2", {"--epochs", "--steps"}, 2);
  ExpectBad(train + "--rank 4", {"--rank", "--method lora", "--method prompt"}, 2);
  ExpectBad("train --base x --data y --out z --method lora --layers 0,x", {"--layers", "0,x"}, 2);
  ExpectBad("train --base x --data y --out z --method dora --lora-bias", {"--lora-bias", "lora"},
            2);
  ExpectBad("train --base x --data y --out z --method lora --init-lora svd", {"--init-lora", "svd"},
            2);
  ExpectBad("train --base x --data y --out z --init-adapter a --targets q", {"--targets", "lora"},
            2);
  ExpectBad(train + "--schedule magic", {"magic"}, 2);
  ExpectBad(train + "--order magic", {"magic"}, 2);
  ExpectBad(train + "--init magic", {"magic"}, 2);
  ExpectBad(train + "--precision f16", {"f16"}, 2);
  ExpectBad(train + "--dropout 1.5", {"1.5"}, 2);
  ExpectBad(train + "--threads many", {"many"}, 2);
  for (const char* wrong :
       {"--steps 0", "--steps -3", "--steps 1.5", "--steps many", "--steps 99999999999999999999",
        "--batch-size 0", "--accumulate 0", "--lr -1", "--lr inf", "--lr nan", "--lr fast",
        "--clip -1", "--warmup -1", "--rank 0", "--threads 0", "--virtual-tokens 0",
        "--max-tokens 0", "--checkpoint-every 0", "--seed -1"}) {
    const Outcome o = Run(train + wrong);
    ExpectError(o, 2, {std::string(wrong).substr(0, std::string(wrong).find(' '))});
    EXPECT_LT(o.err.size(), 160u) << o.err;  // no bound of 300 digits
  }
  const std::string generate = "generate --base x --prompt y ";
  for (const char* wrong :
       {"--max-new-tokens 0", "--temperature -1", "--temperature nan", "--top-p 0", "--top-p 2",
        "--top-k -1", "--beams 0", "--seed -1", "--repetition-penalty 0"}) {
    const std::string flag = std::string(wrong).substr(0, std::string(wrong).find(' '));
    ExpectBad(generate + wrong, {flag}, 2);
  }
  ExpectBad("eval --base x --data y --score most", {"most"}, 2);
  ExpectBad("bench step --shape square", {"square"}, 2);
  ExpectBad("bench step --lengths 9:3", {"9:3"}, 2);
  ExpectBad("bench gemm --m 0", {"--m"}, 2);
  ExpectBad("bench gemm --weights loose", {"loose"}, 2);
}

TEST_F(CommandLine, InitialisationsThatNeedAnotherFlag) {
  const std::string data = Write("t.tsv", "text\tlabel\nhi\tham\n");
  const auto expect = [&](const std::string& init, const std::string& part, int status) {
    ExpectBad(Train(Stories(), data,
                    "--input '{text}' --target '{label}' --steps 1 --method prompt --init " + init),
              {part}, status);
    EXPECT_FALSE(Exists("out"));
  };
  expect("text", "--init-text", 2);
  expect("file", "--init-file", 2);
  expect("labels", "--label-words", 1);
  expect("file --init-file " + Path("no.npy"), "no.npy", 1);
}

TEST_F(CommandLine, HelpNamesEveryFlagOfTheContract) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> flags = {
      {"train", {"--base",         "--method",       "--virtual-tokens",
                 "--init",         "--init-text",    "--rank",
                 "--alpha",        "--targets",      "--dropout",
                 "--init-adapter", "--data",         "--eval-data",
                 "--out",          "--steps",        "--epochs",
                 "--batch-size",   "--accumulate",   "--optimizer",
                 "--lr",           "--beta1",        "--beta2",
                 "--epsilon",      "--weight-decay", "--clip",
                 "--schedule",     "--warmup",       "--order",
                 "--seed",         "--precision",    "--threads",
                 "--max-tokens",   "--truncate",     "--checkpoint-every",
                 "--resume",       "--config",       "--quiet",
                 "--task",         "--input",        "--target",
                 "--label-words"}},
      {"eval", {"--base", "--adapter", "--data", "--score", "--json", "--task", "--config"}},
      {"predict", {"--base", "--adapter", "--data", "--score", "--task"}},
      {"generate",
       {"--base", "--adapter", "--prompt", "--max-new-tokens", "--temperature", "--top-k",
        "--top-p", "--repetition-penalty", "--seed", "--beams", "--length-penalty", "--stop",
        "--json"}},
      {"forward",
       {"--base", "--adapter", "--data", "--out", "--gradients", "--precision", "--threads"}},
      {"inspect", {"--base", "--adapter", "--data", "--batch-size"}},
      {"convert",
       {"--base", "--adapter", "--out", "--prompt-npy", "--to-npy", "--to-peft", "--to-adapterhub",
        "--adapter-name"}},
      {"neighbors", {"--base", "--adapter", "--top"}},
      {"tokenize", {"--base", "--data", "--plain", "--decode"}},
      {"bench step",
       {"--shape", "--method", "--rank", "--targets", "--virtual-tokens", "--batch-size",
        "--tokens", "--target-tokens", "--lengths", "--labels", "--precision", "--threads",
        "--steps", "--warmup"}},
      {"bench gemm", {"--m", "--n", "--k", "--precision", "--weights"}}};
  const std::string top = Output("--help");
  EXPECT_EQ(Output("-h"), top);
  for (const auto& [command, names] : flags) {
    EXPECT_THAT(top, HasSubstr("\n  " + command.substr(0, command.find(' ')) + " "));
    const std::string help = Output(command + " --help");
    for (const std::string& name : names) {
      EXPECT_THAT(help, HasSubstr("\n  " + name + " ")) << command;
    }
    // No flag stands there without a word about it.
    const std::vector<std::string> lines = Lines(help);
    for (size_t i = 0; i < lines.size(); ++i) {
      if (!lines[i].starts_with("  --")) continue;
      const size_t text = lines[i].find_first_not_of(' ', 30);
      const bool below = i + 1 < lines.size() && lines[i + 1].starts_with("      ");
      EXPECT_TRUE(text != std::string::npos || below) << command << ": " << lines[i];
    }
  }
  EXPECT_THAT(Output("--version"), HasSubstr("permafrost 0."));
}

TEST_F(CommandLine, ConfigFileAndFlagsThatWin) {
  const std::string base = GoldenModel("llama-1");
  const std::string config = Write("config.json", nlohmann::json{{"base", base},
                                                                 {"data", base + "/data.jsonl"},
                                                                 {"method", "lora"},
                                                                 {"rank", 2},
                                                                 {"alpha", 3.5},
                                                                 {"targets", "q_proj"},
                                                                 {"batch_size", 3},
                                                                 {"steps", 2},
                                                                 {"lr", 0.001},
                                                                 {"threads", 1},
                                                                 {"quiet", true},
                                                                 {"truncate", false},
                                                                 {"clip", nullptr}}
                                                      .dump());
  const std::string train = "train --config " + Quoted(config);
  EXPECT_EQ(Output(train + " --out " + Path("a")), "");
  nlohmann::json run = nlohmann::json::parse(Read("a/run.json"));
  EXPECT_EQ(run["rank"], 2);
  EXPECT_EQ(run["alpha"], 3.5);
  EXPECT_EQ(run["batch_size"], 3);
  EXPECT_EQ(run["lr"], 0.001);
  EXPECT_EQ(run["steps_done"], 2);
  EXPECT_EQ(run["truncate"], false);
  EXPECT_EQ(Output("train --rank 4 --config=" + Quoted(config) + " --lr=0.01 --steps 1 --out " +
                   Path("b")),
            "");
  run = nlohmann::json::parse(Read("b/run.json"));
  EXPECT_EQ(run["rank"], 4);
  EXPECT_EQ(run["alpha"], 3.5);
  EXPECT_EQ(run["lr"], 0.01);
  EXPECT_EQ(run["steps_done"], 1);
  // The same run by flags gives the same adapter.
  EXPECT_EQ(Output(Train(base, base + "/data.jsonl",
                         "--method lora --rank 2 --alpha 3.5 --targets q_proj --batch-size 3 "
                         "--steps 2 --lr 0.001")),
            "");
  EXPECT_EQ(Read("a/adapter_model.safetensors"), Read("out/adapter_model.safetensors"));
}

TEST_F(CommandLine, ConfigLists) {
  const std::string base = GoldenModel("llama-1");
  const std::string config =
      Write("config.json", nlohmann::json{{"adapter",
                                           {"a=" + GoldenAdapter("llama-1", "lora"),
                                            "b=" + GoldenAdapter("llama-1", "prompt")}}}
                               .dump());
  const std::string data = Write("data.jsonl", "{\"input_ids\": [5, 6], \"adapter\": \"b\"}\n");
  EXPECT_EQ(Run(Forward(base, data, "--config " + Quoted(config))).status, 0);
  const std::string targets =
      Write("targets.json", nlohmann::json{{"targets", {"q_proj", "v_proj"}}}.dump());
  EXPECT_EQ(
      Run(Train(base, GoodLine(), "--method lora --steps 1 --config " + Quoted(targets))).status,
      0);
  EXPECT_EQ(nlohmann::json::parse(Read("out/run.json"))["targets"], "q_proj,v_proj");
}

TEST_F(CommandLine, BadConfigFile) {
  const std::string train = "train --base x --data y --out z --method prompt --config ";
  ExpectBad(train + Path("no.json"), {"no.json"});
  ExpectBad(train + Write("a.json", "{\"lr\": "), {"a.json", "JSON error"});
  ExpectBad(train + Write("b.json", "[1]"), {"b.json", "expected an object"});
  ExpectBad(train + Write("c.json", "{\"learning_rate\": 1}"), {"c.json", "learning_rate"}, 2);
  ExpectBad(train + Write("d.json", "{\"lr\": \"fast\"}"), {"--lr", "fast"}, 2);
  ExpectBad(train + Write("e.json", "{\"lr\": {\"x\": 1}}"), {"e.json", "lr"});
  ExpectBad("train --base x --data y --out z --method prompt --config", {"--config"}, 2);
}

TEST_F(CommandLine, QuietAndMessages) {
  const std::string base = GoldenModel("llama-1");
  const std::string flags =
      " --base " + Quoted(base) + " --data " + Quoted(base + "/data.jsonl") +
      " --method prompt --virtual-tokens 2 --steps 2 --threads 1 --eval-data " +
      Quoted(base + "/data.jsonl") + " --out " + Quoted(Path("out"));
  const Outcome loud = Run("train" + flags);
  EXPECT_EQ(loud.status, 0);
  EXPECT_EQ(loud.out, "");
  EXPECT_THAT(loud.err, HasSubstr("settings: {"));
  EXPECT_THAT(loud.err, HasSubstr("\"lr\":0.03"));  // a default, resolved
  EXPECT_THAT(loud.err, HasSubstr("step 2: eval loss"));
  EXPECT_THAT(loud.err, HasSubstr("done: 2 steps"));
  EXPECT_THAT(loud.err, Not(HasSubstr("\r")));  // a bar is for terminals
  const Outcome quiet = Run("train --quiet" + flags);
  EXPECT_EQ(quiet.status, 0);
  EXPECT_EQ(quiet.out, "");
  EXPECT_EQ(quiet.err, "");
}

}  // namespace
}  // namespace permafrost
