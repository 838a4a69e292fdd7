// Runs every fuzz target on its valid files and on seeded random mutations of them, so that the
// normal and the sanitized test run exercise the readers with broken input.

#include <algorithm>
#include <chrono>
#include <random>

#include "gtest/gtest.h"
#include "tests/fuzz/targets.h"
#include "tests/io/test_files.h"

namespace permafrost {
namespace {

using Target = void (*)(const uint8_t*, size_t);

// A copy with 1 to 8 changes: flipped bits, interesting bytes, numbers, removed, repeated or moved
// ranges, cut ends.
std::string Mutate(std::string bytes, std::mt19937& random) {
  const auto below = [&](size_t limit) { return limit == 0 ? 0 : random() % limit; };
  const int changes = 1 + static_cast<int>(below(8));
  for (int i = 0; i < changes && !bytes.empty(); ++i) {
    // Headers matter most: half of the changes go into the first 256 bytes.
    const size_t at = below(below(2) == 0 ? std::min<size_t>(bytes.size(), 256) : bytes.size());
    const size_t length = std::min(below(16) + 1, bytes.size() - at);
    switch (below(8)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(random());
        break;
      case 2:
        bytes[at] = "\0\xff\x7f\x80\"{}[],:0-e\\"[below(15)];
        break;
      case 3:
        bytes.erase(at, length);
        break;
      case 4:
        bytes.insert(at, bytes.substr(at, length));
        break;
      case 5:
        bytes.replace(at, length, bytes.substr(below(bytes.size()), length));
        break;
      case 6:
        bytes.resize(at);
        break;
      case 7: {
        const uint64_t numbers[] = {
            0,         1,         0x7fffffff, 0xffffffff, uint64_t{1} << 32, uint64_t{1} << 62,
            INT64_MAX, UINT64_MAX};
        const std::string number = Raw(numbers[below(8)]);
        bytes.replace(at, std::min<size_t>(8, bytes.size() - at), number, 0,
                      std::min<size_t>(8, bytes.size() - at));
        break;
      }
    }
  }
  return bytes;
}

void FuzzFrom(Target target, const std::vector<std::string>& seeds) {
  std::mt19937 random(20260101);
  for (const std::string& seed : seeds) {
    target(reinterpret_cast<const uint8_t*>(seed.data()), seed.size());
  }
  // A fixed number of inputs keeps the run reproducible; the time limit keeps slow machines fast.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  for (int i = 0; i < 20000 && std::chrono::steady_clock::now() < end; ++i) {
    const std::string mutated = Mutate(seeds[random() % seeds.size()], random);
    // An exact heap copy: a sanitizer then sees a read one byte past the end.
    const std::vector<uint8_t> input(mutated.begin(), mutated.end());
    target(input.data(), input.size());
  }
}

std::string Golden(const std::string& name) { return GetFile(PERMAFROST_GOLDEN "/gguf/" + name); }

TEST(FuzzSmoke, Safetensors) {
  FuzzFrom(fuzz::Safetensors, {Golden("python.safetensors"), Golden("small.safetensors"),
                               Raw<uint64_t>(8) + "{}      "});
}

TEST(FuzzSmoke, Gguf) {
  FuzzFrom(fuzz::Gguf, {Golden("small.gguf"), Golden("small.gguf").substr(0, 500)});
}

TEST(FuzzSmoke, Json) {
  FuzzFrom(fuzz::Json,
           {R"({"d_model": 64, "act": "gelu_new", "eps": 1e-6, "n": null, "l": [1, -2.5, {}]})",
            R"([[[[[["deep", "\u00e4\ud83d\ude00\n"]]]], true, false], 18446744073709551615])",
            Golden("python.safetensors").substr(8, 700)});
}

TEST(FuzzSmoke, Npy) { FuzzFrom(fuzz::Npy, {Golden("f8.npy"), Golden("f4_v2.npy")}); }

}  // namespace
}  // namespace permafrost
