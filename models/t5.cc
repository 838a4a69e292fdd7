#include "models/t5.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "models/config_fields.h"

namespace permafrost {

T5::Attentive T5::LoadAttention(Loader& loader, SiteId site, const std::string& sublayer,
                                const std::string& module) {
  const int64_t inner = config_.heads * config_.head_size;
  const auto linear = [&](Projection projection, const char* name, int64_t outputs,
                          int64_t inputs) {
    site.projection = projection;
    return loader.LinearAt(site, absl::StrCat(sublayer, ".", module, ".", name), outputs, inputs,
                           false);
  };
  Attentive a;
  a.query = linear(Projection::kQuery, "q", inner, config_.width);
  a.key = linear(Projection::kKey, "k", inner, config_.width);
  a.value = linear(Projection::kValue, "v", inner, config_.width);
  a.output = linear(Projection::kOutput, "o", config_.width, inner);
  a.norm = loader.Vector(sublayer + ".layer_norm.weight", config_.width);
  return a;
}

void T5::LoadStack(Loader& loader, Stack stack, StackWeights& weights) {
  const bool decoder = stack == Stack::kDecoder;
  const std::string name = decoder ? "decoder" : "encoder";
  const int64_t layers = decoder ? config_.decoder_layers : config_.layers;
  for (int i = 0; i < layers; ++i) {
    const std::string block = absl::StrCat(name, ".block.", i, ".layer.");
    SiteId site{stack, i, Sublayer::kSelfAttention, Projection::kQuery};
    Layer layer;
    layer.self = LoadAttention(loader, site, block + "0", "SelfAttention");
    if (i == 0) {
      weights.bias = loader.Table(block + "0.SelfAttention.relative_attention_bias.weight",
                                  config_.buckets, config_.heads);
    }
    if (decoder) {
      site.sublayer = Sublayer::kCrossAttention;
      layer.cross = LoadAttention(loader, site, block + "1", "EncDecAttention");
    }
    site.sublayer = Sublayer::kFeedForward;
    const std::string ff = block + (decoder ? "2" : "1");
    const auto linear = [&](Projection projection, const char* part, int64_t outputs,
                            int64_t inputs) {
      site.projection = projection;
      return loader.LinearAt(site, absl::StrCat(ff, ".DenseReluDense.", part), outputs, inputs,
                             false);
    };
    if (config_.gated) {
      layer.gate = linear(Projection::kGate, "wi_0", config_.feed_forward, config_.width);
      layer.up = linear(Projection::kUp, "wi_1", config_.feed_forward, config_.width);
    } else {
      layer.up = linear(Projection::kUp, "wi", config_.feed_forward, config_.width);
    }
    layer.down = linear(Projection::kDown, "wo", config_.width, config_.feed_forward);
    layer.norm = loader.Vector(ff + ".layer_norm.weight", config_.width);
    weights.layers.push_back(layer);
  }
  weights.final_norm = loader.Vector(name + ".final_layer_norm.weight", config_.width);
  weights.buckets = RelativeBuckets(config_.buckets, config_.max_distance, !decoder);
}

absl::StatusOr<std::unique_ptr<Model>> T5::Load(Context& c, const BaseFiles& files) {
  auto model = std::make_unique<T5>();
  PERMAFROST_ASSIGN_OR_RETURN(model->config_,
                              ParseT5Config(files.config_json, files.config_source, model->info_));
  const T5Config& t = model->config_;
  PERMAFROST_RETURN_IF_ERROR(
      ReadEndTokens(JsonFields(files.generation, files.generation_source), model->info_));
  Loader loader(c, *files.weights, model->tensors_, model->linears_, model->weights_);

  // One embedding under any of three names; copies under the others must be equal.
  std::string embedding;
  for (const char* name :
       {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}) {
    if (!loader.Has(name)) continue;
    if (embedding.empty()) {
      embedding = name;
    } else if (loader.Same(embedding, name)) {
      loader.Ignore(name);
    }
  }
  if (embedding.empty()) embedding = "shared.weight";
  model->embedding_ = loader.Matrix(embedding, t.vocabulary, t.width);
  model->tensors_.back().name = "shared.weight";
  model->LoadStack(loader, Stack::kEncoder, model->encoder_);
  model->LoadStack(loader, Stack::kDecoder, model->decoder_);
  loader.IgnoreSuffix("EncDecAttention.relative_attention_bias.weight");

  // Tying is decided from the tensors, never from the flag.
  model->head_ = model->embedding_;
  if (loader.Has("lm_head.weight")) {
    if (loader.Has(embedding) && loader.Same("lm_head.weight", embedding)) {
      loader.Ignore("lm_head.weight");
    } else {
      model->head_ = loader.Matrix("lm_head.weight", t.vocabulary, t.width);
    }
  }
  model->head_scale_ = t.scaled_head ? 1 / std::sqrt(static_cast<float>(t.width)) : 1.0f;
  PERMAFROST_RETURN_IF_ERROR(loader.Finish());
  model->info_.path = files.weights->path();
  model->info_.hash = files.weights->hash();
  return model;
}

Var T5::ApplyNorm(Context& c, const ForwardState& f, TensorId scale, const Var& x,
                  const PlaceRows& rows) const {
  return ByTask(c, f.hooks, {scale}, x, rows.spans, x.columns(),
                [&](Context& ctx, const Var& part, int task) {
                  return RmsNorm(ctx, part, BaseVector(f, scale, task), config_.norm_epsilon);
                });
}

Var T5::SelfAttentionHeads(Context& c, const ForwardState& f, Stack stack, size_t index,
                           const Var& residual, const Var& bias) const {
  const bool decoder = stack == Stack::kDecoder;
  const Attentive& a = (decoder ? decoder_ : encoder_).layers[index].self;
  const PlaceRows rows = f.Rows(stack);
  const SiteId site{stack, static_cast<int>(index), Sublayer::kSelfAttention, Projection::kOutput};
  const Var x = ApplyNorm(c, f, a.norm, residual, rows);
  const Var q = ApplyLinear(c, f, a.query, x, rows);
  Var k = ApplyLinear(c, f, a.key, x, rows);
  Var v = ApplyLinear(c, f, a.value, x, rows);
  if (decoder && f.cache != nullptr) std::tie(k, v) = StoreKeyValue(*f.cache, index, k, v);
  return Attention(c, q, k, v, bias, rows.stack.self,
                   {.heads = config_.heads,
                    .key_heads = config_.heads,
                    .head_size = config_.head_size,
                    .scale = 1,
                    .causal = decoder,
                    .bias_distance = config_.max_distance},
                   Prefixes(c, f, site, x, rows));
}

Var T5::SelfAttention(Context& c, const ForwardState& f, Stack stack, size_t index, const Var& x,
                      const Var& bias) const {
  const bool decoder = stack == Stack::kDecoder;
  const Attentive& a = (decoder ? decoder_ : encoder_).layers[index].self;
  const Var heads = RecomputedIf(c.recompute == Recompute::kAttention, c, x,
                                 [this, f, stack, index, bias](Context& ctx, const Var& in) {
                                   return SelfAttentionHeads(ctx, f, stack, index, in, bias);
                                 });
  return ApplyLinear(c, f, a.output, heads, f.Rows(stack));
}

Var T5::CrossAttentionHeads(Context& c, const ForwardState& f, size_t index, const Var& residual,
                            const Var& encoded) const {
  const Attentive& a = decoder_.layers[index].cross;
  const PlaceRows rows = f.DecoderRows();
  const SiteId site{Stack::kDecoder, static_cast<int>(index), Sublayer::kCrossAttention,
                    Projection::kOutput};
  const Var x = ApplyNorm(c, f, a.norm, residual, rows);
  const Var q = ApplyLinear(c, f, a.query, x, rows);
  Var k, v;
  if (f.cache != nullptr && index < f.cache->cross_keys.size()) {
    k = Var(f.cache->cross_keys[index]);
    v = Var(f.cache->cross_values[index]);
  } else {
    k = ApplyLinear(c, f, a.key, encoded, f.EncoderRows());
    v = ApplyLinear(c, f, a.value, encoded, f.EncoderRows());
    if (f.cache != nullptr) {
      f.cache->cross_keys.push_back(k.value());
      f.cache->cross_values.push_back(v.value());
    }
  }
  return Attention(c, q, k, v, {}, f.batch.cross,
                   {.heads = config_.heads,
                    .key_heads = config_.heads,
                    .head_size = config_.head_size,
                    .scale = 1,
                    .causal = false,
                    .bias_distance = 0},
                   Prefixes(c, f, site, x, rows));
}

Var T5::CrossAttention(Context& c, const ForwardState& f, size_t index, const Var& x,
                       const Var& encoded) const {
  const Var heads = RecomputedIf(c.recompute == Recompute::kAttention, c, x,
                                 [this, f, index, encoded](Context& ctx, const Var& in) {
                                   return CrossAttentionHeads(ctx, f, index, in, encoded);
                                 });
  return ApplyLinear(c, f, decoder_.layers[index].cross.output, heads, f.DecoderRows());
}

Var T5::FeedForward(Context& c, const ForwardState& f, const Layer& layer, const Var& x,
                    const PlaceRows& rows) const {
  Var h;
  if (config_.gated) {
    h = Gated(c, config_.activation, ApplyLinear(c, f, layer.gate, x, rows),
              ApplyLinear(c, f, layer.up, x, rows));
  } else {
    h = Activate(c, config_.activation, ApplyLinear(c, f, layer.up, x, rows));
  }
  return ApplyLinear(c, f, layer.down, h, rows);
}

Var T5::LayerForward(Context& c, const ForwardState& f, Stack stack, size_t index, Var x,
                     const Var& bias, const Var& encoded) const {
  const bool decoder = stack == Stack::kDecoder;
  const StackWeights& weights = decoder ? decoder_ : encoder_;
  const Layer& layer = weights.layers[index];
  const PlaceRows rows = f.Rows(stack);
  const auto residual = [&](Sublayer sublayer, Var in, Var out, const PlaceRows& at) {
    const Projection last =
        sublayer == Sublayer::kFeedForward ? Projection::kDown : Projection::kOutput;
    const SiteId site{stack, static_cast<int>(index), sublayer, last};
    out = f.hooks.OnSublayerOutput(c, site, in, std::move(out), at);
    return Add(c, std::move(in), out);
  };
  Var y = SelfAttention(c, f, stack, index, x, bias);
  x = residual(Sublayer::kSelfAttention, std::move(x), std::move(y), rows);
  if (decoder) {
    y = CrossAttention(c, f, index, x, encoded);
    x = residual(Sublayer::kCrossAttention, std::move(x), std::move(y), rows);
  }
  // Above the decoder's last attention only the wanted rows matter.
  const bool last = decoder && index + 1 == weights.layers.size();
  const bool narrow = last && !f.hooks.ReadsAllRows();
  const PlaceRows above = narrow ? f.WantedRows() : rows;
  if (narrow) x = GatherRows(c, x, f.batch.outputs);
  y = FeedForward(c, f, layer, ApplyNorm(c, f, layer.norm, x, above), above);
  x = residual(Sublayer::kFeedForward, std::move(x), std::move(y), above);
  return last && !narrow ? GatherRows(c, x, f.batch.outputs) : x;
}

Var T5::RunStack(Context& c, const ForwardState& f, Stack stack, Var x, const Var& encoded) const {
  const StackWeights& weights = stack == Stack::kDecoder ? decoder_ : encoder_;
  // All rows share the table: a method that replaces it has the batch to itself.
  const PlaceRows rows = f.Rows(stack);
  const int task = rows.spans.empty() ? kNoTask : rows.spans[0].task;
  const Var bias = SpreadBuckets(c, BaseVector(f, weights.bias, task), weights.buckets);
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    if (c.recompute == Recompute::kLayers) {
      x = Checkpoint(c, x, [this, f, stack, i, bias, encoded](Context& ctx, const Var& in) {
        return LayerForward(ctx, f, stack, i, in, bias, encoded);
      });
    } else {
      x = LayerForward(c, f, stack, i, std::move(x), bias, encoded);
    }
  }
  return ApplyNorm(c, f, weights.final_norm, x, stack == Stack::kDecoder ? f.WantedRows() : rows);
}

Var T5::Encode(Context& c, const Batch& batch, Hooks& hooks) const {
  const ForwardState f{*this, hooks, batch, nullptr};
  return RunStack(c, f, Stack::kEncoder, Embed(c, Stack::kEncoder, batch, hooks), {});
}

Var T5::Decode(Context& c, const Batch& batch, const Var& encoded, Hooks& hooks,
               Cache* cache) const {
  const ForwardState f{*this, hooks, batch, cache};
  return RunStack(c, f, Stack::kDecoder, Embed(c, Stack::kDecoder, batch, hooks), encoded);
}

}  // namespace permafrost
