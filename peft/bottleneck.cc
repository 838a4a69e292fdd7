#include "peft/bottleneck.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "engine/random_tensor.h"

namespace permafrost {
namespace {

constexpr float kNormEpsilon = 1e-5f;  // torch's LayerNorm
constexpr uint32_t kDropoutPlace = 1u << 21;

Tensor InitialWeight(Shape shape, BottleneckConfig::Init init, bool up, Random& random) {
  switch (init) {
    case BottleneckConfig::Init::kBert:
      return NormalTensor(shape, 0.02, random);
    case BottleneckConfig::Init::kMam:
      return up ? Tensor::Zeros(shape)
                : UniformTensor(shape, 1 / std::sqrt(static_cast<double>(shape.columns)), random);
    case BottleneckConfig::Init::kHoulsby:
      break;
  }
  Tensor t(shape);
  for (int64_t i = 0; i < t.count(); ++i) {
    double z = random.Normal();
    while (std::abs(z) > 2) z = random.Normal();
    t.f32()[i] = static_cast<float>(0.01 * z);
  }
  return t;
}

}  // namespace

std::string SublayerName(const SiteId& site) {
  const char* sublayer = site.sublayer == Sublayer::kSelfAttention    ? "self_attention"
                         : site.sublayer == Sublayer::kCrossAttention ? "cross_attention"
                                                                      : "feed_forward";
  return absl::StrCat(site.stack == Stack::kEncoder ? "encoder" : "decoder", ".layers.", site.layer,
                      ".", sublayer);
}

BottleneckConfig HoulsbyConfig() {
  BottleneckConfig config;
  config.after_attention = true;
  config.activation = Activation::kSilu;
  config.original_ln_before = false;
  return config;
}

BottleneckConfig PfeifferConfig() { return {}; }

BottleneckConfig ParallelConfig() {
  BottleneckConfig config;
  config.parallel = true;
  config.scale = 4;
  config.init = BottleneckConfig::Init::kMam;
  return config;
}

absl::StatusOr<std::unique_ptr<Bottleneck>> Bottleneck::Create(int task,
                                                               const BottleneckConfig& config,
                                                               const Model& model, Random& random) {
  constexpr int64_t kReduction = 16, kMostWidth = 65536;
  const ModelInfo& info = model.info();
  auto method = std::unique_ptr<Bottleneck>(new Bottleneck(task, config));
  const int64_t fallback =
      config.width > 0 ? config.width : std::max<int64_t>(1, info.width / kReduction);
  const auto add_stack = [&](Stack stack, int64_t layers, int first) -> absl::Status {
    for (int layer = 0; layer < static_cast<int>(layers); ++layer) {
      const int number = first + layer;
      if (std::find(config.leave_out.begin(), config.leave_out.end(), number) !=
          config.leave_out.end()) {
        continue;
      }
      const auto own = config.layer_widths.find(number);
      const int64_t width = own != config.layer_widths.end() ? own->second : fallback;
      if (width < 1 || width > kMostWidth) {
        return absl::InvalidArgumentError(absl::StrCat("adapter of layer ", number,
                                                       ": expected a bottleneck of 1 to ",
                                                       kMostWidth, ", found ", width));
      }
      const auto add = [&](bool wanted, Sublayer sublayer, Projection last) {
        if (wanted) method->AddAdapter({stack, layer, sublayer, last}, width, info.width, random);
      };
      add(config.after_attention, Sublayer::kSelfAttention, Projection::kOutput);
      add(config.after_cross && stack == Stack::kDecoder && info.encoder_decoder,
          Sublayer::kCrossAttention, Projection::kOutput);
      add(config.after_feed_forward, Sublayer::kFeedForward, Projection::kDown);
    }
    return absl::OkStatus();
  };
  const int encoder_layers = info.encoder_decoder ? static_cast<int>(info.layers) : 0;
  PERMAFROST_RETURN_IF_ERROR(add_stack(Stack::kEncoder, encoder_layers, 0));
  PERMAFROST_RETURN_IF_ERROR(add_stack(Stack::kDecoder, info.decoder_layers, encoder_layers));
  if (method->adapters_.empty()) {
    return absl::InvalidArgumentError(
        "adapters: expected at least one layer and sublayer, found none; check the placement and "
        "the layers left out");
  }
  return method;
}

void Bottleneck::AddAdapter(const SiteId& site, int64_t bottleneck, int64_t width, Random& random) {
  const std::string name = SublayerName(site);
  Adapter a{site, 0, 0, {}, {}, {}, {}, kDropoutPlace + static_cast<uint32_t>(adapters_.size())};
  const auto vector = [&](const char* suffix, int64_t n, float value) {
    Tensor t({1, n});
    std::fill_n(t.f32(), n, value);
    parameters_.Add(absl::StrCat(name, suffix), std::move(t));
    return parameters_.size() - 1;
  };
  const auto norm = [&](bool wanted, const char* part) -> std::optional<size_t> {
    if (!wanted) return std::nullopt;
    const size_t first = vector(absl::StrCat(".", part, ".weight").c_str(), width, 1);
    vector(absl::StrCat(".", part, ".bias").c_str(), width, 0);
    return first;
  };
  a.norm_before = norm(config_.ln_before, "adapter_norm_before");
  a.down = parameters_.size();
  parameters_.Add(name + ".adapter_down.weight",
                  InitialWeight({bottleneck, width}, config_.init, false, random));
  vector(".adapter_down.bias", bottleneck, 0);
  a.up = parameters_.size();
  parameters_.Add(name + ".adapter_up.weight",
                  InitialWeight({width, bottleneck}, config_.init, true, random));
  vector(".adapter_up.bias", width, 0);
  a.norm_after = norm(config_.ln_after, "adapter_norm_after");
  if (config_.scaling != BottleneckConfig::Scaling::kFixed) {
    const bool channel = config_.scaling == BottleneckConfig::Scaling::kChannel;
    a.scaling = vector(".scaling", channel ? width : 1, 1);
  }
  if (config_.gate.trained()) {
    a.gate.emplace(parameters_, name + ".gate", width, 1, config_.gate.kind, random);
  }
  adapters_.push_back(std::move(a));
}

Bottleneck::Adapter* Bottleneck::Find(const SiteId& site) {
  for (Adapter& a : adapters_) {
    if (a.site.stack == site.stack && a.site.layer == site.layer &&
        a.site.sublayer == site.sublayer) {
      return &a;
    }
  }
  return nullptr;
}

// A gate's mean runs over all rows, those above the last attention included.
bool Bottleneck::ReadsAllRows() const { return config_.gate.trained(); }

bool Bottleneck::ReadsFuture(int task) const {
  return task == task_ && config_.gate.reads_future();
}

bool Bottleneck::Rests(const Context& c, int layer) const {
  if (!c.training || config_.drop_layers == 0) return false;
  Random random(seed_, step_);
  return layer < random.Below(config_.drop_layers + 1);
}

Var Bottleneck::NormIf(Context& c, const std::optional<size_t>& norm, const Var& x) const {
  if (!norm.has_value()) return x;
  return LayerNorm(c, x, parameters_[*norm].var(), parameters_[*norm + 1].var(), kNormEpsilon);
}

Var Bottleneck::Apply(Context& c, const Adapter& a, const Var& h, const Var& gates) const {
  const auto linear = [&](const Var& in, size_t weight) {
    return AddBias(c, MatMulTransposed(c, in, parameters_[weight].var()),
                   parameters_[weight + 1].var());
  };
  Var u = Activate(c, config_.activation, linear(NormIf(c, a.norm_before, h), a.down));
  u = linear(u, a.up);
  if (!a.scaling.has_value()) {
    if (config_.scale != 1) u = Scale(c, std::move(u), static_cast<float>(config_.scale));
  } else {
    const Var& s = parameters_[*a.scaling].var();
    const std::vector<TaskSpan> all = {{0, u.rows(), task_}};
    if (config_.scaling == BottleneckConfig::Scaling::kChannel) {
      u = ScaleColumns(c, std::move(u), s, all);
    } else {
      Tensor ones({u.rows(), 1});
      std::fill_n(ones.f32(), u.rows(), 1.0f);
      u = ScaleRows(c, std::move(u), MatMulTransposed(c, Var(ones), s));
    }
  }
  if (config_.dropout > 0) {
    u = Dropout(c, std::move(u), static_cast<float>(config_.dropout), MaskOf(a.dropout_place));
  }
  if (gates) u = ScaleRows(c, std::move(u), gates);
  if (config_.gate.constant()) u = Scale(c, std::move(u), static_cast<float>(config_.gate.value));
  return u;
}

Var Bottleneck::OnSublayerOutput(Context& c, const SiteId& site, const Var& x_in, Var y,
                                 const PlaceRows& rows) {
  Adapter* a = Find(site);
  const std::vector<TaskSpan> own = Own(rows.spans);
  if (a == nullptr || own.empty() || Rests(c, site.layer)) return y;
  const Var x = TakeRows(c, x_in, own), s = TakeRows(c, y, own);
  const bool with_x = config_.parallel || config_.original_ln_before;
  Var gates;
  if (a->gate.has_value()) {
    const Var input = config_.parallel ? x_in : with_x ? Add(c, x_in, y) : y;
    gates = TakeRows(c, a->gate->Of(c, input, rows, task_), own);
  }
  Var result;
  if (config_.parallel) {
    result = Add(c, NormIf(c, a->norm_after, Apply(c, *a, x, gates)), s);
  } else {
    const Var h = with_x ? Add(c, x, s) : s;
    const Var r = config_.residual_before_ln ? s : h;
    const Var u = Apply(c, *a, h, gates);
    result = config_.adapter_residual_before_ln ? NormIf(c, a->norm_after, Add(c, u, r))
                                                : Add(c, NormIf(c, a->norm_after, u), r);
  }
  // The model adds x to what it gets back.
  if (!config_.original_ln_after) result = Add(c, Scale(c, x, -1), result);
  return PutRows(c, std::move(y), result, own);
}

std::vector<int64_t> Bottleneck::FileShape(const Parameter& p) const {
  const bool matrix = absl::EndsWith(p.name(), "down.weight") ||
                      absl::EndsWith(p.name(), "up.weight") ||
                      absl::EndsWith(p.name(), "gate.weight");
  if (matrix) return Method::FileShape(p);
  return {p.value().columns()};
}

std::vector<GateMean> Bottleneck::TakeGateMeans() {
  std::vector<GateMean> means;
  for (Adapter& a : adapters_) {
    if (a.gate.has_value()) a.gate->TakeMeans(means);
  }
  return means;
}

}  // namespace permafrost
