#include "peft/full.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "peft/targets.h"

namespace permafrost {
namespace {

std::string ModuleOf(const std::string& tensor) { return tensor.substr(0, tensor.rfind('.')); }

// PEFT's name of a norm's tensor: the module, ln_tuning_layers, weight or bias.
std::string NormName(const std::string& tensor) {
  const std::string module = ModuleOf(tensor);
  return absl::StrCat("base_model.model.", module, ".ln_tuning_layers",
                      tensor.substr(module.size()));
}

// The linears of the top layers, and the tensors under their modules' common parent.
absl::StatusOr<std::vector<TensorId>> TopTensors(const Model& model, int64_t layers) {
  const int64_t count = model.info().decoder_layers;
  if (layers < 1 || layers > count) {
    return absl::InvalidArgumentError(
        absl::StrCat("top layers: expected 1 to ", count, " of this base, found ", layers));
  }
  std::set<std::string> prefixes;
  for (const LinearPlace& place : model.linears()) {
    if (place.site.stack != Stack::kDecoder || place.site.layer < count - layers) continue;
    const std::string number = absl::StrCat(".", place.site.layer, ".");
    prefixes.insert(place.module.substr(0, place.module.find(number) + number.size()));
  }
  for (const char* norm : {"model.norm.", "transformer.ln_f.", "decoder.final_layer_norm."}) {
    prefixes.insert(norm);
  }
  std::vector<TensorId> ids;
  for (size_t i = 0; i < model.tensors().size(); ++i) {
    const std::string& name = model.tensors()[i].name;
    const bool top = std::any_of(prefixes.begin(), prefixes.end(), [&](const std::string& prefix) {
      return absl::StartsWith(name, prefix);
    });
    if (top) ids.push_back(static_cast<TensorId>(i));
  }
  return ids;
}

absl::StatusOr<std::vector<TensorId>> NamedNorms(const std::vector<std::string>& names,
                                                 const Model& model) {
  const std::vector<TensorId> all = NormTensors(model);
  if (names.empty()) return all;
  std::set<std::string> unused(names.begin(), names.end()), known;
  std::vector<TensorId> ids;
  for (const TensorId id : all) {
    const std::string module = ModuleOf(model.tensors()[static_cast<size_t>(id)].name);
    known.insert(module.substr(module.rfind('.') + 1));
    for (const std::string& name : names) {
      PERMAFROST_ASSIGN_OR_RETURN(const bool named, NamesModule(name, false, module));
      if (!named) continue;
      ids.push_back(id);
      unused.erase(name);
      break;
    }
  }
  if (unused.empty()) return ids;
  return absl::InvalidArgumentError(absl::StrCat("norms ", absl::StrJoin(unused, ", "),
                                                 ": match no norm of this base; it has ",
                                                 absl::StrJoin(known, ", ")));
}

absl::StatusOr<std::vector<TensorId>> Selected(const FullConfig& config, const Model& model) {
  switch (config.part) {
    case FullConfig::Part::kNorms:
      return NamedNorms(config.norms, model);
    case FullConfig::Part::kHead:
      return std::vector<TensorId>{model.head_tensor()};
    case FullConfig::Part::kTopLayers:
      return TopTensors(model, config.layers);
    case FullConfig::Part::kAll:
      break;
  }
  std::vector<TensorId> all;
  for (size_t i = 0; i < model.tensors().size(); ++i) all.push_back(static_cast<TensorId>(i));
  return all;
}

}  // namespace

std::vector<TensorId> NormTensors(const Model& model) {
  std::set<TensorId> biases;
  for (const LinearPlace& place : model.linears()) biases.insert(place.bias);
  std::vector<TensorId> norms;
  for (size_t i = 0; i < model.tensors().size(); ++i) {
    const BaseTensor& t = model.tensors()[i];
    const TensorId id = static_cast<TensorId>(i);
    if (t.weight == nullptr && t.shape.size() == 1 && !biases.contains(id)) norms.push_back(id);
  }
  return norms;
}

absl::StatusOr<std::unique_ptr<Full>> Full::Create(int task, const FullConfig& config, Context& c,
                                                   const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<TensorId> ids, Selected(config, model));
  auto full = std::unique_ptr<Full>(new Full(task, config.part == FullConfig::Part::kAll));
  for (const TensorId id : ids) {
    const std::string& name = model.tensors()[static_cast<size_t>(id)].name;
    full->copies_.Add(id, config.part == FullConfig::Part::kNorms ? NormName(name) : name, c, model,
                      full->parameters_);
  }
  return full;
}

const Var* Full::Replacement(TensorId tensor, int task) const {
  return task == task_ ? copies_.Find(tensor) : nullptr;
}

std::vector<int64_t> Full::FileShape(const Parameter& p) const {
  if (p.value().rows() == 1) return {p.value().columns()};
  return {p.value().rows(), p.value().columns()};
}

void Full::MergeInto(const Model&, std::vector<Tensor>& values) const { copies_.MergeInto(values); }

}  // namespace permafrost
