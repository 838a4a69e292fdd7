// Running the permafrost command as a user does, and the folders and files of its tests.
#ifndef PERMAFROST_TESTS_CLI_COMMAND_TEST_UTIL_H_
#define PERMAFROST_TESTS_CLI_COMMAND_TEST_UTIL_H_

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace permafrost {

inline std::string GoldenModel(const std::string& name) {
  return PERMAFROST_GOLDEN "/models/" + name;
}
inline std::string GoldenAdapter(const std::string& model, const std::string& kind) {
  return GoldenModel(model) + "/adapters/" + kind;
}
// A real base with a tokenizer.
inline std::string Stories() {
  return PERMAFROST_SOURCE_DIR "/tests/data/stories260k/stories260K.gguf";
}
// Real classification data: text, label (ham or spam).
inline std::string SmsSpam(const std::string& name) {
  return PERMAFROST_SOURCE_DIR "/examples/data/sms_spam/" + name;
}

inline std::string Quoted(const std::string& path) { return "'" + path + "'"; }

inline std::string ReadWhole(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

inline std::vector<nlohmann::json> JsonLines(const std::string& text) {
  std::vector<nlohmann::json> objects;
  for (const std::string& line : Lines(text)) {
    objects.push_back(nlohmann::json::parse(line, nullptr, false));
    EXPECT_FALSE(objects.back().is_discarded()) << line;
  }
  return objects;
}

struct Outcome {
  int status = -1;  // -1: ended by a signal
  std::string out, err;
};

// The command while it runs. `arguments` and `before` (such as "ulimit -f 4;") go through the
// shell, which the command replaces, so that a signal reaches the command itself.
class Process {
 public:
  Process(const std::string& arguments, const std::string& before, const std::string& out,
          const std::string& err)
      : out_(out), err_(err) {
    const std::string line = before + " exec " + Quoted(PERMAFROST_BINARY) + " " + arguments;
    pid_ = fork();
    if (pid_ != 0) return;
    const int o = open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    const int e = open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(o, STDOUT_FILENO);
    dup2(e, STDERR_FILENO);
    execl("/bin/sh", "sh", "-c", line.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() {
    if (running_) {
      Signal(SIGKILL);
      Wait();
    }
  }

  void Signal(int signal) const { kill(pid_, signal); }
  bool Running() {
    if (running_ && waitpid(pid_, &state_, WNOHANG) == pid_) running_ = false;
    return running_;
  }
  // Until `condition` holds; false if the command ended or a minute passed first.
  bool WaitUntil(const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (!condition()) {
      if (!Running() || std::chrono::steady_clock::now() > end) return condition();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }
  Outcome Wait() {
    if (running_) waitpid(pid_, &state_, 0);
    running_ = false;
    return {WIFEXITED(state_) ? WEXITSTATUS(state_) : -1, ReadWhole(out_), ReadWhole(err_)};
  }

 private:
  std::string out_, err_;
  pid_t pid_ = -1;
  int state_ = 0;
  bool running_ = true;
};

// A test with a folder of its own.
class CommandTest : public testing::Test {
 protected:
  void SetUp() override {
    const testing::TestInfo* info = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string(info->test_suite_name()) + "_" + info->name();
    std::replace(name.begin(), name.end(), '/', '_');
    folder_ = testing::TempDir() + "permafrost_" + std::to_string(getpid()) + "_" + name;
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  bool Exists(const std::string& name) const { return std::filesystem::exists(Path(name)); }
  std::string Read(const std::string& name) const { return ReadWhole(Path(name)); }
  std::string Write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(Path(name)).parent_path());
    std::ofstream(Path(name), std::ios::binary) << text;
    return Path(name);
  }
  // A copy of a folder to damage.
  std::string Copy(const std::string& from, const std::string& name) const {
    std::filesystem::remove_all(Path(name));
    std::filesystem::copy(from, Path(name), std::filesystem::copy_options::recursive);
    return Path(name);
  }

  Outcome Run(const std::string& arguments, const std::string& before = "") const {
    return Process(arguments, before, Path("stdout.txt"), Path("stderr.txt")).Wait();
  }
  // Standard output of a run that must succeed.
  std::string Output(const std::string& arguments) const {
    const Outcome o = Run(arguments);
    EXPECT_EQ(o.status, 0) << arguments << "\n" << o.err;
    return o.out;
  }
  nlohmann::json Json(const std::string& arguments) const {
    const std::string text = Output(arguments);
    nlohmann::json object = nlohmann::json::parse(text, nullptr, false);
    EXPECT_FALSE(object.is_discarded()) << text;
    return object;
  }

  // One line of standard error, `error: ...` with all `parts`, and nothing on standard output.
  static void ExpectError(const Outcome& o, int status, const std::vector<std::string>& parts) {
    EXPECT_EQ(o.status, status) << o.err;
    EXPECT_EQ(o.out, "");
    EXPECT_THAT(o.err, testing::StartsWith("error: "));
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
    EXPECT_THAT(o.err, testing::EndsWith("\n"));
    for (const std::string& part : parts) EXPECT_THAT(o.err, testing::HasSubstr(part));
  }
  void ExpectBad(const std::string& arguments, const std::vector<std::string>& parts,
                 int status = 1) const {
    SCOPED_TRACE(arguments);
    ExpectError(Run(arguments), status, parts);
  }

  std::string Forward(const std::string& base, const std::string& data,
                      const std::string& more = "") const {
    return "forward --threads 1 --base " + Quoted(base) + " --data " + Quoted(data) + " --out " +
           Quoted(Path("out.safetensors")) + " " + more;
  }
  std::string Train(const std::string& base, const std::string& data,
                    const std::string& more) const {
    return "train --quiet --base " + Quoted(base) + " --data " + Quoted(data) + " --out " +
           Quoted(Path("out")) + " " + more;
  }
  // Three tokens that any golden base reads.
  std::string GoodLine() const {
    return Write("good.jsonl", "{\"input_ids\": [5, 6, 7], \"labels\": [-100, 6, 7]}\n");
  }

  std::string folder_;
};

}  // namespace permafrost

#endif  // PERMAFROST_TESTS_CLI_COMMAND_TEST_UTIL_H_
