#include "peft/adapter_file.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "engine/random_tensor.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "kernels/elementwise.h"
#include "nlohmann/json.hpp"
#include "peft/adapter_config.h"
#include "peft/adapterhub.h"

namespace permafrost {

namespace {

// What a method is made from.
struct Setting {
  int task;
  Context& c;
  const Model& model;
  Random& random;
};
using Created = absl::StatusOr<std::shared_ptr<Method>>;

Created Create(const PromptTuningConfig& config, const Setting& s) {
  constexpr double kRange = 0.5;
  return std::make_shared<PromptTuning>(
      s.task,
      UniformTensor({config.submodules * config.virtual_tokens, s.model.info().width}, kRange,
                    s.random),
      config.virtual_tokens, config.input_template);
}
Created Create(const PTuningConfig& config, const Setting& s) {
  return std::make_shared<PTuning>(s.task, config, s.model.info().width, s.random);
}
Created Create(const LoraConfig& config, const Setting& s) {
  return Lora::Create(s.task, config, s.c, s.model, s.random);
}
Created Create(const AdaLoraConfig& config, const Setting& s) {
  return AdaLora::Create(s.task, config, s.model, s.random);
}
Created Create(const Ia3Config& config, const Setting& s) {
  return Ia3::Create(s.task, config, s.model);
}
Created Create(const PrefixTuningConfig& config, const Setting& s) {
  return PrefixTuning::Create(s.task, config, s.model, s.random);
}
Created Create(const BottleneckConfig& config, const Setting& s) {
  return Bottleneck::Create(s.task, config, s.model, s.random);
}
Created Create(const BitFitConfig& config, const Setting& s) {
  return BitFit::Create(s.task, config, s.model);
}
Created Create(const FullConfig& config, const Setting& s) {
  return Full::Create(s.task, config, s.c, s.model);
}
Created Create(const UniPeltConfig& config, const Setting& s) {
  std::vector<std::shared_ptr<Method>> parts;
  for (const PartConfig& part : config.parts) {
    PERMAFROST_ASSIGN_OR_RETURN(
        std::shared_ptr<Method> method,
        std::visit([&](const auto& part_config) { return Create(part_config, s); }, part));
    parts.push_back(std::move(method));
  }
  return UniPelt::Create(s.task, std::move(parts));
}
Created Create(const MultitaskPromptConfig& config, const Setting& s) {
  constexpr double kRange = 0.5;
  return std::make_shared<MultitaskPrompt>(
      s.task, config,
      UniformTensor({config.submodules * config.virtual_tokens, s.model.info().width}, kRange,
                    s.random),
      s.random);
}

}  // namespace

std::string MethodTitle(const AdapterConfig& config) {
  struct Title {
    std::string operator()(const PromptTuningConfig&) const { return "prompt tuning"; }
    std::string operator()(const PTuningConfig&) const { return "P-tuning"; }
    std::string operator()(const LoraConfig& lora) const { return lora.dora ? "DoRA" : "LoRA"; }
    std::string operator()(const AdaLoraConfig&) const { return "AdaLoRA"; }
    std::string operator()(const Ia3Config&) const { return "IA3"; }
    std::string operator()(const PrefixTuningConfig&) const { return "prefix tuning"; }
    std::string operator()(const BottleneckConfig&) const { return "a bottleneck adapter"; }
    std::string operator()(const BitFitConfig&) const { return "BitFit"; }
    std::string operator()(const FullConfig& full) const {
      switch (full.part) {
        case FullConfig::Part::kNorms:
          return "norm tuning";
        case FullConfig::Part::kHead:
          return "a trained head";
        case FullConfig::Part::kTopLayers:
          return "trained top layers";
        case FullConfig::Part::kAll:
          break;
      }
      return "a fully trained model";
    }
    std::string operator()(const UniPeltConfig&) const { return "UniPELT"; }
    std::string operator()(const MultitaskPromptConfig&) const { return "multitask prompt tuning"; }
  };
  return std::visit(Title(), config);
}

absl::StatusOr<Adapter> CreateAdapter(const AdapterConfig& config, int task, Context& c,
                                      const Model& model, Random& random) {
  const Setting setting{task, c, model, random};
  PERMAFROST_ASSIGN_OR_RETURN(
      std::shared_ptr<Method> method,
      std::visit([&](const auto& method_config) { return Create(method_config, setting); },
                 config));
  return Adapter{config, std::move(method)};
}

Adapter PromptAdapter(int task, Tensor prompt, std::string input_template) {
  const PromptTuningConfig config{.virtual_tokens = prompt.rows(),
                                  .submodules = 1,
                                  .input_template = std::move(input_template)};
  return {config, std::make_shared<PromptTuning>(task, std::move(prompt), config.virtual_tokens,
                                                 config.input_template)};
}

Adapter MultitaskPromptAdapter(int task, const MultitaskPromptConfig& config, Tensor prompt,
                               Random& random) {
  return {config, std::make_shared<MultitaskPrompt>(task, config, std::move(prompt), random)};
}

const PromptTuning* AsPrompt(const Adapter& adapter) {
  return std::holds_alternative<PromptTuningConfig>(adapter.config)
             ? static_cast<const PromptTuning*>(adapter.method.get())
             : nullptr;
}

absl::Status ReadParameters(const std::string& path, Method& method) {
  PERMAFROST_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  std::vector<std::string> problems;
  std::set<std::string> used;
  for (Parameter& p : method.parameters()) {
    const TensorView* t = file.Find(p.name());
    // PEFT's first versions of DoRA wrote the magnitude as a module's weight.
    if (t == nullptr && absl::EndsWith(p.name(), ".lora_magnitude_vector")) {
      t = file.Find(p.name() + ".weight");
    }
    if (t == nullptr) {
      problems.push_back(absl::StrCat("missing ", p.name()));
      continue;
    }
    used.insert(t->name);
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
    if (!used.contains(t.name) && !method.IsCopyOfBase(t))
      problems.push_back(absl::StrCat("unused ", t.name));
  }
  if (problems.empty()) return absl::OkStatus();
  constexpr size_t kShown = 8;
  const size_t more = problems.size() > kShown ? problems.size() - kShown : 0;
  problems.resize(problems.size() - more);
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": tensors do not fit adapter_config.json and this base: ",
      absl::StrJoin(problems, "; "), more > 0 ? absl::StrCat(" and ", more, " more") : ""));
}

absl::Status WriteGradients(const std::string& path, const Method& method) {
  std::vector<Tensor> kept;
  std::vector<TensorView> views;
  for (const FileLayout& tensor : method.source()) {
    kept.push_back(HubGradient(tensor, method));
    views.push_back(F32View(tensor.name, tensor.shape, kept.back().values()));
  }
  if (!method.source().empty()) return WriteSafetensors(path, views);
  for (const Parameter& p : method.parameters()) {
    kept.push_back(p.gradient() ? p.gradient() : Tensor::Zeros(p.value().shape()));
    views.push_back(F32View(p.name(), method.FileShape(p), kept.back().values()));
  }
  return WriteSafetensors(path, views);
}

absl::StatusOr<Adapter> LoadAdapter(const std::string& folder, int task, Context& c,
                                    const Model& model) {
  const std::string config_path = folder + "/adapter_config.json";
  const std::string weights_path = folder + "/adapter_model.safetensors";
  PERMAFROST_ASSIGN_OR_RETURN(const std::string text, ReadFile(config_path));
  PERMAFROST_ASSIGN_OR_RETURN(const nlohmann::json object, ParseJson(text, config_path));
  if (IsAdapterHubConfig(object)) return LoadAdapterHub(folder, object, task, c, model);
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
  absl::StatusOr<Adapter> created = CreateAdapter(config, task, c, model, random);
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
  const std::vector<FileTensor> tensors = adapter.method->FileTensors();
  std::vector<TensorView> views;
  views.reserve(tensors.size());
  for (const FileTensor& t : tensors) views.push_back(F32View(t.name, t.shape, t.value.values()));
  PERMAFROST_RETURN_IF_ERROR(WriteSafetensors(folder + "/adapter_model.safetensors", views));
  return WriteFileAtomically(folder + "/adapter_config.json",
                             AdapterConfigJson(adapter.config, model));
}

}  // namespace permafrost
