#include "peft/prompt_init.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "io/npy.h"
#include "kernels/elementwise.h"
#include "peft/adapter_file.h"

namespace permafrost {
namespace {

std::vector<int32_t> SampleIds(int64_t count, int64_t most_common, int64_t vocabulary,
                               Random& random) {
  const int64_t limit = std::min(most_common, vocabulary);
  std::vector<int32_t> ids;
  if (count > limit) {
    for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random.Below(limit)));
    return ids;
  }
  std::vector<int32_t> all(static_cast<size_t>(limit));
  std::iota(all.begin(), all.end(), 0);
  random.Shuffle(all);
  all.resize(static_cast<size_t>(count));
  return all;
}

}  // namespace

Tensor SampledVocabularyPrompt(Context& c, const Model& model, int64_t virtual_tokens,
                               int64_t most_common, Random& random) {
  return model.embedding().Rows(
      c, SampleIds(virtual_tokens, most_common, model.info().vocabulary, random));
}

Tensor LabelPrompt(Context& c, const Model& model, int64_t virtual_tokens,
                   const std::vector<std::vector<int>>& labels, int64_t most_common,
                   Random& random) {
  Tensor prompt = SampledVocabularyPrompt(c, model, virtual_tokens, most_common, random);
  for (size_t i = 0; i < labels.size() && static_cast<int64_t>(i) < virtual_tokens; ++i) {
    if (labels[i].empty()) continue;
    const Tensor pieces =
        model.embedding().Rows(c, std::vector<int32_t>(labels[i].begin(), labels[i].end()));
    float* row = prompt.row(static_cast<int64_t>(i));
    for (int64_t d = 0; d < prompt.columns(); ++d) {
      double sum = 0;
      for (int64_t p = 0; p < pieces.rows(); ++p) sum += pieces.row(p)[d];
      row[d] = static_cast<float>(sum / static_cast<double>(pieces.rows()));
    }
  }
  return prompt;
}

Tensor TextPrompt(Context& c, const Model& model, int64_t virtual_tokens,
                  const std::vector<int>& ids) {
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < virtual_tokens; ++i) {
    rows.push_back(static_cast<int32_t>(ids[static_cast<size_t>(i) % ids.size()]));
  }
  return model.embedding().Rows(c, rows);
}

absl::StatusOr<Tensor> ReadPromptFile(const std::string& path, Context& c, const Model& model) {
  if (!absl::EndsWith(path, ".npy")) {
    PERMAFROST_ASSIGN_OR_RETURN(const Adapter adapter, LoadAdapter(path, 0, c, model));
    const PromptTuning* prompt = AsPrompt(adapter);
    if (prompt == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": expected a prompt adapter"));
    }
    return prompt->prompt().Clone();
  }
  PERMAFROST_ASSIGN_OR_RETURN(const NpyArray array, ReadNpy(path));
  const int64_t width = model.info().width;
  if (array.shape.size() != 2 || array.shape[1] != width || array.shape[0] < 1) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a prompt [P, ", width,
                                                   "] for this base, found [",
                                                   absl::StrJoin(array.shape, ", "), "]"));
  }
  if (!kernels::cpu::AllFinite(array.values.data(), static_cast<int64_t>(array.values.size()))) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": NaN or infinite values"));
  }
  return Tensor::From({array.shape[0], width}, array.values);
}

}  // namespace permafrost
