// Prefix tuning's part of adapter_config.json: PEFT's PREFIX_TUNING, and PERMAFROST_PREFIX_TUNING
// for what it has no place for (several groups, gates, other positions).
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "peft/config_visitor.h"

namespace permafrost {
namespace {

template <class Config, class Visitor>
void VisitFields(Config& p, Visitor& visit) {
  visit("num_virtual_tokens", p.virtual_tokens);
  visit("encoder_prefix", p.encoder);
  visit("self_prefix", p.decoder);
  visit("cross_prefix", p.cross);
  visit("prefix_projection", p.projection);
  visit("encoder_hidden_size", p.projection_width);
  visit("embedding_size", p.embedding_width);
  visit("dropout", p.dropout);
  visit.template Choice<PrefixTuningConfig::Positions>(
      "positions", p.positions,
      {{"none", PrefixTuningConfig::Positions::kNone},
       {"cache", PrefixTuningConfig::Positions::kCache},
       {"shifted", PrefixTuningConfig::Positions::kShifted}});
  visit("text_after_prefix", p.text_after_prefix);
  visit("gate", p.gate);
  visit("leave_out", p.leave_out);
}

absl::Status CheckSize(const ConfigFile& file, const PrefixTuningConfig& prefix) {
  if (prefix.virtual_tokens >= 1 && prefix.virtual_tokens <= kMostVirtualTokens) {
    return absl::OkStatus();
  }
  return ConfigError(file.fields, "num_virtual_tokens", absl::StrCat("1 to ", kMostVirtualTokens),
                     absl::StrCat(prefix.virtual_tokens));
}

}  // namespace

absl::StatusOr<PrefixTuningConfig> ReadPrefixTuningConfig(const ConfigFile& file) {
  const JsonFields& fields = file.fields;
  // How a table came to be does not matter to its reader.
  PERMAFROST_RETURN_IF_ERROR(
      RefuseUnknown(file, {"encoder_hidden_size", "prefix_projection", "init_weights"}));
  const ModelInfo& info = file.model.info();
  PrefixTuningConfig prefix;
  PERMAFROST_ASSIGN_OR_RETURN(prefix.virtual_tokens, SizeField(fields, "num_virtual_tokens"));
  PERMAFROST_RETURN_IF_ERROR(CheckSize(file, prefix));
  const int64_t most_layers = 1 << 16;
  PERMAFROST_ASSIGN_OR_RETURN(prefix.layers, SizeFieldOr(fields, "num_layers", info.layers));
  if (prefix.layers < info.decoder_layers || prefix.layers > most_layers ||
      (!info.encoder_decoder && prefix.layers != info.decoder_layers)) {
    return ConfigError(
        fields, "num_layers",
        absl::StrCat(info.decoder_layers, info.encoder_decoder ? " or more" : "", " for this base"),
        absl::StrCat(prefix.layers));
  }
  PERMAFROST_RETURN_IF_ERROR(RequireBaseSize(file, "token_dim", info.key_heads * info.head_size));
  PERMAFROST_RETURN_IF_ERROR(RequireBaseSize(file, "num_attention_heads", info.key_heads));
  return prefix;
}

absl::StatusOr<PrefixTuningConfig> ReadOwnPrefixTuningConfig(const ConfigFile& file) {
  PrefixTuningConfig prefix;
  prefix.peft_layout = false;
  FieldReader reader(file);
  VisitFields(prefix, reader);
  PERMAFROST_RETURN_IF_ERROR(reader.Finish());
  PERMAFROST_RETURN_IF_ERROR(CheckSize(file, prefix));
  prefix.projection = false;  // the file holds the finished tables
  return prefix;
}

void WriteConfig(const PrefixTuningConfig& prefix, const Model& model,
                 nlohmann::ordered_json& object) {
  const ModelInfo& info = model.info();
  if (!prefix.peft_layout) {
    object["peft_type"] = "PERMAFROST_PREFIX_TUNING";
    FieldWriter writer(object);
    VisitFields(prefix, writer);
    return;
  }
  const int64_t width = info.key_heads * info.head_size;
  object["peft_type"] = "PREFIX_TUNING";
  object["num_virtual_tokens"] = prefix.virtual_tokens;
  object["num_transformer_submodules"] = info.encoder_decoder ? 2 : 1;
  object["token_dim"] = width;
  object["num_attention_heads"] = info.key_heads;
  object["num_layers"] = prefix.layers > 0 ? prefix.layers : info.decoder_layers;
  object["prefix_projection"] = prefix.projection;
  object["encoder_hidden_size"] = prefix.projection_width > 0 ? prefix.projection_width : width;
  object["init_weights"] =
      prefix.init == PrefixTuningConfig::Init::kZero ? nlohmann::json("zero") : nullptr;
}

}  // namespace permafrost
