// Runs that go wrong on the way: a disk that is full, a loss that explodes, a signal, a checkpoint
// that does not fit. Nothing that was finished is lost.
#include <cmath>

#include "tests/cli/command_test_util.h"
#include "tests/cli/safetensors_edit.h"

namespace permafrost {
namespace {

using testing::HasSubstr;

constexpr char kState[] = "out/checkpoint/state.safetensors";
constexpr char kAdapter[] = "out/adapter_model.safetensors";

class BadRun : public CommandTest {
 protected:
  std::string TrainLlama(const std::string& more) const {
    return Train(base_, base_ + "/data.jsonl", "--threads 1 " + more);
  }
  // No half-written file is left beside the good ones.
  void ExpectNoTemporaryFiles() const {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_)) {
      EXPECT_THAT(entry.path().string(), testing::Not(HasSubstr(".tmp-")));
    }
  }
  static void ExpectFinite(const std::string& path) {
    const RawSafetensors file = RawSafetensors::Read(path);
    for (size_t i = 0; i + 4 <= file.data.size(); i += 4) {
      float value = 0;
      std::memcpy(&value, file.data.data() + i, 4);
      ASSERT_TRUE(std::isfinite(value)) << path;
    }
  }

  const std::string base_ = GoldenModel("llama-1");
};

TEST_F(BadRun, OutputThatCannotBeWritten) {
  const std::string file = Write("file", "x"), data = GoodLine(), base = Quoted(base_);
  const std::string adapter = " --adapter " + Quoted(GoldenAdapter("llama-1", "prompt"));
  const auto forward = [&](const std::string& out) {
    return "forward --base " + base + " --data " + data + " --out " + Quoted(out);
  };
  ExpectBad("train --quiet --method prompt --steps 1 --base " + base + " --data " + data +
                " --out " + Quoted(file + "/folder"),
            {"file/folder", "cannot create the folder"});
  ExpectBad(forward(Path("missing/out.safetensors")), {"missing/out.safetensors"});
  ExpectBad(forward(file + "/out.safetensors"), {"file/out.safetensors"});
  ExpectBad(forward(folder_), {folder_, "folder"});
  ExpectBad(forward("/dev/full"), {"/dev/full"});
  ExpectBad(forward(Path("a.safetensors")) + adapter + " --gradients " + Path("missing/g"),
            {"missing/g"});
  ExpectBad("convert --base " + base + " --out " + Quoted(file + "/folder"), {"file/folder"});
  ExpectBad("convert --base " + base + adapter + " --to-npy " + Path("missing/x.npy"),
            {"missing/x.npy"});
  EXPECT_EQ(Read("file"), "x");
  ExpectNoTemporaryFiles();
}

TEST_F(BadRun, ResultsThatCannotBePrinted) {
  const std::string stories = " --base " + Quoted(Stories());
  const std::string texts = Write("t.jsonl", "{\"text\": \"Once upon a time\"}\n");
  const std::string table = Write("t.tsv", "text\tlabel\nhi\tham\nyo\tspam\n");
  const std::string llama = " --base " + Quoted(base_);
  for (const std::string& command :
       {"tokenize" + stories + " --data " + texts,
        "eval --task sms_spam" + stories + " --data " + table,
        "predict --task sms_spam" + stories + " --data " + table,
        "generate --prompt Once --max-new-tokens 3" + stories, "inspect" + llama,
        "neighbors --adapter " + Quoted(GoldenAdapter("llama-1", "prompt")) + llama}) {
    ExpectBad(command + " > /dev/full", {"stdout"});
  }
}

// No file may grow beyond `blocks` of 512 bytes.
std::string FullAt(int blocks) { return "ulimit -f " + std::to_string(blocks) + ";"; }

TEST_F(BadRun, FullDiskWhileTheCheckpointIsWritten) {
  const std::string full = "--method full --steps 2 --checkpoint-every 1 --lr 1e-3 ";
  ASSERT_EQ(Run(TrainLlama(full)).status, 0);
  const std::string state = Read(kState), adapter = Read(kAdapter);
  ExpectError(Run(TrainLlama(full + "--seed 1"), FullAt(100)), 1,
              {"state.safetensors", "File too large"});
  EXPECT_EQ(Read(kState), state);
  EXPECT_EQ(Read(kAdapter), adapter);
  ExpectNoTemporaryFiles();
  ExpectError(Run(TrainLlama(full + "--resume"), FullAt(100)), 1, {"adapter_model.safetensors"});
  EXPECT_EQ(Read(kAdapter), adapter);
  EXPECT_EQ(Run(TrainLlama(full + "--resume")).status, 0);
  EXPECT_EQ(Read(kAdapter), adapter);
}

TEST_F(BadRun, FullDiskWhileTheLogIsWritten) {
  const std::string prompt = "--method prompt --virtual-tokens 2 --steps 40 --checkpoint-every 3 ";
  ASSERT_EQ(Run(TrainLlama(prompt)).status, 0);
  const std::string expected = Read(kAdapter);
  std::filesystem::remove_all(Path("out"));
  ExpectError(Run(TrainLlama(prompt), FullAt(8)), 1, {"metrics.jsonl", "File too large"});
  ASSERT_TRUE(Exists(kState));
  EXPECT_FALSE(Exists(kAdapter));
  ExpectNoTemporaryFiles();
  EXPECT_EQ(Run(TrainLlama(prompt + "--resume")).status, 0);
  EXPECT_EQ(Read(kAdapter), expected);
  const std::vector<nlohmann::json> log = JsonLines(Read("out/metrics.jsonl"));
  ASSERT_EQ(log.size(), 40u);
  for (size_t i = 0; i < log.size(); ++i) EXPECT_EQ(log[i]["step"], i + 1);
}

TEST_F(BadRun, FullDiskInOtherCommands) {
  ExpectError(Run(Forward(base_, base_ + "/data.jsonl"), FullAt(8)), 1,
              {"out.safetensors", "File too large"});
  EXPECT_FALSE(Exists("out.safetensors"));
  ExpectError(Run("convert --base " + Quoted(base_) + " --out " + Quoted(Path("copy")), FullAt(8)),
              1, {"copy/model.safetensors"});
  EXPECT_FALSE(Exists("copy/config.json"));  // without it the folder is no base
  ExpectNoTemporaryFiles();
}

TEST_F(BadRun, LossThatIsNotFinite) {
  const std::string run =
      "--method prompt --virtual-tokens 2 --optimizer sgd --schedule constant --steps 30 ";
  ASSERT_EQ(Run(TrainLlama(run + "--lr 0.1")).status, 0);
  const std::string adapter = Read(kAdapter);
  ExpectBad(TrainLlama(run + "--lr 3e38 --checkpoint-every 1"),
            {"step ", "finite", "checkpoint is intact", "--lr"});
  ExpectFinite(Path(kState));
  EXPECT_EQ(Read(kAdapter), adapter);
  for (const nlohmann::json& line : JsonLines(Read("out/metrics.jsonl"))) {
    EXPECT_TRUE(line["loss"].is_number()) << line;
  }
  // Before any checkpoint there is none to promise.
  std::filesystem::remove_all(Path("out"));
  const Outcome o = Run(TrainLlama(run + "--lr 3e38"));
  ExpectError(o, 1, {"step ", "finite"});
  EXPECT_THAT(o.err, testing::Not(HasSubstr("is intact")));
  EXPECT_FALSE(Exists(kState));
}

TEST_F(BadRun, ResumeWithoutACheckpoint) {
  const std::string run = "--method prompt --virtual-tokens 2 --steps 2 ";
  ExpectBad(TrainLlama(run + "--resume"), {kState, "no checkpoint", "without --resume"});
  EXPECT_FALSE(Exists("out"));  // nothing was made
}

TEST_F(BadRun, ResumeFromADamagedCheckpoint) {
  const std::string run = "--method prompt --virtual-tokens 2 --steps 2 ";
  ASSERT_EQ(Run(TrainLlama(run)).status, 0);
  const std::string whole = Read(kState), log = Read("out/metrics.jsonl");
  const auto expect = [&](const std::string& bytes, const std::vector<std::string>& parts) {
    Write(kState, bytes);
    std::vector<std::string> all = parts;
    all.push_back("state.safetensors");
    ExpectBad(TrainLlama(run + "--resume"), all);
    EXPECT_EQ(Read("out/metrics.jsonl"), log);
  };
  expect("damaged", {});
  expect("", {});
  expect(whole.substr(0, whole.size() - 8), {});
  std::string flipped = whole;
  flipped[flipped.size() - 9] ^= 0x10;
  expect(flipped, {"damaged"});
  RawSafetensors state = RawSafetensors::Read(Path(kState));
  Write(kState, whole);
  state = RawSafetensors::Read(Path(kState));
  RawSafetensors changed = state;
  changed.Rename("parameter.prompt_embeddings", "parameter.nose");
  expect(changed.Bytes(), {"damaged", "parameter.prompt_embeddings"});
  for (const char* key : {"step", "last_loss", "settings"}) {
    changed = state;
    changed.header["__metadata__"].erase(key);
    expect(changed.Bytes(), {});
  }
  changed = state;
  changed.header["__metadata__"]["step"] = "-1";
  expect(changed.Bytes(), {"damaged"});
  changed = state;
  changed.SetFloat("parameter.prompt_embeddings", 0, std::nanf(""));
  expect(changed.Bytes(), {"damaged"});
  Write(kState, whole);
  EXPECT_EQ(Run(TrainLlama(run + "--resume")).status, 0);
}

TEST_F(BadRun, ResumeWithOtherSettings) {
  const std::string run = "--method prompt --virtual-tokens 2 --steps 2 ";
  ASSERT_EQ(Run(TrainLlama(run)).status, 0);
  const std::string adapter = Read(kAdapter);
  const auto expect = [&](const std::string& flags, const std::vector<std::string>& parts) {
    std::vector<std::string> all = parts;
    all.push_back("other settings");
    ExpectBad(TrainLlama(flags + " --resume"), all);
    EXPECT_EQ(Read(kAdapter), adapter);
  };
  expect(run + "--lr 0.5", {"lr: expected 0.5, found 0.03"});
  expect(run + "--seed 7 --clip 1", {"seed: expected 7, found 0", "clip: expected 1"});
  expect("--method prompt --virtual-tokens 3 --steps 2", {"virtual_tokens: expected 3, found 2"});
  expect("--method prompt --virtual-tokens 2 --steps 3", {"steps: expected 3, found 2"});
  expect("--method lora --steps 2", {"method: expected \"lora\", found \"prompt\""});
  expect(run + "--init random", {"init"});
  ExpectBad(Train(base_, GoodLine(), run + "--resume"), {"other settings", "data_hash"});
  RawSafetensors weights = RawSafetensors::Read(Copy(base_, "base") + "/model.safetensors");
  weights.SetFloat("model.norm.weight", 3, 0.5f);
  Write("base/model.safetensors", weights.Bytes());
  ExpectBad(Train(Path("base"), base_ + "/data.jsonl", run + "--resume"),
            {"other settings", "base_hash"});
  EXPECT_EQ(Run(TrainLlama(run + "--resume --threads 2")).status, 2);  // --threads twice
  EXPECT_EQ(Run(Train(base_, base_ + "/data.jsonl", run + "--resume --threads 2")).status, 0);
}

class Interrupt : public BadRun, public testing::WithParamInterface<int> {};

TEST_P(Interrupt, LeavesACheckpointToResumeFrom) {
  const std::string run = "--method lora --steps 300 --batch-size 3 ";
  ASSERT_EQ(Run(TrainLlama(run)).status, 0);
  const std::string expected = Read(kAdapter);
  std::filesystem::remove_all(Path("out"));
  Outcome o;
  {
    Process process(TrainLlama(run), "", Path("stdout.txt"), Path("stderr.txt"));
    ASSERT_TRUE(process.WaitUntil([&] { return Lines(Read("out/metrics.jsonl")).size() >= 5; }));
    process.Signal(GetParam());
    o = process.Wait();
  }
  ASSERT_EQ(o.status, 130) << o.err;
  EXPECT_EQ(o.out, "");
  EXPECT_EQ(Lines(o.err).size(), 1u) << o.err;
  EXPECT_THAT(o.err, HasSubstr("interrupted after step "));
  EXPECT_THAT(o.err, HasSubstr(Path("out") + "/checkpoint"));
  EXPECT_THAT(o.err, HasSubstr("--resume"));
  EXPECT_TRUE(Exists(kState));
  EXPECT_FALSE(Exists(kAdapter));
  EXPECT_EQ(Run(TrainLlama(run + "--resume")).status, 0);
  EXPECT_EQ(Read(kAdapter), expected);
  const std::vector<nlohmann::json> log = JsonLines(Read("out/metrics.jsonl"));
  ASSERT_EQ(log.size(), 300u);
  for (size_t i = 0; i < log.size(); ++i) EXPECT_EQ(log[i]["step"], i + 1);
}

INSTANTIATE_TEST_SUITE_P(Signals, Interrupt, testing::Values(SIGINT, SIGTERM),
                         [](const auto& info) {
                           return std::string(info.param == SIGINT ? "SIGINT" : "SIGTERM");
                         });

}  // namespace
}  // namespace permafrost
