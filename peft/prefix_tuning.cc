#include "peft/prefix_tuning.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "engine/random_tensor.h"
#include "peft/prompt_tuning.h"

namespace permafrost {
namespace {

// Behind any LoRA's or adapter's place of dropout.
constexpr uint32_t kDropoutPlace = 1u << 20;

}  // namespace

PrefixTuning::PrefixTuning(int task, const PrefixTuningConfig& config, const Model& model)
    : Method(task),
      config_(config),
      width_(model.info().key_heads * model.info().head_size),
      has_bias_(model.info().encoder_decoder) {
  if (config_.projection_width == 0) config_.projection_width = width_;
  if (config_.embedding_width == 0) config_.embedding_width = width_;
}

absl::StatusOr<std::unique_ptr<PrefixTuning>> PrefixTuning::Create(int task,
                                                                   const PrefixTuningConfig& config,
                                                                   const Model& model,
                                                                   Random& random) {
  const ModelInfo& info = model.info();
  if ((config.encoder || config.cross) && !info.encoder_decoder) {
    return absl::InvalidArgumentError(absl::StrCat("prefix of the ",
                                                   config.encoder ? "encoder" : "cross attention",
                                                   ": a ", info.model_type, " base has none"));
  }
  if (!config.encoder && !config.decoder && !config.cross) {
    return absl::InvalidArgumentError("prefix tuning: expected at least one group, found none");
  }
  if (config.peft_layout) {
    PERMAFROST_CHECK(config.decoder && !config.encoder && !config.cross)
        << "PrefixTuning: PEFT's layout holds the decoder's self-attention alone";
    const int64_t layers = config.layers > 0 ? config.layers : info.decoder_layers;
    if (layers < info.decoder_layers || (!info.encoder_decoder && layers > info.decoder_layers)) {
      return absl::InvalidArgumentError(absl::StrCat("num_layers: expected ", info.decoder_layers,
                                                     info.encoder_decoder ? " or more" : "",
                                                     " for this base, found ", layers));
    }
  }
  auto prefix = std::unique_ptr<PrefixTuning>(new PrefixTuning(task, config, model));
  const auto add = [&](bool wanted, Stack stack, Sublayer sublayer, const char* name) {
    if (wanted) prefix->AddGroup(stack, sublayer, name, model, random);
  };
  add(config.encoder, Stack::kEncoder, Sublayer::kSelfAttention, "encoder_prefix");
  add(config.decoder, Stack::kDecoder, Sublayer::kSelfAttention,
      config.peft_layout ? kPromptTensor : "self_prefix");
  add(config.cross, Stack::kDecoder, Sublayer::kCrossAttention, "cross_prefix");
  return prefix;
}

void PrefixTuning::AddGroup(Stack stack, Sublayer sublayer, const std::string& name,
                            const Model& model, Random& random) {
  const ModelInfo& info = model.info();
  Group group{name, stack, sublayer, {}, {}, {}, parameters_.size(), {}};
  const int64_t count = stack == Stack::kEncoder ? info.layers : info.decoder_layers;
  const int64_t first =
      stack == Stack::kDecoder && info.encoder_decoder ? info.layers : 0;  // in leave_out
  int64_t rows = 0;
  for (int64_t layer = 0; layer < count; ++layer) {
    const bool out = std::find(config_.leave_out.begin(), config_.leave_out.end(), first + layer) !=
                     config_.leave_out.end();
    group.key_row.push_back(out ? -1 : rows);
    group.value_row.push_back(out ? -1 : rows + 1);
    if (!out) rows += 2;
  }
  if (config_.peft_layout && info.encoder_decoder) {
    rows = 2 * std::max(config_.layers, count);
    for (int64_t layer = 0; layer < count; ++layer) {
      group.key_row[static_cast<size_t>(layer)] = 4 * layer % rows;
      group.value_row[static_cast<size_t>(layer)] = (4 * layer + 1) % rows;
    }
  }

  const bool zero = config_.init == PrefixTuningConfig::Init::kZero;
  const int64_t p = config_.virtual_tokens, table = rows * width_;
  // PEFT's and AdapterHub's networks have one group each; several share names but for the group's.
  const std::string own = config_.peft_layout ? "" : name + ".";
  if (!config_.projection) {
    parameters_.Add(name, zero ? Tensor::Zeros({p, table}) : NormalTensor({p, table}, 1, random));
  } else {
    const int64_t e = config_.embedding_width, m = config_.projection_width;
    const auto uniform = [&](Shape shape, int64_t inputs) {
      return UniformTensor(shape, 1 / std::sqrt(static_cast<double>(inputs)), random);
    };
    parameters_.Add(own + "embedding.weight", NormalTensor({p, e}, 1, random));
    parameters_.Add(own + "transform.0.weight", uniform({m, e}, e));
    parameters_.Add(own + "transform.0.bias", uniform({1, m}, e));
    parameters_.Add(own + "transform.2.weight",
                    zero ? Tensor::Zeros({table, m}) : uniform({table, m}, m));
    parameters_.Add(own + "transform.2.bias",
                    zero ? Tensor::Zeros({1, table}) : uniform({1, table}, m));
  }
  for (int64_t layer = 0; layer < count; ++layer) {
    std::optional<Gate>& gate = group.gates.emplace_back();
    if (!config_.gate.trained() || group.key_row[static_cast<size_t>(layer)] < 0) continue;
    gate.emplace(parameters_, absl::StrCat(name, ".", layer, ".gate"), info.width,
                 config_.gate.shared ? 1 : 2, config_.gate.kind, random);
  }
  groups_.push_back(std::move(group));
}

int64_t PrefixTuning::FirstPosition(int task) const {
  return task == task_ && config_.text_after_prefix ? config_.virtual_tokens : 0;
}

int64_t PrefixTuning::BiasShift(int task, Stack stack) const {
  const bool shifted = config_.positions == PrefixTuningConfig::Positions::kShifted &&
                       (stack == Stack::kEncoder ? config_.encoder : config_.decoder);
  return task == task_ && shifted ? config_.virtual_tokens : 0;
}

bool PrefixTuning::ReadsFuture(int task) const {
  return task == task_ && config_.gate.reads_future() && (config_.decoder || config_.cross);
}

Var PrefixTuning::TableOf(Context& c, const Group& group) const {
  const auto var = [&](size_t i) { return parameters_[group.parameter + i].var(); };
  if (!config_.projection) return var(0);
  Var h = AddBias(c, MatMulTransposed(c, var(0), var(1)), var(2));
  h = Activate(c, config_.projection_activation, std::move(h));
  return AddBias(c, MatMulTransposed(c, h, var(3)), var(4));
}

Var PrefixTuning::OnEmbedding(Context& c, Stack stack, const Batch&, Var x) {
  for (size_t i = 0; i < groups_.size(); ++i) {
    Group& group = groups_[i];
    if (group.stack != stack) continue;
    group.table = TableOf(c, group);
    if (config_.dropout > 0) {
      group.table = Dropout(c, group.table, static_cast<float>(config_.dropout),
                            MaskOf(kDropoutPlace + static_cast<uint32_t>(i)));
    }
  }
  return x;
}

void PrefixTuning::OnAttention(Context& c, const SiteId& site, const Var& x, const PlaceRows& rows,
                               std::vector<Prefix>& prefixes) {
  if (Own(rows.spans).empty()) return;
  for (Group& group : groups_) {
    if (group.stack != site.stack || group.sublayer != site.sublayer) continue;
    const size_t layer = static_cast<size_t>(site.layer);
    if (group.key_row[layer] < 0) continue;
    Prefix prefix{
        task_,
        Columns(c, group.table, group.key_row[layer] * width_, width_),
        Columns(c, group.table, group.value_row[layer] * width_, width_),
        {},
        has_bias_ && config_.positions != PrefixTuningConfig::Positions::kNone &&
            site.sublayer == Sublayer::kSelfAttention,
        config_.positions == PrefixTuningConfig::Positions::kShifted ? 0 : -config_.virtual_tokens};
    if (config_.gate.constant()) {
      const float factor = static_cast<float>(config_.gate.value);
      prefix.keys = Scale(c, std::move(prefix.keys), factor);
      prefix.values = Scale(c, std::move(prefix.values), factor);
    } else if (group.gates[layer].has_value()) {
      prefix.gate = group.gates[layer]->Of(c, x, rows, task_);
    }
    prefixes.push_back(std::move(prefix));
  }
}

std::vector<FileTensor> PrefixTuning::FileTensors() const {
  if (!config_.projection) return Method::FileTensors();
  std::vector<FileTensor> tensors;
  Context c;
  for (const Group& group : groups_) {
    const Tensor table = TableOf(c, group).value();
    tensors.push_back({group.name, {table.rows(), table.columns()}, table});
  }
  for (const Parameter& p : parameters_) {
    if (p.name().find(".gate.") != std::string::npos) {
      tensors.push_back({p.name(), FileShape(p), p.value()});
    }
  }
  return tensors;
}

std::vector<GateMean> PrefixTuning::TakeGateMeans() {
  std::vector<GateMean> means;
  for (Group& group : groups_) {
    for (std::optional<Gate>& gate : group.gates) {
      if (gate.has_value()) gate->TakeMeans(means);
    }
  }
  return means;
}

std::vector<PrefixTuning::Table> PrefixTuning::Tables() {
  PERMAFROST_CHECK(!config_.projection) << "PrefixTuning::Tables: the tables are a network's";
  std::vector<Table> tables;
  for (const Group& group : groups_) {
    tables.push_back({group.stack, group.sublayer, &parameters_[group.parameter], group.key_row,
                      group.value_row});
  }
  return tables;
}

}  // namespace permafrost
