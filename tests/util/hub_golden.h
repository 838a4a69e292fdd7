// A folder of tests/golden/adapterhub: a base, lines, AdapterHub folders and what the library
// computes with them (tests/golden/README.md).
#ifndef PERMAFROST_TESTS_UTIL_HUB_GOLDEN_H_
#define PERMAFROST_TESTS_UTIL_HUB_GOLDEN_H_

#include <string>
#include <vector>

#include "tests/util/golden_case.h"

namespace permafrost {

struct HubGolden {
  GoldenCase golden;               // folder, lines, expected figures, case.json
  std::string base;                // folder of the base
  std::vector<std::string> names;  // of the adapters, in the order of the file
};

inline std::vector<std::string> HubGoldenNames() {
  return {"gpt2-1", "llama-2", "llama-square", "mistral-1", "qwen2-1", "t5-v1_0-2", "t5-v1_1-1"};
}

inline HubGolden OpenHubGolden(const std::string& name) {
  HubGolden hub{.golden = OpenGoldenCase("../adapterhub/" + name), .base = "", .names = {}};
  hub.base = absl::StrCat(hub.golden.folder, "/", hub.golden.settings["base"].get<std::string>());
  for (const auto& [adapter, entry] : hub.golden.settings["adapters"].items()) {
    hub.names.push_back(adapter);
  }
  return hub;
}

}  // namespace permafrost

#endif  // PERMAFROST_TESTS_UTIL_HUB_GOLDEN_H_
