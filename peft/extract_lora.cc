#include "peft/extract_lora.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "peft/linear_algebra.h"

namespace permafrost {
namespace {

absl::Status CheckSameTensors(const Model& base, const Model& tuned) {
  const auto error = [&](const std::string& expected, const std::string& found) {
    return absl::InvalidArgumentError(
        absl::StrCat(tuned.info().path, ": another architecture than the base's: ", "expected ",
                     expected, ", found ", found));
  };
  const auto describe = [](const BaseTensor& t) {
    return absl::StrCat(t.name, " [", absl::StrJoin(t.shape, ", "), "]");
  };
  if (base.info().model_type != tuned.info().model_type) {
    return error(base.info().model_type, tuned.info().model_type);
  }
  const size_t count = std::min(base.tensors().size(), tuned.tensors().size());
  for (size_t i = 0; i < count; ++i) {
    const BaseTensor &a = base.tensors()[i], &b = tuned.tensors()[i];
    if (a.name != b.name || a.shape != b.shape) return error(describe(a), describe(b));
  }
  if (base.tensors().size() == tuned.tensors().size()) return absl::OkStatus();
  return error(absl::StrCat(base.tensors().size(), " tensors"),
               absl::StrCat(tuned.tensors().size()));
}

Tensor Values(Context& c, const BaseTensor& t) {
  return t.weight != nullptr ? t.weight->ToF32(c) : t.vector.Clone();
}

// tuned - base of a tensor, in the engine's shape.
Tensor Difference(Context& c, const Model& base, const Model& tuned, size_t tensor) {
  const Tensor difference = Values(c, tuned.tensors()[tensor]);
  const Tensor before = Values(c, base.tensors()[tensor]);
  for (int64_t i = 0; i < difference.count(); ++i) difference.f32()[i] -= before.f32()[i];
  return difference;
}

double Squares(const Tensor& t) {
  double sum = 0;
  for (const float v : t.values()) sum += static_cast<double>(v) * static_cast<double>(v);
  return sum;
}

// Ranks beyond the matrix's own stay zero.
void Fill(const Svd& svd, const LoraTerm& out) {
  std::fill_n(out.a.f32(), out.a.count(), 0.0f);
  std::fill_n(out.b.f32(), out.b.count(), 0.0f);
  for (int64_t k = 0; k < svd.s.columns(); ++k) {
    const float root = std::sqrt(svd.s.f32()[k]);
    for (int64_t d = 0; d < svd.v.rows(); ++d) out.a.row(k)[d] = root * svd.v.row(d)[k];
    for (int64_t n = 0; n < svd.u.rows(); ++n) out.b.row(n)[k] = root * svd.u.row(n)[k];
  }
}

}  // namespace

absl::StatusOr<Extraction> ExtractLora(Context& c, const Model& base, const Model& tuned,
                                       int64_t rank, const Targets& targets) {
  PERMAFROST_RETURN_IF_ERROR(CheckSameTensors(base, tuned));
  LoraConfig config;
  config.rank = rank;
  config.alpha = static_cast<double>(rank);
  config.targets = targets;
  Random random(0);
  Extraction result;
  PERMAFROST_ASSIGN_OR_RETURN(result.adapter, CreateAdapter(config, 0, c, base, random));
  const Lora& lora = static_cast<const Lora&>(*result.adapter.method);
  if (lora.acts_on_embeddings()) {
    return absl::InvalidArgumentError(
        absl::StrCat("LoRA to extract: expected linears among the targets, found an embedding in ",
                     absl::StrJoin(targets.modules, ", ")));
  }

  std::vector<bool> targeted(base.tensors().size());
  double covered = 0, left = 0, uncovered = 0;
  for (const LinearPlace& place : base.linears()) {
    const std::optional<LoraTerm> term = lora.TermOf(place.index);
    if (!term.has_value()) continue;
    const size_t tensor = static_cast<size_t>(place.weight);
    targeted[tensor] = true;
    const Svd svd = TruncatedSvd(Difference(c, base, tuned, tensor), rank);
    Fill(svd, *term);
    result.modules.push_back({place.module, svd.norm, svd.norm > 0 ? svd.residual / svd.norm : 0});
    covered += svd.norm * svd.norm;
    left += svd.residual * svd.residual;
  }
  if (covered == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(tuned.info().path, ": expected linears that differ from the base's in ",
                     absl::StrJoin(targets.modules, ", "), ", found none"));
  }
  for (size_t i = 0; i < targeted.size(); ++i) {
    if (!targeted[i]) uncovered += Squares(Difference(c, base, tuned, i));
  }
  result.error = std::sqrt(left / covered);
  result.uncovered = std::sqrt(uncovered / (covered + uncovered));
  return result;
}

}  // namespace permafrost
