#include "peft/combine.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/check.h"

namespace permafrost {
namespace {

using Parts = absl::Span<const WeightedAdapter>;

// y += factor * x, f32 values of equal shape.
void AddScaled(const Tensor& x, double factor, const Tensor& y) {
  for (int64_t i = 0; i < y.count(); ++i) {
    y.f32()[i] += static_cast<float>(factor * static_cast<double>(x.f32()[i]));
  }
}

const Lora& LoraOf(const WeightedAdapter& part) {
  return static_cast<const Lora&>(*part.adapter->method);
}

// What a LoRA has beside A and B at linears, which alone are combined; empty: nothing.
std::string BesideFactors(const WeightedAdapter& part) {
  const LoraConfig& config = std::get<LoraConfig>(part.adapter->config);
  if (config.dora) return "magnitudes (DoRA)";
  if (config.lora_bias) return "biases of B (lora_bias)";
  if (config.bias != LoraBias::kNone) return "biases of the base (bias)";
  if (!config.modules_to_save.empty()) return "whole modules (modules_to_save)";
  if (config.gate.trained()) return "gates";
  return LoraOf(part).acts_on_embeddings() ? "factors of an embedding" : "";
}

// What the adapters have at a linear.
struct Term {
  LoraTerm lora;
  double weight = 0;
};
std::vector<Term> TermsOf(Parts parts, const LinearPlace& place) {
  std::vector<Term> terms;
  for (const WeightedAdapter& part : parts) {
    const std::optional<LoraTerm> lora = LoraOf(part).TermOf(place.index);
    if (lora.has_value()) terms.push_back({*lora, part.weight});
  }
  return terms;
}

bool SameTargets(const Targets& a, const Targets& b) {
  return a.modules == b.modules && a.modules_are_regex == b.modules_are_regex &&
         a.exclude == b.exclude && a.exclude_is_regex == b.exclude_is_regex && a.layers == b.layers;
}

// The targets that all have, or by full names the modules that any has.
Targets JointTargets(Parts parts, const Model& model) {
  const auto targets = [&](size_t i) -> const Targets& {
    return std::get<LoraConfig>(parts[i].adapter->config).targets;
  };
  bool same = true;
  for (size_t i = 1; i < parts.size(); ++i) same = same && SameTargets(targets(0), targets(i));
  if (same) return targets(0);
  Targets joint;
  for (const LinearPlace& place : model.linears()) {
    if (!TermsOf(parts, place).empty()) joint.modules.push_back(place.module);
  }
  return joint;
}

// The rank of the result: equal for all terms, or their largest sum at a linear.
absl::StatusOr<int64_t> JointRank(Combination how, Parts parts, const Model& model) {
  int64_t rank = 0;
  for (const LinearPlace& place : model.linears()) {
    int64_t sum = 0;
    for (const Term& term : TermsOf(parts, place)) {
      const int64_t own = term.lora.a.rows();
      if (how != Combination::kCat && rank != 0 && own != rank) {
        return absl::InvalidArgumentError(
            absl::StrCat("LoRAs to add: expected one rank in all modules of all adapters, found ",
                         rank, " and ", own, " (", place.module, "); --combine cat takes any"));
      }
      sum += own;
      if (how != Combination::kCat) rank = own;
    }
    if (how == Combination::kCat) rank = std::max(rank, sum);
  }
  return rank;
}

void FillLinear(const std::vector<Term>& terms, const LoraTerm& out) {
  for (const Term& term : terms) {
    const double factor = term.weight * term.lora.scale, root = std::sqrt(std::abs(factor));
    AddScaled(term.lora.a, factor < 0 ? -root : root, out.a);
    AddScaled(term.lora.b, root, out.b);
  }
}

void FillAverage(const std::vector<Term>& terms, const LoraTerm& out) {
  for (const Term& term : terms) {
    const double root = term.weight * std::sqrt(std::abs(term.lora.scale));
    AddScaled(term.lora.a, term.lora.scale < 0 ? -root : root, out.a);
    AddScaled(term.lora.b, root, out.b);
  }
}

void FillCat(const std::vector<Term>& terms, const LoraTerm& out) {
  int64_t begin = 0;
  for (const Term& term : terms) {
    const int64_t rank = term.lora.a.rows();
    AddScaled(term.lora.a, term.weight * term.lora.scale, out.a.RowRange(begin, rank));
    for (int64_t n = 0; n < out.b.rows(); ++n) {
      std::copy_n(term.lora.b.row(n), rank, out.b.row(n) + begin);
    }
    begin += rank;
  }
}

absl::StatusOr<Adapter> CombineLoras(Combination how, Parts parts, Context& c, const Model& model) {
  LoraConfig config;
  PERMAFROST_ASSIGN_OR_RETURN(config.rank, JointRank(how, parts, model));
  config.alpha = static_cast<double>(config.rank);
  config.targets = JointTargets(parts, model);
  Random random(0);
  PERMAFROST_ASSIGN_OR_RETURN(Adapter result, CreateAdapter(config, 0, c, model, random));
  for (const Parameter& p : result.method->parameters()) {
    std::fill_n(p.value().f32(), p.count(), 0.0f);
  }
  for (const LinearPlace& place : model.linears()) {
    const std::vector<Term> terms = TermsOf(parts, place);
    if (terms.empty()) continue;
    const LoraTerm out = *static_cast<const Lora&>(*result.method).TermOf(place.index);
    if (how == Combination::kCat) {
      FillCat(terms, out);
    } else {
      how == Combination::kLinear ? FillLinear(terms, out) : FillAverage(terms, out);
    }
  }
  return result;
}

absl::StatusOr<Adapter> CombinePrompts(Combination how, Parts parts) {
  const std::string input = parts[0].adapter->method->InputTemplate();
  int64_t rows = 0;
  for (const WeightedAdapter& part : parts) {
    const std::string own = part.adapter->method->InputTemplate();
    if (own != input || (how == Combination::kCat && !own.empty())) {
      return absl::InvalidArgumentError(
          absl::StrCat("prompts to combine: expected ",
                       how == Combination::kCat ? "virtual tokens in front" : "one input template",
                       ", found \"", input, "\" and \"", own, "\""));
    }
    const int64_t own_rows = AsPrompt(*part.adapter)->prompt().rows();
    if (how != Combination::kCat && rows != 0 && own_rows != rows) {
      return absl::InvalidArgumentError(
          absl::StrCat("prompts to add: expected equally many virtual tokens, found ", rows,
                       " and ", own_rows, "; --combine cat takes any"));
    }
    rows = how == Combination::kCat ? rows + own_rows : own_rows;
  }
  const Tensor table = Tensor::Zeros({rows, AsPrompt(*parts[0].adapter)->prompt().columns()});
  int64_t begin = 0;
  for (const WeightedAdapter& part : parts) {
    const Tensor prompt = AsPrompt(*part.adapter)->prompt();
    AddScaled(prompt, part.weight, table.RowRange(begin, prompt.rows()));
    if (how == Combination::kCat) begin += prompt.rows();
  }
  return PromptAdapter(0, table, input);
}

}  // namespace

absl::StatusOr<Adapter> CombineAdapters(Combination how, Parts parts, Context& c,
                                        const Model& model) {
  if (parts.empty()) {
    return absl::InvalidArgumentError("adapters to combine: expected at least one, found none");
  }
  for (const WeightedAdapter& part : parts) {
    const AdapterConfig& config = part.adapter->config;
    const bool possible =
        std::holds_alternative<LoraConfig>(config) || AsPrompt(*part.adapter) != nullptr;
    if (!possible || config.index() != parts[0].adapter->config.index()) {
      return absl::InvalidArgumentError(
          absl::StrCat("adapters to combine: expected LoRAs only or prompts only, found ",
                       MethodTitle(parts[0].adapter->config), " and ", MethodTitle(config)));
    }
    if (!std::holds_alternative<LoraConfig>(config)) continue;
    const std::string beside = BesideFactors(part);
    if (!beside.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "adapters to combine: expected LoRAs of A and B at linears alone, found one with ",
          beside));
    }
  }
  std::vector<WeightedAdapter> weighted(parts.begin(), parts.end());
  if (how == Combination::kAverage) {
    double sum = 0;
    for (const WeightedAdapter& part : parts) sum += part.weight;
    if (sum == 0) {
      return absl::InvalidArgumentError("weights to average: expected a sum other than 0, found 0");
    }
    for (WeightedAdapter& part : weighted) part.weight /= sum;
  }
  return AsPrompt(*parts[0].adapter) != nullptr ? CombinePrompts(how, weighted)
                                                : CombineLoras(how, weighted, c, model);
}

}  // namespace permafrost
