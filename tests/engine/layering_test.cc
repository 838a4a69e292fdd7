// The includes of every source against the layer table of docs/architecture.md, and the limit on
// file length.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace permafrost {
namespace {

namespace fs = std::filesystem;

constexpr int kLongestFile = 500;

struct SourceFile {
  std::string path;    // from the repository's root, with '/'
  std::string folder;  // its first part
  int lines = 0;
  std::vector<std::string> quoted, angled;
};

std::vector<SourceFile> Sources(const std::vector<std::string>& folders) {
  static const std::regex kInclude(R"re(^\s*#\s*include\s*(["<])([^">]+)[">])re");
  const std::set<std::string> kExtensions = {".h", ".cc", ".cu", ".cuh"};
  const fs::path root = PERMAFROST_SOURCE_DIR;
  std::vector<SourceFile> files;
  for (const std::string& folder : folders) {
    if (!fs::is_directory(root / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      if (kExtensions.count(entry.path().extension().string()) == 0) continue;
      SourceFile file;
      file.path = fs::relative(entry.path(), root).generic_string();
      file.folder = folder;
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line); ++file.lines) {
        std::smatch match;
        if (!std::regex_search(line, match, kInclude)) continue;
        (match[1] == "\"" ? file.quoted : file.angled).push_back(match[2]);
      }
      files.push_back(std::move(file));
    }
  }
  return files;
}

bool StartsWith(const std::string& text, const std::string& prefix) {
  return text.rfind(prefix, 0) == 0;
}

std::string FirstPart(const std::string& path) { return path.substr(0, path.find('/')); }

const std::vector<std::string> kLayers = {"kernels", "engine", "io", "models", "peft", "examples"};

// Layers as a chain: a folder includes itself and what stands before it.
TEST(Layering, FoldersIncludeLowerLayersOnly) {
  const std::vector<SourceFile> files = Sources(kLayers);
  ASSERT_GT(files.size(), 50u);
  std::map<std::string, size_t> rank;
  for (size_t i = 0; i < kLayers.size(); ++i) rank[kLayers[i]] = i;
  for (const SourceFile& file : files) {
    for (const std::string& include : file.quoted) {
      const auto it = rank.find(FirstPart(include));
      if (it == rank.end()) {
        // Nothing from tests or benchmarks; in the library, paths from the repository's root.
        EXPECT_NE(FirstPart(include), "tests") << file.path << " includes " << include;
        EXPECT_NE(FirstPart(include), "bench") << file.path << " includes " << include;
        if (file.folder != "examples") {
          EXPECT_NE(include.find('/'), std::string::npos) << file.path << " includes " << include;
        }
        continue;
      }
      EXPECT_LE(it->second, rank[file.folder]) << file.path << " includes " << include;
    }
  }
}

TEST(Layering, KernelsKnowNobody) {
  for (const SourceFile& file : Sources({"kernels"})) {
    for (const std::string& include : file.quoted) {
      if (StartsWith(include, "hwy/")) {
        EXPECT_TRUE(StartsWith(file.path, "kernels/cpu/")) << file.path << " includes " << include;
      } else {
        EXPECT_TRUE(StartsWith(include, "kernels/")) << file.path << " includes " << include;
      }
    }
    for (const std::string& include : file.angled) {
      EXPECT_FALSE(StartsWith(include, "absl/")) << file.path;
      EXPECT_TRUE(!StartsWith(include, "hwy/") || StartsWith(file.path, "kernels/cpu/"))
          << file.path;
    }
  }
}

TEST(Layering, HighwayIsForKernelsOnly) {
  for (const SourceFile& file : Sources({"engine", "io", "models", "peft", "examples"})) {
    for (const std::string& include : file.quoted) {
      EXPECT_FALSE(StartsWith(include, "hwy/")) << file.path;
      // Argument structs, not implementations.
      EXPECT_FALSE(StartsWith(include, "kernels/cpu/")) << file.path << " includes " << include;
      EXPECT_FALSE(StartsWith(include, "kernels/reference/"))
          << file.path << " includes " << include;
    }
  }
}

// A frozen base has no trainable tensor and knows no method.
TEST(Layering, ModelsKnowNoParameter) {
  for (const SourceFile& file : Sources({"models", "io"})) {
    for (const std::string& include : file.quoted) {
      EXPECT_NE(include, "engine/parameter.h") << file.path;
      EXPECT_FALSE(StartsWith(include, "engine/optim/")) << file.path << " includes " << include;
    }
  }
}

// A method knows places and no model.
TEST(Layering, MethodsKnowNoModelFamily) {
  for (const SourceFile& file : Sources({"peft"})) {
    for (const std::string& include : file.quoted) {
      EXPECT_NE(include, "models/t5.h") << file.path;
      EXPECT_NE(include, "models/decoder.h") << file.path;
    }
  }
}

TEST(Layering, FilesAreShort) {
  std::vector<std::string> folders = kLayers;
  folders.insert(folders.end(), {"tests", "bench"});
  for (const SourceFile& file : Sources(folders)) {
    EXPECT_LE(file.lines, kLongestFile) << file.path;
  }
}

TEST(Layering, HeadersHaveGuardsByPath) {
  std::vector<std::string> folders = kLayers;
  folders.push_back("tests");
  for (const SourceFile& file : Sources(folders)) {
    if (fs::path(file.path).extension() != ".h") continue;
    if (file.path.find("-inl.h") != std::string::npos) continue;  // Highway's, included repeatedly
    std::string guard = "PERMAFROST_" + file.path + "_";
    for (char& c : guard)
      c = std::isalnum(static_cast<unsigned char>(c)) != 0
              ? static_cast<char>(std::toupper(static_cast<unsigned char>(c)))
              : '_';
    std::ifstream in(fs::path(PERMAFROST_SOURCE_DIR) / file.path);
    const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    EXPECT_NE(text.find("#ifndef " + guard + "\n#define " + guard + "\n"), std::string::npos)
        << file.path << ": expected " << guard;
  }
}

}  // namespace
}  // namespace permafrost
