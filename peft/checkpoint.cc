#include "peft/checkpoint.h"

#include <cmath>
#include <filesystem>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/check.h"
#include "io/safetensors.h"

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

}  // namespace

absl::Status WriteCheckpoint(const std::string& out, const std::string& settings,
                             const Method& method, const Optimizer& optimizer,
                             const CheckpointState& state) {
  std::vector<TensorView> views;
  const auto tensors = AllTensors(method, optimizer);
  for (const auto& [name, t] : tensors) {
    views.push_back(F32View(name, {t.rows(), t.columns()}, t.values()));
  }
  std::map<std::string, std::string> metadata = {
      {"step", absl::StrCat(state.step)},
      {"last_loss", Exact(state.last_loss)},
      {"evaluations_since_best", absl::StrCat(state.evaluations_since_best)},
      {"stopped", state.stopped ? "1" : "0"},
      {"settings", settings}};
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
        absl::StrCat(path, ": the checkpoint was written with other settings: expected ", settings,
                     ", found ", field("settings")));
  }
  CheckpointState state;
  double best = 0;
  if (!absl::SimpleAtoi(field("step"), &state.step) ||
      !absl::SimpleAtod(field("last_loss"), &state.last_loss) ||
      !absl::SimpleAtoi(field("evaluations_since_best"), &state.evaluations_since_best)) {
    return absl::DataLossError(absl::StrCat(path, ": damaged checkpoint: metadata is incomplete"));
  }
  state.stopped = field("stopped") == "1";
  if (absl::SimpleAtod(field("best_quality"), &best)) state.best_quality = best;
  for (const auto& [name, t] : AllTensors(method, optimizer)) {
    const TensorView* view = file.Find(name);
    if (view == nullptr || view->shape != std::vector<int64_t>{t.rows(), t.columns()}) {
      return absl::DataLossError(absl::StrCat(path, ": damaged checkpoint: tensor ", name,
                                              " is missing or has another shape"));
    }
    PERMAFROST_RETURN_IF_ERROR(
        ReadAsF32(*view, 0, absl::MakeSpan(t.f32(), static_cast<size_t>(t.count()))));
  }
  optimizer.set_steps(state.step);
  return state;
}

}  // namespace permafrost
