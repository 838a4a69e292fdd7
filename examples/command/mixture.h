// Several data sets as one: --mixture FILE, a JSON list of parts.
#ifndef PERMAFROST_EXAMPLES_COMMAND_MIXTURE_H_
#define PERMAFROST_EXAMPLES_COMMAND_MIXTURE_H_

#include <string>
#include <vector>

#include "data.h"
#include "peft/mixture.h"

namespace permafrost {

// --mixture, --mixture-cap, --mixture-temperature
struct MixtureFlags {
  std::string file;
  int64_t cap = 0;
  double temperature = 1;
};
void AddMixtureFlags(CLI::App* app, MixtureFlags& flags);

struct Mixture {
  LoadedData data;  // of all parts, one behind the other
  std::vector<MixturePart> parts;
  std::vector<std::string> files;  // of the parts
};

// Reads the parts: [{"data": FILE, "task": ..., "rate": 2}, ...]. A part's keys are the flags of
// data (task, input, target, label_words, label_column, target_format, objective, noise_density,
// mean_span, max_tokens, truncate); a part that has none of the first eight takes all of them from
// `flags`. A relative FILE is taken from the mixture file's folder. Either every part has a rate
// (above 0) or none, which means proportional quotas. Errors name file and part.
absl::StatusOr<Mixture> LoadMixture(const MixtureFlags& mixture, const DataFlags& flags,
                                    const Session& session, const AdapterSet& adapters);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_MIXTURE_H_
