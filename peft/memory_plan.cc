#include "peft/memory_plan.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "nlohmann/json.hpp"
#include "peft/targets.h"

namespace permafrost {
namespace {

using SublayerKey = std::tuple<Stack, int, Sublayer>;

// What a method does at the places, as far as memory goes.
struct Effects {
  bool embedding = false;  // the rows that enter the stacks carry gradients
  bool head = false;       // a trained head
  bool all_rows = false;   // Hooks::ReadsAllRows
  int64_t beside = 0;      // bytes kept by what makes prompts and tables

  struct OfLinear {
    bool changes = false;  // its output depends on something trained
    bool keeps_input = false;
    int64_t rank = 0;        // of what is kept beside
    int64_t start_rank = 0;  // of frozen factors, kept where rows carry gradients already
    int outputs_kept = 0;    // IA3, DoRA
    int inputs_kept = 0;     // IA3; DoRA's with dropout
    int64_t gates = 0;
  };
  std::vector<OfLinear> linears;  // by index
  std::set<SublayerKey> norms;    // trained, in front of sublayers
  std::set<Stack> final_norms;
  struct OfSublayer {
    int64_t prefix = 0, prefix_gates = 0;                               // P
    std::vector<std::pair<const BottleneckConfig*, int64_t>> adapters;  // with b
  };
  std::map<SublayerKey, OfSublayer> sublayers;
};

class Collector {
 public:
  Collector(const Model& model, Effects& effects) : model_(model), e_(effects) {
    e_.linears.resize(model.linears().size());
  }

  // False: no formula.
  absl::StatusOr<bool> Add(const PromptTuningConfig&) { return e_.embedding = true; }
  absl::StatusOr<bool> Add(const PTuningConfig& p) {
    const int64_t h = p.encoder_width > 0 ? p.encoder_width : model_.info().width;
    e_.beside += 4 * p.virtual_tokens * (model_.info().width + 2 * h);
    if (p.encoder == PromptEncoder::kLstm) {
      // A direction: gates, cells and outputs, and its recurrent weight.
      e_.beside += 2 * p.encoder_layers * (28 * p.virtual_tokens * h + 16 * h * h);
    }
    return e_.embedding = true;
  }
  absl::StatusOr<bool> Add(const MultitaskPromptConfig&) { return e_.embedding = true; }
  absl::StatusOr<bool> Add(const PrefixTuningConfig& prefix) {
    const ModelInfo& info = model_.info();
    const bool trained = prefix.gate.trained();
    for (const SublayerKey& key : Places()) {
      const auto& [stack, layer, sublayer] = key;
      const bool wanted = sublayer == Sublayer::kCrossAttention ? prefix.cross
                          : sublayer == Sublayer::kFeedForward  ? false
                          : stack == Stack::kEncoder            ? prefix.encoder
                                                                : prefix.decoder;
      if (!wanted || LeftOut(prefix.leave_out, stack, layer)) continue;
      e_.sublayers[key].prefix += prefix.virtual_tokens;
      e_.sublayers[key].prefix_gates += !trained ? 0 : prefix.gate.shared ? 1 : 2;
    }
    e_.all_rows = e_.all_rows || trained;
    if (prefix.projection) {
      const int64_t width = info.key_heads * info.head_size;
      const int64_t m = prefix.projection_width > 0 ? prefix.projection_width : width;
      const int64_t e = prefix.embedding_width > 0 ? prefix.embedding_width : width;
      e_.beside += 4 * prefix.virtual_tokens * (e + 2 * m);
    }
    return true;
  }
  absl::StatusOr<bool> Add(const LoraConfig& lora) {
    if (lora.bias != LoraBias::kNone || !lora.modules_to_save.empty() || lora.lora_bias) {
      return false;
    }
    PERMAFROST_ASSIGN_OR_RETURN(const MatchedTargets targets,
                                MatchLinearsAndEmbeddings(lora.targets, model_));
    if (!targets.embeddings.empty()) e_.embedding = true;
    const bool from_weights = lora.init == LoraInit::kPissa || lora.init == LoraInit::kOlora;
    const bool dropped = lora.dora && lora.dropout > 0;
    for (const int i : targets.linears) {
      Effects::OfLinear& at = Trained(i, lora.rank);
      at.start_rank = from_weights ? lora.rank : 0;
      at.outputs_kept += lora.dora ? 1 : 0;
      if (dropped) {  // each target's own, instead of the one that all share
        at.keeps_input = false;
        ++at.inputs_kept;
      }
      at.gates += lora.gate.trained() ? 1 : 0;
    }
    e_.all_rows = e_.all_rows || lora.gate.trained();
    return true;
  }
  absl::StatusOr<bool> Add(const AdaLoraConfig& adalora) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> places,
                                MatchTargets(adalora.targets, model_));
    for (const int i : places) Trained(i, adalora.rank);
    return true;
  }
  absl::StatusOr<bool> Add(const Ia3Config& ia3) {
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> places, MatchTargets(ia3.targets, model_));
    for (const int i : places) {
      Effects::OfLinear& at = e_.linears[static_cast<size_t>(i)];
      at.changes = true;
      const LinearPlace& place = model_.linears()[static_cast<size_t>(i)];
      const bool input =
          std::any_of(ia3.feedforward.begin(), ia3.feedforward.end(),
                      [&](const std::string& name) { return absl::EndsWith(place.module, name); });
      if (ia3.feedforward_is_regex) return false;
      at.inputs_kept += input ? 1 : 0;
      at.outputs_kept += input ? 0 : 1;
    }
    return true;
  }
  absl::StatusOr<bool> Add(const BottleneckConfig& adapter) {
    constexpr int64_t kReduction = 16;
    const int64_t fallback =
        adapter.width > 0 ? adapter.width : std::max<int64_t>(1, model_.info().width / kReduction);
    for (const SublayerKey& key : Places()) {
      const auto& [stack, layer, sublayer] = key;
      const bool wanted = sublayer == Sublayer::kCrossAttention  ? adapter.after_cross
                          : sublayer == Sublayer::kSelfAttention ? adapter.after_attention
                                                                 : adapter.after_feed_forward;
      if (!wanted || LeftOut(adapter.leave_out, stack, layer)) continue;
      const auto own = adapter.layer_widths.find(Number(stack, layer));
      e_.sublayers[key].adapters.emplace_back(
          &adapter, own != adapter.layer_widths.end() ? own->second : fallback);
    }
    e_.all_rows = e_.all_rows || adapter.gate.trained();
    return true;
  }
  absl::StatusOr<bool> Add(const BitFitConfig& bitfit) {
    std::vector<int> places;
    const bool named = !bitfit.targets.modules.empty();
    if (named) {
      PERMAFROST_ASSIGN_OR_RETURN(places, MatchTargets(bitfit.targets, model_));
    }
    const bool any = std::any_of(model_.linears().begin(), model_.linears().end(),
                                 [](const LinearPlace& p) { return p.bias != kNoTensor; });
    for (const LinearPlace& place : model_.linears()) {
      if (!named && (place.bias != kNoTensor || !any)) places.push_back(place.index);
      // GPT-2's norms have biases too.
      if (!named && model_.info().model_type == "gpt2") e_.norms.insert(Key(place.site));
    }
    for (const int i : places) e_.linears[static_cast<size_t>(i)].changes = true;
    return true;
  }
  absl::StatusOr<bool> Add(const FullConfig& full) {
    using Part = FullConfig::Part;
    const int64_t first =
        full.part == Part::kTopLayers ? model_.info().decoder_layers - full.layers : 0;
    e_.head = full.part == Part::kAll || full.part == Part::kHead;
    e_.embedding = full.part == Part::kAll ||
                   (full.part == Part::kHead && model_.head_tensor() == model_.embedding_tensor());
    if (full.part == Part::kHead) return true;
    if (full.part == Part::kNorms) return AddNorms(full.norms);
    for (const LinearPlace& place : model_.linears()) {
      const bool in = full.part != Part::kTopLayers ||
                      (place.site.stack == Stack::kDecoder && place.site.layer >= first);
      if (!in) continue;
      e_.norms.insert(Key(place.site));
      Trained(place.index, 0);
    }
    return true;
  }
  absl::StatusOr<bool> Add(const UniPeltConfig& all) {
    for (const PartConfig& part : all.parts) {
      PERMAFROST_ASSIGN_OR_RETURN(const bool known,
                                  std::visit([&](const auto& own) { return Add(own); }, part));
      if (!known) return false;
    }
    return true;
  }

 private:
  // The norms whose modules' names end so; none: all.
  absl::StatusOr<bool> AddNorms(const std::vector<std::string>& names) {
    for (const TensorId id : NormTensors(model_)) {
      const std::string& tensor = model_.tensors()[static_cast<size_t>(id)].name;
      const std::string module = tensor.substr(0, tensor.rfind('.'));
      bool named = names.empty();
      for (const std::string& name : names) {
        PERMAFROST_ASSIGN_OR_RETURN(const bool match, NamesModule(name, false, module));
        named = named || match;
      }
      if (named) AddNorm(module);
    }
    return true;
  }
  // The sublayer that a norm stands in front of, by the names of Hugging Face's modules.
  void AddNorm(const std::string& module) {
    const Stack stack = absl::StartsWith(module, "encoder.") ? Stack::kEncoder : Stack::kDecoder;
    for (const LinearPlace& place : model_.linears()) {
      const SiteId& s = place.site;
      const size_t behind = place.module.find(absl::StrCat(".", s.layer, "."));
      const std::string layer =
          place.module.substr(0, behind) + absl::StrCat(".", s.layer, ".");  // "model.layers.0."
      if (s.stack != stack || !absl::StartsWith(module, layer)) continue;
      std::string own = module.substr(layer.size());
      // T5: "layer.1.layer_norm" beside "layer.1.EncDecAttention.q".
      const bool t5 = absl::StartsWith(own, "layer.");
      const bool first = own == "input_layernorm" || own == "ln_1";
      const bool here = t5 ? absl::StartsWith(place.module.substr(layer.size()), own.substr(0, 8))
                           : first == (s.sublayer == Sublayer::kSelfAttention);
      if (here) e_.norms.insert(Key(s));
      if (here) return;
    }
    e_.final_norms.insert(stack);
  }
  static SublayerKey Key(const SiteId& s) { return {s.stack, s.layer, s.sublayer}; }
  int Number(Stack stack, int layer) const {  // as leave_out counts
    const bool behind = stack == Stack::kDecoder && model_.info().encoder_decoder;
    return layer + (behind ? static_cast<int>(model_.info().layers) : 0);
  }
  bool LeftOut(const std::vector<int>& list, Stack stack, int layer) const {
    return std::find(list.begin(), list.end(), Number(stack, layer)) != list.end();
  }
  std::set<SublayerKey> Places() const {
    std::set<SublayerKey> places;
    for (const LinearPlace& p : model_.linears()) places.insert(Key(p.site));
    return places;
  }
  Effects::OfLinear& Trained(int index, int64_t rank) {
    Effects::OfLinear& at = e_.linears[static_cast<size_t>(index)];
    at.changes = at.keeps_input = true;
    at.rank += rank;
    return at;
  }

  const Model& model_;
  Effects& e_;
};

// Runs through the sublayers as a forward pass does and counts what is recorded.
class Counter {
 public:
  Counter(const Model& model, const Effects& effects, const StepRows& rows, Precision precision,
          Recompute recompute)
      : info_(model.info()),
        effects_(effects),
        rows_(rows),
        e_(precision == Precision::kBF16 ? 2 : 4),
        recompute_(recompute) {
    for (const LinearPlace& p : model.linears()) {
      linears_[{p.site.stack, p.site.layer, p.site.sublayer}].push_back(&p);
      gated_ = gated_ || p.site.projection == Projection::kGate;
    }
    const auto config = nlohmann::json::parse(info_.config_json, nullptr, false);
    if (info_.encoder_decoder && config.is_object()) {
      const int64_t distances =
          2 * config.value("relative_attention_max_distance", int64_t{128}) + 1;
      bias_ = 4 * info_.heads * distances;
      relu_ = !gated_;
    }
  }

  StepMemory Count() {
    memory_.kept = effects_.beside;
    bool encoder = false;
    if (info_.encoder_decoder) {
      encoder = RunStack(Stack::kEncoder, info_.layers, effects_.embedding) ||
                effects_.final_norms.contains(Stack::kEncoder);
      if (encoder) memory_.kept += Norm(rows_.encoder);
      encoded_needs_grad_ = encoder;
    }
    // A prompt of T5 stands in front of the encoder's text only; a trained embedding serves both.
    const bool entered = effects_.embedding && (!info_.encoder_decoder || effects_.head);
    const bool decoder = RunStack(Stack::kDecoder, info_.decoder_layers, entered) ||
                         effects_.final_norms.contains(Stack::kDecoder);
    // What recomputed parts read of others is theirs.
    const bool whole = recompute_ == Recompute::kNone;
    if (reads_encoded_ && whole) memory_.kept += e_ * rows_.encoder * info_.width;
    if (decoder) memory_.kept += Norm(rows_.outputs);
    if (decoder) memory_.kept += 4 * rows_.targets * (info_.width + 1);
    if (effects_.head) memory_.kept += 4 * info_.vocabulary * info_.width;
    return memory_;
  }

 private:
  int64_t Norm(int64_t rows) const {
    return e_ * rows * info_.width + (info_.model_type == "gpt2" ? 8 : 4) * rows;
  }

  // Whether the stack's output carries gradients; `entered`: whether its input does.
  bool RunStack(Stack stack, int64_t layers, bool entered) {
    const int64_t rows = stack == Stack::kEncoder ? rows_.encoder : rows_.decoder;
    bool biased = false;
    for (int layer = 0; layer < static_cast<int>(layers); ++layer) {
      const bool last = stack == Stack::kDecoder && layer + 1 == layers && !effects_.all_rows;
      const bool before = entered;
      int64_t bytes = 0;  // of the layer
      for (const Sublayer s :
           {Sublayer::kSelfAttention, Sublayer::kCrossAttention, Sublayer::kFeedForward}) {
        if (!linears_.contains({stack, layer, s})) continue;
        const int64_t at = s == Sublayer::kFeedForward && last ? rows_.outputs : rows;
        bytes += RunSublayer({stack, layer, s}, at, entered);
        if (s == Sublayer::kSelfAttention) biased = biased || entered;
      }
      if (recompute_ == Recompute::kLayers) {
        memory_.recomputed = std::max(memory_.recomputed, bytes);
        if (entered || before) memory_.kept += e_ * rows * info_.width;
      } else {
        memory_.kept += bytes;
      }
    }
    if (biased && recompute_ == Recompute::kNone) memory_.kept += bias_;
    return entered;
  }

  // The bytes of a sublayer and what stands behind it.
  int64_t RunSublayer(const SublayerKey& key, int64_t rows, bool& entered) {
    const auto& [stack, layer, sublayer] = key;
    const bool attention = sublayer != Sublayer::kFeedForward;
    const bool cross = sublayer == Sublayer::kCrossAttention;
    static const Effects::OfSublayer kNothing;
    const auto found = effects_.sublayers.find(key);
    const Effects::OfSublayer& here = found == effects_.sublayers.end() ? kNothing : found->second;

    const bool normed = entered || effects_.norms.contains(key);
    bool recorded = normed || (cross && encoded_needs_grad_) || here.prefix > 0;
    bool input_kept = here.prefix_gates > 0;
    int64_t inside = normed ? Norm(rows) : 0, behind = 0;
    bool output_changes = false;
    for (const LinearPlace* place : linears_.at(key)) {
      const Projection p = place->site.projection;
      const bool first = p != Projection::kOutput && p != Projection::kDown;
      const bool of_encoder = cross && (p == Projection::kKey || p == Projection::kValue);
      const int64_t at = of_encoder ? rows_.encoder : rows;
      const Effects::OfLinear& own = effects_.linears[static_cast<size_t>(place->index)];
      int64_t& bytes = first ? inside : behind;
      bytes += at * (4 * own.rank + 12 * own.gates) + own.outputs_kept * e_ * at * place->outputs;
      bytes += own.inputs_kept * e_ * at * place->inputs;
      if (first ? normed : recorded) {
        bytes += 4 * own.start_rank * (place->inputs + place->outputs);
      }
      if (first) recorded = recorded || own.changes;
      output_changes = output_changes || own.changes;
      if (!own.keeps_input) continue;
      if (of_encoder) {
        reads_encoded_ = true;
      } else if (first) {
        input_kept = true;
      } else if (p == Projection::kDown || !recorded || recompute_ == Recompute::kAttention) {
        bytes += e_ * at * place->inputs;  // else attention's output is kept already
      }
    }
    if (input_kept) inside += e_ * rows * info_.width;
    if (recorded)
      inside += attention ? Attention(rows, cross ? rows_.encoder : rows, here) : Hidden(key, rows);
    if (attention && recorded && recompute_ == Recompute::kAttention) {
      memory_.recomputed = std::max(memory_.recomputed, inside);
      inside = e_ * rows * info_.width;
    }
    entered = entered || recorded || output_changes || !here.adapters.empty();
    for (const auto& [adapter, b] : here.adapters) behind += Adapter(*adapter, b, rows, normed);
    return inside + behind;
  }

  int64_t Attention(int64_t rows, int64_t key_rows, const Effects::OfSublayer& here) const {
    const int64_t keys = info_.key_heads * info_.head_size;
    return 2 * e_ * rows * info_.heads * info_.head_size + 2 * e_ * key_rows * keys +
           4 * rows * info_.heads + 8 * here.prefix * keys + 12 * here.prefix_gates * rows;
  }
  int64_t Hidden(const SublayerKey& key, int64_t rows) const {
    for (const LinearPlace* place : linears_.at(key)) {
      if (place->site.projection != Projection::kUp) continue;
      if (gated_) return 2 * e_ * rows * place->outputs;
      return relu_ ? rows * place->outputs / 8 : e_ * rows * place->outputs;
    }
    return 0;
  }
  int64_t Adapter(const BottleneckConfig& a, int64_t b, int64_t rows, bool normed) const {
    const int64_t wide = e_ * rows * info_.width, narrow = e_ * rows * b;
    // A parallel adapter reads what the sublayer's norm keeps already.
    int64_t bytes = narrow + (a.parallel && normed && !a.ln_before ? 0 : wide);
    bytes += a.activation == Activation::kRelu ? rows * b / 8 : narrow;
    bytes += (a.ln_before ? wide + 8 * rows : 0) + (a.ln_after ? wide + 8 * rows : 0);
    if (a.scaling != BottleneckConfig::Scaling::kFixed) bytes += wide;
    if (a.gate.trained()) bytes += (a.parallel ? 1 : 2) * wide + 12 * rows;
    return bytes;
  }

  const ModelInfo& info_;
  const Effects& effects_;
  const StepRows rows_;
  const int64_t e_;
  const Recompute recompute_;
  std::map<SublayerKey, std::vector<const LinearPlace*>> linears_;
  bool gated_ = false, relu_ = false;
  int64_t bias_ = 0;
  bool encoded_needs_grad_ = false, reads_encoded_ = false;
  StepMemory memory_;
};

}  // namespace

absl::StatusOr<std::optional<StepMemory>> EstimateStepMemory(const AdapterConfig& config,
                                                             const Model& model,
                                                             const StepRows& rows,
                                                             Precision precision,
                                                             Recompute recompute) {
  Effects effects;
  Collector collector(model, effects);
  PERMAFROST_ASSIGN_OR_RETURN(
      const bool known, std::visit([&](const auto& own) { return collector.Add(own); }, config));
  if (!known) return std::optional<StepMemory>();
  return std::optional<StepMemory>(Counter(model, effects, rows, precision, recompute).Count());
}

}  // namespace permafrost
