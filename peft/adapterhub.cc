#include "peft/adapterhub.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "nlohmann/json.hpp"
#include "peft/adapterhub_methods.h"

namespace permafrost {
namespace {

constexpr char kConfigFile[] = "/adapter_config.json";
constexpr char kWeightsFile[] = "/adapter.safetensors";

absl::Status CheckWeights(const std::string& folder) {
  if (FileExists(folder + kWeightsFile)) return absl::OkStatus();
  for (const char* pickle : {"/pytorch_adapter.bin", "/adapter.bin"}) {
    if (!FileExists(folder + pickle)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        folder, pickle,
        ": pickled weights can run code and are not read; expected adapter.safetensors: save the "
        "adapter again with save_adapter(..., use_safetensors=True)"));
  }
  return absl::NotFoundError(absl::StrCat(folder, kWeightsFile, ": No such file"));
}

// f(element of the parameter, element of the file's tensor), row by row and part by part.
template <class F>
void ForEachElement(const FileLayout& tensor, const ParameterList& parameters, F f) {
  int64_t at = 0;
  for (const FilePart& part : tensor.parts) {
    const int64_t columns = parameters[part.parameter].value().columns();
    for (int64_t r = 0; r < part.rows; ++r) {
      const int64_t begin = (part.row + r) * columns + part.column;
      for (int64_t j = 0; j < part.columns; ++j) f(part.parameter, begin + j, at++);
    }
  }
}

Tensor Gather(const FileLayout& tensor, const ParameterList& parameters, bool gradient) {
  int64_t count = 1;
  for (const int64_t n : tensor.shape) count *= n;
  Tensor out = Tensor::Zeros({1, count});
  ForEachElement(tensor, parameters, [&](size_t parameter, int64_t from, int64_t to) {
    const Parameter& p = parameters[parameter];
    const Tensor& source = gradient ? p.gradient() : p.value();
    if (source) out.f32()[to] = source.f32()[from];
  });
  return out;
}

// Every parameter has a place in the file.
absl::Status CheckAllHeld(const std::vector<FileLayout>& layout, const ParameterList& parameters) {
  std::vector<bool> held(parameters.size());
  for (const FileLayout& tensor : layout) {
    for (const FilePart& part : tensor.parts) held[part.parameter] = true;
  }
  const auto missing = std::find(held.begin(), held.end(), false);
  if (missing == held.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("AdapterHub's format has no place for ",
                   parameters[static_cast<size_t>(missing - held.begin())].name()));
}

}  // namespace

Tensor HubGradient(const FileLayout& tensor, const Method& method) {
  return Gather(tensor, method.parameters(), /*gradient=*/true);
}

absl::StatusOr<Adapter> LoadAdapterHub(const std::string& folder, const nlohmann::json& object,
                                       int task, Context& c, const Model& model) {
  const std::string config_path = folder + kConfigFile;
  PERMAFROST_ASSIGN_OR_RETURN(const AdapterHubConfig hub,
                              ParseAdapterHubConfig(object, config_path, model.info()));
  PERMAFROST_RETURN_IF_ERROR(CheckWeights(folder));
  const auto in_config = [&](const absl::Status& status) {
    return absl::Status(status.code(),
                        absl::StrCat(config_path, ": ", std::string(status.message())));
  };
  const absl::StatusOr<std::vector<HubTensor>> tensors = HubTensorsOf(hub, model);
  if (!tensors.ok()) return in_config(tensors.status());
  const absl::StatusOr<AdapterConfig> config = MethodConfigOf(hub, *tensors, model);
  if (!config.ok()) return in_config(config.status());
  // Read before anything is made: sizes that a config asks for must be those of a file.
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<Tensor> values,
                              ReadHubTensors(folder + kWeightsFile, *tensors));
  Random random(0);
  absl::StatusOr<Adapter> created = CreateAdapter(*config, task, c, model, random);
  if (!created.ok()) return in_config(created.status());
  Adapter adapter = *std::move(created);
  Method& method = *adapter.method;
  std::vector<FileLayout> layout = HubLayout(hub, *tensors, method, model);
  // What no tensor of the file fills (B of the thirds of c_attn that have no LoRA, l of those
  // without IA3) keeps its initial value, which does nothing.
  for (size_t i = 0; i < tensors->size(); ++i) {
    ForEachElement(layout[i], method.parameters(), [&](size_t p, int64_t to, int64_t from) {
      method.parameters()[p].value().f32()[to] = values[i].f32()[from];
    });
  }
  method.set_source(std::move(layout));
  return adapter;
}

absl::Status SaveAdapterHub(const std::string& folder, const std::string& name,
                            const Adapter& adapter, const Model& model) {
  if (name.empty() || absl::StrContains(name, '.')) {
    return absl::InvalidArgumentError(
        absl::StrCat("adapter name \"", name, "\": expected a name without dots"));
  }
  PERMAFROST_ASSIGN_OR_RETURN(AdapterHubConfig hub, HubConfigOf(adapter, model));
  hub.name = name;
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<HubTensor> tensors, HubTensorsOf(hub, model));
  const std::vector<FileLayout> layout = HubLayout(hub, tensors, *adapter.method, model);
  PERMAFROST_RETURN_IF_ERROR(CheckAllHeld(layout, adapter.method->parameters()));
  std::vector<Tensor> values;
  std::vector<TensorView> views;
  for (size_t i = 0; i < tensors.size(); ++i) {
    values.push_back(Gather(layout[i], adapter.method->parameters(), /*gradient=*/false));
    views.push_back(F32View(tensors[i].name, tensors[i].shape, values.back().values()));
    const HubRole role = tensors[i].role;
    if (role != HubRole::kNormBeforeWeight && role != HubRole::kNormBeforeBias) continue;
    for (const std::string& copy : tensors[i].copies) {
      views.push_back(F32View(copy, tensors[i].shape, values.back().values()));
    }
  }
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat(folder, ": cannot create the folder: ", error.message()));
  }
  PERMAFROST_RETURN_IF_ERROR(WriteSafetensors(folder + kWeightsFile, views));
  return WriteFileAtomically(folder + kConfigFile, AdapterHubConfigJson(hub, model.info()));
}

}  // namespace permafrost
