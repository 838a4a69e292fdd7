#include "peft/adapter_file.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "kernels/elementwise.h"
#include "peft/adapter_config.h"
#include "peft/full.h"
#include "peft/prompt_tuning.h"

namespace permafrost {

absl::StatusOr<Adapter> CreateAdapter(const AdapterConfig& config, int task, Context& c,
                                      const Model& model, Random& random, Tensor prompt) {
  Adapter adapter{config, nullptr};
  switch (config.kind) {
    case MethodKind::kPrompt:
      PERMAFROST_CHECK(prompt.rows() == config.virtual_tokens * config.submodules)
          << "CreateAdapter: prompt " << ToString(prompt.shape());
      adapter.method =
          std::make_unique<PromptTuning>(task, std::move(prompt), config.virtual_tokens);
      break;
    case MethodKind::kLora: {
      PERMAFROST_ASSIGN_OR_RETURN(adapter.method, Lora::Create(task, config.lora, model, random));
      break;
    }
    case MethodKind::kFull:
      adapter.method = std::make_unique<Full>(task, c, model);
      break;
  }
  return adapter;
}

absl::Status ReadParameters(const std::string& path, Method& method) {
  PERMAFROST_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  std::vector<std::string> problems;
  std::set<std::string> used;
  for (Parameter& p : method.parameters()) {
    const TensorView* t = file.Find(p.name());
    if (t == nullptr) {
      problems.push_back(absl::StrCat("missing ", p.name()));
      continue;
    }
    used.insert(p.name());
    const std::vector<int64_t> expected = method.FileShape(p);
    if (t->shape != expected) {
      problems.push_back(absl::StrCat(p.name(), ": expected [", absl::StrJoin(expected, ", "),
                                      "], found [", absl::StrJoin(t->shape, ", "), "]"));
      continue;
    }
    const absl::Span<float> out(p.value().f32(), static_cast<size_t>(p.count()));
    if (const absl::Status read = ReadAsF32(*t, 0, out); !read.ok()) {
      problems.push_back(std::string(read.message()));
      continue;
    }
    if (!kernels::cpu::AllFinite(out.data(), p.count())) {
      problems.push_back(absl::StrCat(p.name(), ": NaN or infinite values"));
    }
  }
  for (const TensorView& t : file.tensors()) {
    if (!used.contains(t.name)) problems.push_back(absl::StrCat("unused ", t.name));
  }
  if (problems.empty()) return absl::OkStatus();
  constexpr size_t kShown = 8;
  const size_t more = problems.size() > kShown ? problems.size() - kShown : 0;
  problems.resize(problems.size() - more);
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": tensors do not fit adapter_config.json and this base: ",
      absl::StrJoin(problems, "; "), more > 0 ? absl::StrCat(" and ", more, " more") : ""));
}

absl::Status WriteParameters(const std::string& path, const Method& method, bool gradients) {
  std::vector<Tensor> zeros;
  std::vector<TensorView> views;
  for (const Parameter& p : method.parameters()) {
    Tensor t = gradients ? p.gradient() : p.value();
    if (!t) {
      t = Tensor::Zeros(p.value().shape());
      zeros.push_back(t);
    }
    views.push_back(F32View(p.name(), method.FileShape(p), t.values()));
  }
  return WriteSafetensors(path, views);
}

absl::StatusOr<Adapter> LoadAdapter(const std::string& folder, int task, Context& c,
                                    const Model& model) {
  const std::string config_path = folder + "/adapter_config.json";
  const std::string weights_path = folder + "/adapter_model.safetensors";
  PERMAFROST_ASSIGN_OR_RETURN(const std::string text, ReadFile(config_path));
  PERMAFROST_ASSIGN_OR_RETURN(const AdapterConfig config,
                              ParseAdapterConfig(text, config_path, model));
  if (!std::filesystem::exists(weights_path) &&
      std::filesystem::exists(folder + "/adapter_model.bin")) {
    return absl::InvalidArgumentError(absl::StrCat(
        folder,
        "/adapter_model.bin: pickled weights can run code and are not read; expected "
        "adapter_model.safetensors: save the adapter again with PEFT's safe_serialization"));
  }
  Random random(0);
  Tensor prompt = config.kind == MethodKind::kPrompt
                      ? Tensor({config.virtual_tokens * config.submodules, model.info().width})
                      : Tensor();
  absl::StatusOr<Adapter> created =
      CreateAdapter(config, task, c, model, random, std::move(prompt));
  if (!created.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(config_path, ": ", std::string(created.status().message())));
  }
  Adapter adapter = *std::move(created);
  PERMAFROST_RETURN_IF_ERROR(ReadParameters(weights_path, *adapter.method));
  return adapter;
}

absl::Status SaveAdapter(const std::string& folder, const Adapter& adapter, const Model& model) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat(folder, ": cannot create the folder: ", error.message()));
  }
  PERMAFROST_RETURN_IF_ERROR(
      WriteParameters(folder + "/adapter_model.safetensors", *adapter.method, false));
  return WriteFileAtomically(folder + "/adapter_config.json",
                             AdapterConfigJson(adapter.config, model));
}

}  // namespace permafrost
