// permafrost inspect: what a base, an adapter and a data file hold, and the memory that a training
// step would take.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>
#include <tuple>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "command.h"
#include "data.h"
#include "engine/check.h"
#include "nlohmann/json.hpp"
#include "peft/adapter_config.h"
#include "peft/memory_plan.h"

namespace permafrost {
namespace {

using Json = nlohmann::ordered_json;

struct InspectFlags {
  BaseFlags base;
  DataFlags data;
  std::string adapter, data_path;
  int64_t batch_size = 16, tokens = 0, target_tokens = 0;
  bool json = false;
};

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

Json BaseJson(const Model& model) {
  const ModelInfo& info = model.info();
  Json base = {{"path", info.path}, {"model_type", info.model_type}};
  if (info.encoder_decoder) {
    base["encoder_layers"] = info.layers;
    base["decoder_layers"] = info.decoder_layers;
  } else {
    base["layers"] = info.layers;
  }
  base["width"] = info.width;
  base["heads"] = info.heads;
  base["key_heads"] = info.key_heads;
  base["head_size"] = info.head_size;
  base["vocabulary"] = info.vocabulary;
  if (info.max_positions > 0) base["max_positions"] = info.max_positions;
  base["head"] = model.head_tensor() == model.embedding_tensor() ? "tied" : "separate";
  base["tensors"] = model.tensors().size();
  base["parameters"] = model.parameter_count();
  base["weight_bytes"] = model.weight_bytes();
  base["hash"] = absl::StrFormat("%016x", info.hash);
  return base;
}

Json TokenizerJson(const Tokenizer* tokenizer) {
  if (tokenizer == nullptr) return nullptr;
  Json object = {{"ids", tokenizer->vocab_size()}};
  const Tokenizer::SpecialIds& special = tokenizer->special_ids();
  for (const auto& [name, id] : {std::pair{"bos", special.bos},
                                 {"eos", special.eos},
                                 {"pad", special.pad},
                                 {"unk", special.unk}}) {
    if (id.has_value()) object[name] = absl::StrCat(tokenizer->Piece(*id), " #", *id);
  }
  return object;
}

// The linears that LoRA targets can name, by the last part of their module names.
Json ModulesJson(const Model& model) {
  std::vector<std::tuple<std::string, int64_t, int64_t>> order;
  std::map<std::tuple<std::string, int64_t, int64_t>, std::vector<const LinearPlace*>> groups;
  for (const LinearPlace& place : model.linears()) {
    const std::tuple key{place.module.substr(place.module.rfind('.') + 1), place.outputs,
                         place.inputs};
    if (groups[key].empty()) order.push_back(key);
    groups[key].push_back(&place);
  }
  Json list = Json::array();
  for (const auto& key : order) {
    const auto& [target, outputs, inputs] = key;
    list.push_back({{"target", target},
                    {"outputs", outputs},
                    {"inputs", inputs},
                    {"count", groups[key].size()},
                    {"example", groups[key].front()->module}});
  }
  return list;
}

// The trained gates of a method: each output's weights and bias (peft/gate.h).
Json GatesJson(const Method& method) {
  Json gates = Json::array();
  const ParameterList& list = method.parameters();
  for (size_t i = 0; i + 1 < list.size(); ++i) {
    const std::string& name = list[i].name();
    if (!absl::EndsWith(name, ".gate.weight") && !absl::EndsWith(name, ".lora_gate.weight")) {
      continue;
    }
    const Tensor &weight = list[i].value(), &bias = list[i + 1].value();
    const std::string gate = name.substr(0, name.rfind('.'));
    for (int64_t j = 0; j < weight.rows(); ++j) {
      const float* row = weight.row(j);
      double squares = 0;
      for (int64_t k = 0; k < weight.columns(); ++k) {
        squares += static_cast<double>(row[k]) * static_cast<double>(row[k]);
      }
      gates.push_back({{"name", weight.rows() == 1 ? gate : absl::StrCat(gate, ".", j)},
                       {"norm", std::sqrt(squares)},
                       {"bias", static_cast<double>(bias.f32()[j])}});
    }
  }
  return gates;
}

Json AdapterJson(const std::string& folder, const AdapterConfig& config, const Method& method,
                 const Model& model) {
  const int64_t count = method.parameters().count();
  Json tensors = Json::array();
  for (const Parameter& p : method.parameters()) {
    tensors.push_back({{"name", p.name()}, {"shape", ShapeText(method.FileShape(p))}});
  }
  Json adapter = {{"folder", folder},
                  {"parameters", count},
                  {"percent_of_base", 100.0 * static_cast<double>(count) /
                                          static_cast<double>(model.parameter_count())},
                  {"config", Json::parse(AdapterConfigJson(config, model))}};
  Json gates = GatesJson(method);
  if (!gates.empty()) adapter["gates"] = std::move(gates);
  adapter["tensors"] = std::move(tensors);
  return adapter;
}

struct Lengths {
  std::vector<int64_t> input, target;  // tokens by line; a decoder's input includes its target
  int64_t LongestInput() const { return Longest(input); }
  int64_t LongestTarget() const { return Longest(target); }

 private:
  static int64_t Longest(const std::vector<int64_t>& v) {
    return v.empty() ? 0 : *std::max_element(v.begin(), v.end());
  }
};

Lengths LengthsOf(const LoadedData& data) {
  Lengths lengths;
  for (const TokenLine& line : data.lines) {
    lengths.input.push_back(static_cast<int64_t>(line.input_ids.size()));
    lengths.target.push_back(std::count_if(line.labels.begin(), line.labels.end(),
                                           [](int32_t label) { return label != kIgnoredLabel; }));
  }
  return lengths;
}

Json DistributionJson(std::vector<int64_t> values) {
  if (values.empty()) return nullptr;
  std::sort(values.begin(), values.end());
  int64_t total = 0;
  for (const int64_t v : values) total += v;
  const auto quantile = [&](double q) {
    return values[static_cast<size_t>(std::lround(q * static_cast<double>(values.size() - 1)))];
  };
  return {{"total", total},
          {"mean", static_cast<double>(total) / static_cast<double>(values.size())},
          {"min", values.front()},
          {"median", quantile(0.5)},
          {"p90", quantile(0.9)},
          {"p99", quantile(0.99)},
          {"max", values.back()}};
}

Json DataJson(const std::string& path, const LoadedData& data, const Lengths& lengths) {
  const auto labelled =
      std::count_if(lengths.target.begin(), lengths.target.end(), [](int64_t n) { return n > 0; });
  Json object = {{"path", path},
                 {"lines", data.lines.size()},
                 {"labelled_lines", labelled},
                 {"input_tokens", DistributionJson(lengths.input)},
                 {"target_tokens", DistributionJson(lengths.target)}};
  if (data.label_words.empty()) return object;
  std::vector<int64_t> counts(data.label_words.size());
  for (const int label : data.labels) {
    if (label >= 0) ++counts[static_cast<size_t>(label)];
  }
  Json labels = Json::array();
  for (size_t i = 0; i < counts.size(); ++i) {
    labels.push_back(
        {{"label", data.label_words[i]},
         {"lines", counts[i]},
         {"percent", 100.0 * static_cast<double>(counts[i]) /
                         static_cast<double>(std::max<size_t>(1, data.lines.size()))}});
  }
  object["labels"] = std::move(labels);
  return object;
}

absl::StatusOr<Json> MemoryJson(const InspectFlags& f, const Model& model, const Lengths& lengths,
                                const AdapterConfig* config, int64_t trainable) {
  const bool two_stacks = model.info().encoder_decoder;
  const auto choose = [](int64_t given, int64_t of_data, int64_t otherwise) {
    return given > 0 ? given : of_data > 0 ? of_data : otherwise;
  };
  const int64_t tokens = choose(f.tokens, lengths.LongestInput(), 128);
  const int64_t targets = two_stacks ? choose(f.target_tokens, lengths.LongestTarget(), 8) : 0;
  // A causal prompt is computed once a step (once a task of several), unless it stands among a
  // line's tokens; an encoder's before each text.
  int64_t prompt = 0, copies = 1;
  if (const auto* one = config ? std::get_if<PromptTuningConfig>(config) : nullptr) {
    prompt = one->virtual_tokens;
    if (!one->input_template.empty()) copies = f.batch_size;
  } else if (const auto* many = config ? std::get_if<MultitaskPromptConfig>(config) : nullptr) {
    prompt = many->virtual_tokens;
    copies = std::min(many->tasks, f.batch_size);
  }
  const int64_t text_rows = f.batch_size * tokens;
  StepRows rows;
  rows.encoder = two_stacks ? text_rows + f.batch_size * prompt : 0;
  rows.decoder = two_stacks ? f.batch_size * targets : text_rows + copies * prompt;
  rows.outputs = rows.targets =
      f.batch_size *
      (two_stacks ? targets : std::min(choose(0, lengths.LongestTarget(), tokens), tokens));
  // Bytes until the backward pass, or null.
  const auto activations = [&](Recompute recompute) -> absl::StatusOr<std::optional<int64_t>> {
    PERMAFROST_ASSIGN_OR_RETURN(
        const std::optional<StepMemory> memory,
        EstimateStepMemory(config != nullptr ? *config : AdapterConfig(PromptTuningConfig()), model,
                           rows, f.base.precision == "bf16" ? Precision::kBF16 : Precision::kF32,
                           recompute));
    if (!memory.has_value()) return std::optional<int64_t>();
    return std::optional<int64_t>(memory->kept + memory->recomputed);
  };
  PERMAFROST_ASSIGN_OR_RETURN(const std::optional<int64_t> kept,
                              activations(ParseRecompute(kDefaultRecompute)));
  PERMAFROST_ASSIGN_OR_RETURN(const std::optional<int64_t> least, activations(Recompute::kLayers));
  const int64_t values = 4 * trainable, gradients = 4 * trainable, adamw = 8 * trainable;
  Json plan = {{"precision", f.base.precision}, {"batch_size", f.batch_size}, {"tokens", tokens}};
  if (two_stacks) plan["target_tokens"] = targets;
  if (prompt > 0) plan["virtual_tokens"] = prompt;
  const int64_t fixed = model.weight_bytes() + values + gradients + adamw;
  plan["weight_bytes"] = model.weight_bytes();
  plan["adapter_bytes"] = values;
  plan["gradient_bytes"] = gradients;
  plan["adamw_bytes"] = adamw;
  plan["recompute"] = kDefaultRecompute;
  if (!kept.has_value() || !least.has_value()) {
    plan["activation_bytes"] = "not estimated";
    return plan;
  }
  plan["activation_bytes"] = *kept;
  plan["total_bytes"] = fixed + *kept;
  plan["recompute_layers_total_bytes"] = fixed + *least;
  return plan;
}

// --- Text: sections of aligned fields; lists of objects become tables. ---

std::string Scalar(const std::string& key, const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return absl::StrFormat("%.4g", value.get<double>());
  const std::string text = value.dump();
  if (!absl::EndsWith(key, "_bytes")) return text;
  return absl::StrFormat("%s (%.1f MiB)", text, value.get<double>() / (1 << 20));
}

void PrintTable(const Json& rows, const std::string& indent) {
  if (rows.empty()) return;
  std::vector<std::vector<std::string>> cells(1);
  for (const auto& [key, value] : rows[0].items()) cells[0].push_back(key);
  for (const Json& row : rows) {
    cells.emplace_back();
    for (const auto& [key, value] : row.items()) cells.back().push_back(Scalar(key, value));
  }
  std::vector<size_t> width(cells[0].size());
  for (const auto& row : cells) {
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  for (const auto& row : cells) {
    std::string line = indent;
    for (size_t i = 0; i < row.size(); ++i) {
      const bool last = i + 1 == row.size();
      absl::StrAppend(&line, row[i], last ? "" : std::string(width[i] - row[i].size() + 2, ' '));
    }
    std::printf("%s\n", line.c_str());
  }
}

// Whether all rows have the columns of the first.
bool IsTable(const Json& rows) {
  return std::all_of(rows.begin(), rows.end(), [&](const Json& row) {
    return row.size() == rows[0].size() &&
           std::all_of(row.items().begin(), row.items().end(),
                       [&](const auto& item) { return rows[0].contains(item.key()); });
  });
}

void PrintFields(const Json& object, const std::string& indent) {
  size_t width = 0;
  for (const auto& [key, value] : object.items()) width = std::max(width, key.size());
  for (const auto& [key, value] : object.items()) {
    const bool objects = value.is_array() && !value.empty() && value[0].is_object();
    if (value.is_null()) continue;
    if (objects && !IsTable(value)) {
      for (size_t i = 0; i < value.size(); ++i) {
        std::printf("%s%s %zu\n", indent.c_str(), key.c_str(), i);
        PrintFields(value[i], indent + "  ");
      }
      continue;
    }
    if (!objects && !value.is_object()) {
      std::printf("%s%-*s  %s\n", indent.c_str(), static_cast<int>(width), key.c_str(),
                  Scalar(key, value).c_str());
      continue;
    }
    std::printf("%s%s\n", indent.c_str(), key.c_str());
    objects ? PrintTable(value, indent + "  ") : PrintFields(value, indent + "  ");
  }
}

absl::Status RunInspect(const InspectFlags& f) {
  PERMAFROST_ASSIGN_OR_RETURN(Session session, OpenSession(f.base));
  const Model& model = *session.model;
  Json report = {{"base", BaseJson(model)},
                 {"tokenizer", TokenizerJson(session.tokenizer.get())},
                 {"modules", ModulesJson(model)}};
  AdapterSet adapters;
  Adapter adapter;
  int64_t trainable = 0;
  const bool adapted = !f.adapter.empty();
  if (adapted) {
    PERMAFROST_ASSIGN_OR_RETURN(adapter, LoadAdapter(f.adapter, 0, *session.context, model));
    trainable = adapter.method->parameters().count();
    report["adapter"] = AdapterJson(f.adapter, adapter.config, *adapter.method, model);
    adapters.Add("", std::move(adapter.method));
  }
  Lengths lengths;
  if (!f.data_path.empty()) {
    PERMAFROST_ASSIGN_OR_RETURN(
        const LoadedData data, LoadData(f.data_path, f.data, Labels::kOptional, session, adapters));
    lengths = LengthsOf(data);
    report["data"] = DataJson(f.data_path, data, lengths);
  }
  PERMAFROST_ASSIGN_OR_RETURN(
      report["memory"],
      MemoryJson(f, model, lengths, adapted ? &adapter.config : nullptr, trainable));
  if (f.json) {
    std::printf("%s\n", report.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    PrintFields(report, "");
  }
  return absl::OkStatus();
}

}  // namespace

void AddInspect(Commands& commands) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* app =
      commands.Add("inspect", "What a base, adapter or data file holds, and a memory plan",
                   [flags] { return RunInspect(*flags); });
  AddBaseFlags(app, flags->base);
  AddDataFlags(app, flags->data);
  app->add_option("--adapter", flags->adapter, "adapter folder");
  app->add_option("--data", flags->data_path, "data file");
  app->add_option("--batch-size", flags->batch_size, "memory plan: lines of a batch")
      ->check(Between(1, 65536))
      ->capture_default_str();
  app->add_option("--tokens", flags->tokens,
                  "memory plan: tokens of a line (default: the longest of --data, else 128)")
      ->check(Between(1, 1 << 20));
  app->add_option(
         "--target-tokens", flags->target_tokens,
         "memory plan: decoder tokens of a T5 line (default: the longest of --data, else 8)")
      ->check(Between(1, 1 << 20));
  app->add_flag("--json", flags->json, "one JSON object");
}

}  // namespace permafrost
