#include "peft/shots.h"

#include <map>

namespace permafrost {

std::vector<size_t> ChooseShots(absl::Span<const int> labels, int64_t count, Random& random) {
  std::map<int, std::vector<size_t>> by_label;
  for (size_t i = 0; i < labels.size(); ++i) by_label[labels[i]].push_back(i);
  std::vector<std::vector<size_t>> classes;
  for (auto& [label, members] : by_label) {
    random.Shuffle(members);
    classes.push_back(members);
  }
  random.Shuffle(classes);
  // One of each class in turn.
  std::vector<size_t> chosen;
  for (size_t round = 0; round < labels.size() && static_cast<int64_t>(chosen.size()) < count;
       ++round) {
    for (const std::vector<size_t>& members : classes) {
      if (round < members.size() && static_cast<int64_t>(chosen.size()) < count) {
        chosen.push_back(members[round]);
      }
    }
  }
  random.Shuffle(chosen);
  return chosen;
}

}  // namespace permafrost
