#include "peft/checkpoint.h"

#include <filesystem>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "io/bytes.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

std::string PathOf(const std::string& out) { return out + "/checkpoint/state.safetensors"; }

std::vector<std::pair<std::string, Tensor>> AllTensors(const Method& method,
                                                       const Optimizer& optimizer) {
  std::vector<std::pair<std::string, Tensor>> all = optimizer.State();
  for (const Parameter& p : method.parameters())
    all.emplace_back("parameter." + p.name(), p.value());
  return all;
}

std::string Exact(double value) { return absl::StrFormat("%.17g", value); }

// Of all values; a disk that gives back other bytes is noticed.
std::string FingerprintOf(const std::vector<std::pair<std::string, Tensor>>& tensors) {
  uint64_t hash = kFingerprintSeed;
  for (const auto& [name, t] : tensors) {
    hash = Fingerprint(name.data(), name.size(), hash);
    hash = Fingerprint(t.f32(), static_cast<size_t>(t.count()) * sizeof(float), hash);
  }
  return absl::StrFormat("%016x", hash);
}

// The fields in which two JSON objects differ: "lr: expected 0.5, found 0.03".
std::string Differences(const std::string& expected, const std::string& found) {
  const absl::StatusOr<nlohmann::json> a = ParseJson(expected, "expected"),
                                       b = ParseJson(found, "found");
  if (!a.ok() || !b.ok() || !a->is_object() || !b->is_object()) {
    return absl::StrCat("expected ", expected, ", found ", found);
  }
  const auto text = [](const nlohmann::json& object, const std::string& key) {
    return object.contains(key) ? DumpJson(object[key]) : std::string("nothing");
  };
  std::set<std::string> keys;
  for (const auto& [key, value] : a->items()) keys.insert(key);
  for (const auto& [key, value] : b->items()) keys.insert(key);
  std::vector<std::string> different;
  for (const std::string& key : keys) {
    if (text(*a, key) == text(*b, key)) continue;
    different.push_back(absl::StrCat(key, ": expected ", text(*a, key), ", found ", text(*b, key)));
  }
  return absl::StrJoin(different, "; ");
}

}  // namespace

absl::Status WriteCheckpoint(const std::string& out, const std::string& settings,
                             const Method& method, const Optimizer& optimizer,
                             const CheckpointState& state) {
  std::vector<TensorView> views;
  const auto tensors = AllTensors(method, optimizer);
  views.reserve(tensors.size());
  for (const auto& [name, t] : tensors) {
    views.push_back(F32View(name, {t.rows(), t.columns()}, t.values()));
  }
  std::map<std::string, std::string> metadata = {
      {"step", absl::StrCat(state.step)},
      {"last_loss", Exact(state.last_loss)},
      {"evaluations_since_best", absl::StrCat(state.evaluations_since_best)},
      {"stopped", state.stopped ? "1" : "0"},
      {"settings", settings},
      {"fingerprint", FingerprintOf(tensors)}};
  if (state.best_quality.has_value()) metadata["best_quality"] = Exact(*state.best_quality);
  return WriteSafetensors(PathOf(out), views, metadata);
}

absl::StatusOr<CheckpointState> ReadCheckpoint(const std::string& out, const std::string& settings,
                                               Method& method, Optimizer& optimizer) {
  const std::string path = PathOf(out);
  if (!std::filesystem::exists(path)) {
    return absl::NotFoundError(
        absl::StrCat(path, ": no checkpoint to resume from; start the run without --resume"));
  }
  PERMAFROST_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  const auto& metadata = file.metadata();
  const auto field = [&](const std::string& name) {
    const auto it = metadata.find(name);
    return it == metadata.end() ? std::string() : it->second;
  };
  if (field("settings") != settings) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": the checkpoint was written with other settings: ",
                     Differences(settings, field("settings")),
                     "; resume with those, or start anew without --resume"));
  }
  CheckpointState state;
  double best = 0;
  if (!absl::SimpleAtoi(field("step"), &state.step) || state.step < 0 ||
      !absl::SimpleAtod(field("last_loss"), &state.last_loss) ||
      !absl::SimpleAtoi(field("evaluations_since_best"), &state.evaluations_since_best)) {
    return absl::DataLossError(absl::StrCat(path, ": damaged checkpoint: metadata is incomplete"));
  }
  state.stopped = field("stopped") == "1";
  if (absl::SimpleAtod(field("best_quality"), &best)) state.best_quality = best;
  const auto tensors = AllTensors(method, optimizer);
  for (const auto& [name, t] : tensors) {
    const TensorView* view = file.Find(name);
    if (view == nullptr || view->shape != std::vector<int64_t>{t.rows(), t.columns()}) {
      return absl::DataLossError(absl::StrCat(path, ": damaged checkpoint: tensor ", name,
                                              " is missing or has another shape"));
    }
    PERMAFROST_RETURN_IF_ERROR(
        ReadAsF32(*view, 0, absl::MakeSpan(t.f32(), static_cast<size_t>(t.count()))));
  }
  if (field("fingerprint") != FingerprintOf(tensors)) {
    return absl::DataLossError(
        absl::StrCat(path, ": damaged checkpoint: the tensors are not the ones that were written"));
  }
  optimizer.set_steps(state.step);
  return state;
}

}  // namespace permafrost
