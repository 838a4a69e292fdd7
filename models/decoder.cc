#include "models/decoder.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "models/config_fields.h"

namespace permafrost {
namespace {

// cos and sin of position * theta^(-2 i / K), angles in f32 as transformers has them.
RopeTable MakeRopeTable(const DecoderConfig& d) {
  const int64_t half = d.head_size / 2;
  RopeTable table{Tensor({d.max_positions, half}, MemoryTag::kWeight),
                  Tensor({d.max_positions, half}, MemoryTag::kWeight)};
  for (int64_t i = 0; i < half; ++i) {
    const float inverse =
        static_cast<float>(1.0 / std::pow(d.rope_theta, 2.0 * static_cast<double>(i) /
                                                            static_cast<double>(d.head_size)));
    for (int64_t p = 0; p < d.max_positions; ++p) {
      const float angle = static_cast<float>(p) * inverse;
      table.cos.row(p)[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
      table.sin.row(p)[i] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
  return table;
}

}  // namespace

void Decoder::LoadLlama(Loader& loader) {
  const DecoderConfig& d = config_;
  const int64_t q = d.heads * d.head_size, kv = d.key_heads * d.head_size;
  embedding_ = loader.Matrix("model.embed_tokens.weight", d.vocabulary, d.hidden);
  for (int64_t i = 0; i < d.layers; ++i) {
    const std::string p = absl::StrCat("model.layers.", i);
    const auto linear = [&](Sublayer sub, Projection projection, const std::string& name,
                            int64_t outputs, int64_t inputs, bool bias) {
      return loader.LinearAt({Stack::kDecoder, static_cast<int>(i), sub, projection},
                             absl::StrCat(p, ".", name), outputs, inputs, bias);
    };
    Layer layer;
    layer.attention_norm.scale = loader.Vector(p + ".input_layernorm.weight", d.hidden);
    layer.query = linear(Sublayer::kSelfAttention, Projection::kQuery, "self_attn.q_proj", q,
                         d.hidden, d.query_key_value_bias);
    layer.key = linear(Sublayer::kSelfAttention, Projection::kKey, "self_attn.k_proj", kv, d.hidden,
                       d.query_key_value_bias);
    layer.value = linear(Sublayer::kSelfAttention, Projection::kValue, "self_attn.v_proj", kv,
                         d.hidden, d.query_key_value_bias);
    layer.output = linear(Sublayer::kSelfAttention, Projection::kOutput, "self_attn.o_proj",
                          d.hidden, q, d.output_bias);
    layer.mlp_norm.scale = loader.Vector(p + ".post_attention_layernorm.weight", d.hidden);
    layer.gate = linear(Sublayer::kFeedForward, Projection::kGate, "mlp.gate_proj", d.intermediate,
                        d.hidden, d.mlp_bias);
    layer.up = linear(Sublayer::kFeedForward, Projection::kUp, "mlp.up_proj", d.intermediate,
                      d.hidden, d.mlp_bias);
    layer.down = linear(Sublayer::kFeedForward, Projection::kDown, "mlp.down_proj", d.hidden,
                        d.intermediate, d.mlp_bias);
    layers_.push_back(layer);
  }
  final_norm_.scale = loader.Vector("model.norm.weight", d.hidden);
  loader.IgnoreSuffix("rotary_emb.inv_freq");
  rope_ = MakeRopeTable(d);
}

void Decoder::LoadGpt2(Loader& loader) {
  const DecoderConfig& d = config_;
  if (!loader.Has("transformer.wte.weight")) loader.set_missing_prefix("transformer.");
  embedding_ = loader.Matrix("transformer.wte.weight", d.vocabulary, d.hidden);
  positions_ = loader.Table("transformer.wpe.weight", d.max_positions, d.hidden);
  const auto norm = [&](const std::string& module) {
    return Norm{loader.Vector(module + ".weight", d.hidden),
                loader.Vector(module + ".bias", d.hidden)};
  };
  for (int64_t i = 0; i < d.layers; ++i) {
    const std::string p = absl::StrCat("transformer.h.", i);
    const auto linear = [&](Sublayer sub, Projection projection, const std::string& name,
                            int64_t outputs, int64_t inputs) {
      return loader.LinearAt({Stack::kDecoder, static_cast<int>(i), sub, projection},
                             absl::StrCat(p, ".", name), outputs, inputs, true, true);
    };
    Layer layer;
    layer.attention_norm = norm(p + ".ln_1");
    layer.fused = linear(Sublayer::kSelfAttention, Projection::kFusedQueryKeyValue, "attn.c_attn",
                         3 * d.hidden, d.hidden);
    layer.output =
        linear(Sublayer::kSelfAttention, Projection::kOutput, "attn.c_proj", d.hidden, d.hidden);
    layer.mlp_norm = norm(p + ".ln_2");
    layer.up =
        linear(Sublayer::kFeedForward, Projection::kUp, "mlp.c_fc", d.intermediate, d.hidden);
    layer.down =
        linear(Sublayer::kFeedForward, Projection::kDown, "mlp.c_proj", d.hidden, d.intermediate);
    layers_.push_back(layer);
  }
  final_norm_ = norm("transformer.ln_f");
  loader.IgnoreSuffix(".attn.bias");
  loader.IgnoreSuffix(".attn.masked_bias");
}

absl::StatusOr<std::unique_ptr<Model>> Decoder::Load(Context& c, const BaseFiles& files) {
  auto model = std::make_unique<Decoder>();
  PERMAFROST_ASSIGN_OR_RETURN(
      model->config_, ParseDecoderConfig(files.config_json, files.config_source, model->info_));
  PERMAFROST_RETURN_IF_ERROR(
      ReadEndTokens(JsonFields(files.generation, files.generation_source), model->info_));
  Loader loader(c, *files.weights, model->tensors_, model->linears_, model->weights_);
  if (model->config_.gpt2) {
    model->LoadGpt2(loader);
  } else {
    model->LoadLlama(loader);
  }
  // Tying is decided from the tensors: a stored head that differs from the embedding is a head of
  // its own.
  const std::string embedding = model->tensors_[static_cast<size_t>(model->embedding_)].name;
  const bool stored = loader.Has("lm_head.weight");
  if (stored && loader.Has(embedding) && loader.Same("lm_head.weight", embedding)) {
    loader.Ignore("lm_head.weight");
    model->head_ = model->embedding_;
  } else if (!stored && model->config_.tied) {
    model->head_ = model->embedding_;
  } else {
    model->head_ =
        loader.Matrix("lm_head.weight", model->config_.vocabulary, model->config_.hidden);
  }
  PERMAFROST_RETURN_IF_ERROR(loader.Finish());
  model->info_.path = files.weights->path();
  model->info_.hash = files.weights->hash();
  return model;
}

Var Decoder::ApplyNorm(Context& c, const ForwardState& f, const Norm& norm, const Var& x,
                       const PlaceRows& rows) const {
  return ByTask(c, f.hooks, {norm.scale, norm.bias}, x, rows.spans, x.columns(),
                [&](Context& ctx, const Var& part, int task) {
                  const Var scale = BaseVector(f, norm.scale, task);
                  if (norm.bias == kNoTensor) {
                    return RmsNorm(ctx, part, scale, config_.norm_epsilon);
                  }
                  return LayerNorm(ctx, part, scale, BaseVector(f, norm.bias, task),
                                   config_.norm_epsilon);
                });
}

Var Decoder::AttentionHeads(Context& c, const ForwardState& f, size_t index,
                            const Var& residual) const {
  const Layer& layer = layers_[index];
  const PlaceRows rows = f.DecoderRows();
  const Var x = ApplyNorm(c, f, layer.attention_norm, residual, rows);
  Var q, k, v;
  if (config_.gpt2) {
    const Var fused = ApplyLinear(c, f, layer.fused, x, rows);
    q = Columns(c, fused, 0, config_.hidden);
    k = Columns(c, fused, config_.hidden, config_.hidden);
    v = Columns(c, fused, 2 * config_.hidden, config_.hidden);
  } else {
    const std::vector<int32_t>& positions = rows.stack.rows.positions;
    q = Rope(c, ApplyLinear(c, f, layer.query, x, rows), rope_, positions, config_.heads);
    k = Rope(c, ApplyLinear(c, f, layer.key, x, rows), rope_, positions, config_.key_heads);
    v = ApplyLinear(c, f, layer.value, x, rows);
  }
  if (f.cache != nullptr) std::tie(k, v) = StoreKeyValue(*f.cache, index, k, v);
  const SiteId site{Stack::kDecoder, static_cast<int>(index), Sublayer::kSelfAttention,
                    Projection::kOutput};
  const float scale =
      config_.scale_attention ? 1 / std::sqrt(static_cast<float>(config_.head_size)) : 1.0f;
  return Attention(c, q, k, v, {}, rows.stack.self,
                   {.heads = config_.heads,
                    .key_heads = config_.key_heads,
                    .head_size = config_.head_size,
                    .scale = scale,
                    .causal = true,
                    .bias_distance = 0},
                   Prefixes(c, f, site, x, rows));
}

Var Decoder::SelfAttention(Context& c, const ForwardState& f, size_t index, const Var& x) const {
  const Var heads = RecomputedIf(
      c.recompute == Recompute::kAttention, c, x,
      [this, f, index](Context& ctx, const Var& in) { return AttentionHeads(ctx, f, index, in); });
  return ApplyLinear(c, f, layers_[index].output, heads, f.DecoderRows());
}

Var Decoder::FeedForward(Context& c, const ForwardState& f, size_t index, const Var& x,
                         const PlaceRows& rows) const {
  const Layer& layer = layers_[index];
  Var h;
  if (config_.gpt2) {
    h = Activate(c, config_.activation, ApplyLinear(c, f, layer.up, x, rows));
  } else {
    h = Gated(c, config_.activation, ApplyLinear(c, f, layer.gate, x, rows),
              ApplyLinear(c, f, layer.up, x, rows));
  }
  return ApplyLinear(c, f, layer.down, h, rows);
}

Var Decoder::LayerForward(Context& c, const ForwardState& f, size_t index, Var x) const {
  const Layer& layer = layers_[index];
  const int number = static_cast<int>(index);
  const SiteId attention_site{Stack::kDecoder, number, Sublayer::kSelfAttention,
                              Projection::kOutput};
  Var y = SelfAttention(c, f, index, x);
  y = f.hooks.OnSublayerOutput(c, attention_site, x, std::move(y), f.DecoderRows());
  x = Add(c, std::move(x), y);

  // Above the last attention only the wanted rows matter.
  const bool last = index + 1 == layers_.size();
  const bool narrow = last && !f.hooks.ReadsAllRows();
  const PlaceRows rows = narrow ? f.WantedRows() : f.DecoderRows();
  if (narrow) x = GatherRows(c, x, f.batch.outputs);

  const SiteId mlp_site{Stack::kDecoder, number, Sublayer::kFeedForward, Projection::kDown};
  y = FeedForward(c, f, index, ApplyNorm(c, f, layer.mlp_norm, x, rows), rows);
  y = f.hooks.OnSublayerOutput(c, mlp_site, x, std::move(y), rows);
  x = Add(c, std::move(x), y);
  return last && !narrow ? GatherRows(c, x, f.batch.outputs) : x;
}

Var Decoder::Decode(Context& c, const Batch& batch, const Var&, Hooks& hooks, Cache* cache) const {
  const ForwardState f{*this, hooks, batch, cache};
  Var x = Embed(c, Stack::kDecoder, batch, hooks);
  if (config_.gpt2) {
    const std::vector<int32_t>& ids = batch.decoder.rows.positions;
    const Var base = GatherRows(c, BaseVector(f, positions_, kNoTask), ids);
    x = Add(c, std::move(x), ReplaceLookup(c, hooks, positions_, base, ids, batch.decoder.spans));
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (c.recompute == Recompute::kLayers) {
      x = Checkpoint(
          c, x, [this, f, i](Context& ctx, const Var& in) { return LayerForward(ctx, f, i, in); });
    } else {
      x = LayerForward(c, f, i, std::move(x));
    }
  }
  return ApplyNorm(c, f, final_norm_, x, f.WantedRows());
}

}  // namespace permafrost
