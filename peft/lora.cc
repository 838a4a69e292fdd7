#include "peft/lora.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "io/regex.h"

namespace permafrost {
namespace {

constexpr int64_t kMostRank = 65536;

// PEFT's rank_pattern and alpha_pattern: keys are regular expressions matched as (.*\.)?(key)$.
template <class V>
absl::StatusOr<V> FromPattern(const std::vector<std::pair<std::string, V>>& pattern,
                              const std::string& module, V fallback) {
  for (const auto& [key, value] : pattern) {
    PERMAFROST_ASSIGN_OR_RETURN(const bool match,
                                FullMatch(absl::StrCat("(.*\\.)?(", key, ")"), module));
    if (match) return value;
  }
  return fallback;
}

// Rank and scale of a module.
struct Strength {
  int64_t rank;
  double scale;
};
absl::StatusOr<Strength> StrengthOf(const LoraConfig& config, const std::string& module) {
  PERMAFROST_ASSIGN_OR_RETURN(const int64_t rank,
                              FromPattern(config.rank_pattern, module, config.rank));
  PERMAFROST_ASSIGN_OR_RETURN(const double alpha,
                              FromPattern(config.alpha_pattern, module, config.alpha));
  if (rank < 1 || rank > kMostRank) {
    return absl::InvalidArgumentError(
        absl::StrCat("LoRA rank of ", module, ": expected 1 to ", kMostRank, ", found ", rank));
  }
  const double r = static_cast<double>(rank);
  return Strength{rank, alpha / (config.rslora ? std::sqrt(r) : r)};
}

bool StartsFromBase(LoraInit init) { return init == LoraInit::kPissa || init == LoraInit::kOlora; }

// Combinations that PEFT refuses or that are not implemented.
absl::Status CheckConfig(const LoraConfig& config, const MatchedTargets& targets) {
  const auto refuse = [](const char* what, const char* found) {
    return absl::InvalidArgumentError(
        absl::StrCat("LoRA: expected no ", what, ", found it with ", found));
  };
  if (config.dora && config.lora_bias) return refuse("bias of B's own (lora_bias)", "DoRA");
  if (config.dora && StartsFromBase(config.init))
    return refuse("start from the base's weights", "DoRA");
  if (config.gate.kind != GateConfig::Kind::kNone) {
    // A gate is defined for B A x alone (UniPELT).
    if (config.dora) return refuse("DoRA", "a gate");
    if (config.lora_bias) return refuse("bias of B's own (lora_bias)", "a gate");
    if (StartsFromBase(config.init)) return refuse("start from the base's weights", "a gate");
    if (!targets.embeddings.empty()) return refuse("embedding among the targets", "a gate");
  }
  if (targets.embeddings.empty()) return absl::OkStatus();
  if (config.dora) return refuse("embedding among the targets", "DoRA");
  if (config.lora_bias) return refuse("embedding among the targets", "lora_bias");
  if (StartsFromBase(config.init)) {
    return refuse("embedding among the targets", "a start from the base's weights");
  }
  return absl::OkStatus();
}

absl::Status CheckThirds(const LoraConfig& config, int64_t rank) {
  const std::vector<int>& thirds = config.thirds;
  if (thirds.empty()) return absl::OkStatus();
  const bool ascending = std::is_sorted(thirds.begin(), thirds.end(), std::less_equal<>()) &&
                         thirds.front() >= 0 && thirds.back() <= 2;
  if (!ascending || rank % static_cast<int64_t>(thirds.size()) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "LoRA thirds: expected some of 0, 1, 2 in order, whose number divides the rank ", rank,
        ", found ", absl::StrJoin(thirds, ", ")));
  }
  if (config.dora || StartsFromBase(config.init)) {
    return absl::InvalidArgumentError(
        "LoRA: expected no LoRAs of thirds, found them with DoRA or a start from the base's "
        "weights");
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string> DefaultLoraTargets(const std::string& model_type) {
  if (model_type == "t5") return {"q", "v"};
  if (model_type == "gpt2") return {"c_attn"};
  return {"q_proj", "v_proj"};
}

void SetLoraPlusRatio(Method& method, double ratio) {
  for (Parameter& p : method.parameters()) {
    if (absl::EndsWith(p.name(), ".lora_B.weight")) p.set_rate_factor(ratio);
  }
}

absl::StatusOr<std::unique_ptr<Lora>> Lora::Create(int task, const LoraConfig& config, Context& c,
                                                   const Model& model, Random& random) {
  PERMAFROST_ASSIGN_OR_RETURN(const MatchedTargets targets,
                              MatchLinearsAndEmbeddings(config.targets, model));
  PERMAFROST_RETURN_IF_ERROR(CheckConfig(config, targets));
  auto lora = std::unique_ptr<Lora>(new Lora(task));
  lora->embedding_shape_ = {model.embedding().outputs(), model.embedding().inputs()};
  lora->pairs_.resize(model.linears().size());
  for (const EmbeddingPlace& place : targets.embeddings) {
    PERMAFROST_RETURN_IF_ERROR(lora->AddEmbedding(config, model, place, random));
  }
  for (const int index : targets.linears) {
    PERMAFROST_RETURN_IF_ERROR(
        lora->AddPair(config, c, model, model.linears()[static_cast<size_t>(index)], random));
  }
  PERMAFROST_RETURN_IF_ERROR(lora->AddCopies(config, c, model));
  return lora;
}

absl::Status Lora::AddPair(const LoraConfig& config, Context& c, const Model& model,
                           const LinearPlace& place, Random& random) {
  PERMAFROST_ASSIGN_OR_RETURN(const Strength strength, StrengthOf(config, place.module));
  const Weight& weight = *model.tensors()[static_cast<size_t>(place.weight)].weight;
  const int64_t rank = strength.rank;
  LowRankPair start, fresh;
  if (StartsFromBase(config.init)) {
    if (rank > std::min(place.inputs, place.outputs)) {
      return absl::InvalidArgumentError(
          absl::StrCat("LoRA rank of ", place.module,
                       ": a start from the base's weights needs a rank of at most ",
                       std::min(place.inputs, place.outputs), ", found ", rank));
    }
    start = config.init == LoraInit::kPissa ? PissaPair(c, weight, rank, strength.scale, random)
                                            : OloraPair(c, weight, rank);
    fresh = {start.a.Clone(), start.b.Clone()};
  } else {
    const double bound = 1 / std::sqrt(static_cast<double>(place.inputs));
    fresh = {config.init == LoraInit::kGaussian
                 ? NormalTensor({rank, place.inputs}, 1 / static_cast<double>(rank), random)
                 : UniformTensor({rank, place.inputs}, bound, random),
             Tensor::Zeros({place.outputs, rank})};
  }
  const std::string name = absl::StrCat("base_model.model.", place.module);
  Pair pair;
  pair.options = {.scale = static_cast<float>(strength.scale),
                  .dropout = static_cast<float>(config.dropout),
                  .mask = {}};
  pair.start = std::move(start);
  if (place.site.projection == Projection::kFusedQueryKeyValue) {
    PERMAFROST_RETURN_IF_ERROR(CheckThirds(config, rank));
    pair.thirds = config.thirds;
  }
  pair.a = parameters_.size();
  parameters_.Add(name + ".lora_A.weight", fresh.a);
  pair.b = parameters_.size();
  parameters_.Add(name + ".lora_B.weight", fresh.b);
  if (config.lora_bias) {
    pair.bias = parameters_.size();
    parameters_.Add(name + ".lora_B.bias", Tensor::Zeros({1, place.outputs}));
    mergeable_ = mergeable_ && place.bias != kNoTensor;
  }
  if (config.dora) {
    PERMAFROST_ASSIGN_OR_RETURN(DoraPlace dora, DoraPlace::Create(c, model, place));
    const Tensor norms = dora.Norms(c, fresh.a, fresh.b, pair.options.scale);
    pair.dora = Dora{std::move(dora), parameters_.size(), place.bias};
    parameters_.Add(name + ".lora_magnitude_vector", norms.Clone());
  }
  if (config.gate.constant()) pair.options.scale = static_cast<float>(config.gate.value);
  if (config.gate.trained()) {
    pair.options.scale = 1;
    pair.gate.emplace(parameters_, name + ".lora_gate", place.inputs,
                      std::max<int64_t>(1, static_cast<int64_t>(pair.thirds.size())),
                      config.gate.kind, random);
    reads_all_rows_ = true;
    reads_future_ = config.gate.reads_future();
    mergeable_ = false;
  }
  pairs_[static_cast<size_t>(place.index)] = std::move(pair);
  return absl::OkStatus();
}

absl::Status Lora::AddEmbedding(const LoraConfig& config, const Model& model,
                                const EmbeddingPlace& place, Random& random) {
  PERMAFROST_ASSIGN_OR_RETURN(const Strength strength, StrengthOf(config, place.module));
  const std::string name = absl::StrCat("base_model.model.", place.module);
  embeddings_.push_back({.place = place,
                         .a = parameters_.size(),
                         .b = parameters_.size() + 1,
                         .scale = static_cast<float>(strength.scale)});
  parameters_.Add(name + ".lora_embedding_A", Tensor::Zeros({strength.rank, embedding_shape_[0]}));
  parameters_.Add(name + ".lora_embedding_B",
                  NormalTensor({embedding_shape_[1], strength.rank}, 1, random));
  // A tied head reads the same tensor, and T5's stacks read one.
  mergeable_ = mergeable_ && !model.info().encoder_decoder &&
               model.head_tensor() != model.embedding_tensor();
  return absl::OkStatus();
}

absl::Status Lora::AddCopies(const LoraConfig& config, Context& c, const Model& model) {
  PERMAFROST_RETURN_IF_ERROR(copies_.AddModules(config.modules_to_save, c, model, parameters_));
  for (const LinearPlace& place : model.linears()) {
    if (PairAt(place) == nullptr || copies_.Find(place.weight) == nullptr) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(place.module,
                     ": expected it among the targets or in modules_to_save, found "
                     "it in both"));
  }
  for (const EmbeddingPair& pair : embeddings_) {
    if (copies_.Find(model.embedding_tensor()) == nullptr) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(pair.place.module,
                     ": expected it among the targets or in modules_to_save, "
                     "found it in both"));
  }
  if (config.bias != LoraBias::kNone) {
    for (const LinearPlace& place : model.linears()) {
      if (place.bias == kNoTensor || PairAt(place) == nullptr) continue;
      copies_.AddVector(place.bias,
                        absl::StrCat("base_model.model.", place.module, ".base_layer.bias"), model,
                        parameters_);
    }
  }
  if (config.bias == LoraBias::kAll) {
    for (TensorId id = 0; id < static_cast<TensorId>(model.tensors().size()); ++id) {
      const std::string& name = model.tensors()[static_cast<size_t>(id)].name;
      if (!absl::EndsWith(name, ".bias")) continue;
      copies_.AddVector(id, absl::StrCat("base_model.model.", name), model, parameters_);
    }
  }
  mergeable_ = mergeable_ && copies_.mergeable(model);
  return absl::OkStatus();
}

const Lora::Pair* Lora::PairAt(const LinearPlace& place) const {
  const std::optional<Pair>& pair = pairs_[static_cast<size_t>(place.index)];
  return pair.has_value() ? &*pair : nullptr;
}

Var Lora::OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) {
  const StackRows& rows = stack == Stack::kEncoder ? batch.encoder : batch.decoder;
  for (const EmbeddingPair& pair : embeddings_) {
    if (pair.place.stack != stack) continue;
    x = AddEmbeddingLowRank(c, std::move(x), parameters_[pair.a].var(), parameters_[pair.b].var(),
                            pair.scale, rows.lookup, Own(rows.spans));
  }
  return x;
}

Var Lora::OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
                   const PlaceRows& rows) {
  std::optional<Pair>& pair = pairs_[static_cast<size_t>(place.index)];
  const std::vector<TaskSpan> own = Own(rows.spans);
  if (!pair.has_value() || own.empty()) return y;
  const Var &a = parameters_[pair->a].var(), &b = parameters_[pair->b].var();
  LowRank options = pair->options;
  options.mask = MaskOf(static_cast<uint32_t>(place.index));
  if (pair->dora.has_value()) {
    const Var* bias = copies_.Find(pair->dora->bias);
    return pair->dora->place.Apply(c, x, std::move(y), a, b,
                                   parameters_[pair->dora->magnitude].var(), bias, options, own);
  }
  const Var gate = pair->gate.has_value() ? pair->gate->Of(c, x, rows, task_) : Var();
  y = pair->thirds.empty() ? AddLowRank(c, std::move(y), x, a, b, options, own, gate)
                           : AddThirds(c, *pair, options, x, std::move(y), gate, own);
  if (pair->bias.has_value()) {
    y = AddSpanBias(c, std::move(y), parameters_[*pair->bias].var(), pair->options.scale, own);
  }
  if (pair->start.a) {
    const LowRank minus{.scale = -options.scale, .dropout = 0, .mask = {}};
    y = AddLowRank(c, std::move(y), x, Var(pair->start.a), Var(pair->start.b), minus, own);
  }
  return y;
}

Var Lora::AddThirds(Context& c, const Pair& pair, const LowRank& options, const Var& x, Var y,
                    const Var& gates, absl::Span<const TaskSpan> spans) const {
  const Var &a = parameters_[pair.a].var(), &b = parameters_[pair.b].var();
  const auto parts = static_cast<int64_t>(pair.thirds.size());
  const int64_t rank = a.rows() / parts, width = b.rows() / 3;
  for (int64_t j = 0; j < parts; ++j) {
    const int64_t first = pair.thirds[static_cast<size_t>(j)] * width;
    const TaskSpan own{first, first + width, task_};
    const Var columns = TakeRows(c, Columns(c, b, j * rank, rank), {own});
    const Var block = PutRows(c, Var(Tensor::Zeros({b.rows(), rank})), columns, {own});
    y = AddLowRank(c, std::move(y), x, TakeRows(c, a, {{j * rank, (j + 1) * rank, task_}}), block,
                   options, spans, gates ? Columns(c, gates, j, 1) : gates);
  }
  return y;
}

std::optional<float> Lora::ScaleOf(int linear) const {
  const std::optional<Pair>& pair = pairs_[static_cast<size_t>(linear)];
  return pair.has_value() ? std::optional(pair->options.scale) : std::nullopt;
}

std::vector<GateMean> Lora::TakeGateMeans() {
  std::vector<GateMean> means;
  for (std::optional<Pair>& pair : pairs_) {
    if (pair.has_value() && pair->gate.has_value()) pair->gate->TakeMeans(means);
  }
  return means;
}

std::vector<int64_t> Lora::FileShape(const Parameter& p) const {
  if (const std::vector<int64_t>* shape = copies_.FileShape(p)) return *shape;
  if (absl::EndsWith(p.name(), ".lora_magnitude_vector") ||
      absl::EndsWith(p.name(), ".lora_B.bias")) {
    return {p.count()};
  }
  return Method::FileShape(p);
}

std::vector<FileTensor> Lora::FileTensors() const {
  std::vector<FileTensor> tensors = Method::FileTensors();
  for (const std::optional<Pair>& pair : pairs_) {
    if (!pair.has_value() || !pair->start.a) continue;
    const LowRankPair factors = Factors(*pair);
    tensors[pair->a].value = factors.a;
    tensors[pair->b].value = factors.b;
    tensors[pair->a].shape = {factors.a.rows(), factors.a.columns()};
    tensors[pair->b].shape = {factors.b.rows(), factors.b.columns()};
  }
  return tensors;
}

bool Lora::IsCopyOfBase(const TensorView& t) const {
  return t.shape == embedding_shape_ &&
         std::any_of(embeddings_.begin(), embeddings_.end(), [&](const EmbeddingPair& pair) {
           return t.name ==
                  absl::StrCat("base_model.model.", pair.place.module, ".base_layer.weight");
         });
}

LowRankPair Lora::Factors(const Pair& pair) const {
  const Tensor &a = parameters_[pair.a].value(), &b = parameters_[pair.b].value();
  if (!pair.thirds.empty()) {
    const int64_t rank = a.rows() / static_cast<int64_t>(pair.thirds.size());
    const Tensor blocks = Tensor::Zeros(b.shape());
    for (int64_t n = 0; n < b.rows(); ++n) {
      for (int64_t k = 0; k < b.columns(); ++k) {
        const bool own = n / (b.rows() / 3) == pair.thirds[static_cast<size_t>(k / rank)];
        if (own) blocks.row(n)[k] = b.row(n)[k];
      }
    }
    return {a, blocks};
  }
  if (!pair.start.a) return {a, b};
  return {StackedRows(a, pair.start.a), WithNegatedColumns(b, pair.start.b)};
}

std::optional<LoraTerm> Lora::TermOf(int linear) const {
  const std::optional<Pair>& pair = pairs_[static_cast<size_t>(linear)];
  if (!pair.has_value()) return std::nullopt;
  const LowRankPair factors = Factors(*pair);
  return LoraTerm{factors.a, factors.b, pair->options.scale};
}

void Lora::MergeInto(const Model& model, std::vector<Tensor>& values) const {
  copies_.MergeInto(values);
  // w[n, k] += scale (b a)[n, k]
  const auto add = [](const Tensor& w, const Tensor& a, const Tensor& b, float scale) {
    for (int64_t n = 0; n < w.rows(); ++n) {
      for (int64_t k = 0; k < w.columns(); ++k) {
        double sum = 0;
        for (int64_t r = 0; r < a.rows(); ++r) {
          sum += static_cast<double>(b.row(n)[r]) * a.row(r)[k];
        }
        w.row(n)[k] += scale * static_cast<float>(sum);
      }
    }
  };
  for (const EmbeddingPair& pair : embeddings_) {
    const Tensor &a = parameters_[pair.a].value(), &b = parameters_[pair.b].value();
    const Tensor& e = values[static_cast<size_t>(model.embedding_tensor())];
    for (int64_t id = 0; id < e.rows(); ++id) {
      for (int64_t k = 0; k < e.columns(); ++k) {
        double sum = 0;
        for (int64_t r = 0; r < a.rows(); ++r)
          sum += static_cast<double>(b.row(k)[r]) * a.row(r)[id];
        e.row(id)[k] += pair.scale * static_cast<float>(sum);
      }
    }
  }
  for (const LinearPlace& place : model.linears()) {
    const Pair* pair = PairAt(place);
    if (pair == nullptr) continue;
    const Tensor& w = values[static_cast<size_t>(place.weight)];
    const LowRankPair factors = Factors(*pair);
    add(w, factors.a, factors.b, pair->options.scale);
    if (pair->bias.has_value()) {
      const Tensor& own = parameters_[*pair->bias].value();
      const Tensor& bias = values[static_cast<size_t>(place.bias)];
      for (int64_t n = 0; n < own.count(); ++n) {
        bias.f32()[n] += pair->options.scale * own.f32()[n];
      }
    }
    if (pair->dora.has_value()) {
      MergeMagnitude(parameters_[pair->dora->magnitude].value(), w);
    }
  }
}

}  // namespace permafrost
