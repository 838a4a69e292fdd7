#include "peft/adalora.h"

#include <algorithm>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/check.h"

namespace permafrost {

absl::StatusOr<std::unique_ptr<AdaLora>> AdaLora::Create(int task, const AdaLoraConfig& config,
                                                         const Model& model, Random& random) {
  constexpr double kDeviation = 0.02;
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> targets, MatchTargets(config.targets, model));
  std::map<std::string, int64_t> ranks;
  for (const auto& [module, kept] : config.kept) {
    ranks[module] = static_cast<int64_t>(std::count(kept.begin(), kept.end(), true));
  }
  auto adalora = std::unique_ptr<AdaLora>(new AdaLora(task));
  ParameterList& parameters = adalora->parameters_;
  adalora->triples_.resize(model.linears().size());
  for (const int index : targets) {
    const LinearPlace& place = model.linears()[static_cast<size_t>(index)];
    int64_t rank = config.rank;
    if (const auto it = ranks.find(place.module); it != ranks.end()) {
      rank = it->second;
      ranks.erase(it);
    }
    const std::string name = absl::StrCat("base_model.model.", place.module);
    const double scale = config.alpha / (static_cast<double>(config.rank) + 1e-5);
    adalora->triples_[static_cast<size_t>(index)] =
        Triple{.a = parameters.size(),
               .b = parameters.size() + 1,
               .e = parameters.size() + 2,
               .options = {.scale = static_cast<float>(scale),
                           .dropout = static_cast<float>(config.dropout),
                           .mask = {}}};
    parameters.Add(name + ".lora_A", NormalTensor({rank, place.inputs}, kDeviation, random));
    parameters.Add(name + ".lora_B", NormalTensor({place.outputs, rank}, kDeviation, random));
    parameters.Add(name + ".lora_E", Tensor::Zeros({rank, 1}));
  }
  if (!ranks.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank_pattern: expected modules among the targets, "
                     "found ",
                     ranks.begin()->first));
  }
  return adalora;
}

Var AdaLora::OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
                      const PlaceRows& rows) {
  const std::optional<Triple>& triple = triples_[static_cast<size_t>(place.index)];
  if (!triple.has_value()) return y;
  const std::vector<TaskSpan> own = Own(rows.spans);
  const Var& a = parameters_[triple->a].var();
  if (own.empty() || a.rows() == 0) return y;
  const Var scaled = ScaleRows(c, a, parameters_[triple->e].var());
  LowRank options = triple->options;
  options.mask = MaskOf(static_cast<uint32_t>(place.index));
  return AddLowRank(c, std::move(y), x, scaled, parameters_[triple->b].var(), options, own);
}

void AdaLora::MergeInto(const Model& model, std::vector<Tensor>& values) const {
  for (const LinearPlace& place : model.linears()) {
    const std::optional<Triple>& triple = triples_[static_cast<size_t>(place.index)];
    if (!triple.has_value()) continue;
    const Tensor& a = parameters_[triple->a].value();
    const Tensor& b = parameters_[triple->b].value();
    const Tensor& e = parameters_[triple->e].value();
    const Tensor& w = values[static_cast<size_t>(place.weight)];
    for (int64_t n = 0; n < w.rows(); ++n) {
      for (int64_t k = 0; k < w.columns(); ++k) {
        double sum = 0;
        for (int64_t r = 0; r < a.rows(); ++r) {
          sum += static_cast<double>(b.row(n)[r]) * e.f32()[r] * a.row(r)[k];
        }
        w.row(n)[k] += triple->options.scale * static_cast<float>(sum);
      }
    }
  }
}

}  // namespace permafrost
