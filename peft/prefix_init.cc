// A prefix that starts as the keys and values of a text, as the prefix-tuning paper's
// initialisation with real activations and PEFT's initialize_kv_prefix_from_text have it.
#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "peft/prefix_tuning.h"

namespace permafrost {
namespace {

struct KeyValue {
  Tensor keys, values;  // [rows, G K]
};
using ByAttention = std::map<std::tuple<Stack, Sublayer, int>, KeyValue>;

// T5 has nothing between a projection and its attention.
class Capture : public Hooks {
 public:
  Var OnLinear(Context&, const LinearPlace& place, const Var&, Var y, const PlaceRows&) override {
    const SiteId& s = place.site;
    KeyValue& kept = captured[{s.stack, s.sublayer, s.layer}];
    if (s.projection == Projection::kKey) kept.keys = y.value();
    if (s.projection == Projection::kValue) kept.values = y.value();
    return y;
  }
  ByAttention captured;
};

ByAttention OfT5(Context& c, const Model& model, absl::Span<const int32_t> ids) {
  Capture capture;
  TokenLine line;
  line.input_ids.assign(ids.begin(), ids.end());
  line.labels = line.input_ids;
  const Batch batch = MakeBatch(model.layout(capture), {line}, Outputs::kLabelled);
  model.Decode(c, batch, model.Encode(c, batch, capture), capture, nullptr);
  return std::move(capture.captured);
}

// Decoders' keys are rotated after their projection: those of the cache are.
ByAttention OfDecoder(Context& c, const Model& model, absl::Span<const int32_t> ids) {
  const ModelInfo& info = model.info();
  Hooks none;
  TokenLine line;
  line.input_ids.assign(ids.begin(), ids.end());
  const Batch batch = MakeBatch(model.layout(none), {line}, Outputs::kAll);
  Cache cache;
  const Shape shape{static_cast<int64_t>(ids.size()), info.key_heads * info.head_size};
  for (int64_t layer = 0; layer < info.decoder_layers; ++layer) {
    cache.keys.emplace_back(shape);
    cache.values.emplace_back(shape);
  }
  cache.slots.resize(ids.size());
  std::iota(cache.slots.begin(), cache.slots.end(), 0);
  cache.previous.assign(ids.size(), -1);
  model.Decode(c, batch, {}, none, &cache);
  ByAttention all;
  for (int layer = 0; layer < static_cast<int>(info.decoder_layers); ++layer) {
    const size_t l = static_cast<size_t>(layer);
    all[{Stack::kDecoder, Sublayer::kSelfAttention, layer}] = {cache.keys[l], cache.values[l]};
  }
  return all;
}

}  // namespace

absl::Status InitialisePrefixFromText(Context& c, const Model& model, absl::Span<const int32_t> ids,
                                      PrefixTuning& prefix) {
  std::vector<PrefixTuning::Table> tables = prefix.Tables();
  const int64_t needed = tables[0].table->value().rows();
  if (static_cast<int64_t>(ids.size()) < needed) {
    return absl::InvalidArgumentError(absl::StrCat("a prefix from a text: expected at least ",
                                                   needed, " tokens (the virtual tokens), found ",
                                                   ids.size(), "; give a longer --init-text"));
  }
  const ByAttention all =
      model.info().encoder_decoder ? OfT5(c, model, ids) : OfDecoder(c, model, ids);
  for (const PrefixTuning::Table& t : tables) {
    const Tensor& table = t.table->value();
    for (size_t layer = 0; layer < t.key_row.size(); ++layer) {
      if (t.key_row[layer] < 0) continue;
      const KeyValue& own = all.at({t.stack, t.sublayer, static_cast<int>(layer)});
      const int64_t width = own.keys.columns();
      for (int64_t p = 0; p < needed; ++p) {
        std::copy_n(own.keys.row(p), width, table.row(p) + t.key_row[layer] * width);
        std::copy_n(own.values.row(p), width, table.row(p) + t.value_row[layer] * width);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace permafrost
