// PERMAFROST_ADAPTER: bottleneck adapters' part of adapter_config.json; PEFT has none.
#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "peft/config_visitor.h"

namespace permafrost {
namespace {

template <class Config, class Visitor>
void VisitFields(Config& b, Visitor& visit) {
  visit("bottleneck", b.width);
  visit("layer_bottlenecks", b.layer_widths);
  visit("mh_adapter", b.after_attention);
  visit("cross_adapter", b.after_cross);
  visit("output_adapter", b.after_feed_forward);
  visit("is_parallel", b.parallel);
  visit.template Choice<Activation>("non_linearity", b.activation,
                                    {{"relu", Activation::kRelu},
                                     {"gelu", Activation::kGeluErf},
                                     {"gelu_new", Activation::kGeluTanh},
                                     {"swish", Activation::kSilu},
                                     {"tanh", Activation::kTanh}});
  visit.template Choice<BottleneckConfig::Scaling>(
      "scaling_kind", b.scaling,
      {{"fixed", BottleneckConfig::Scaling::kFixed},
       {"learned", BottleneckConfig::Scaling::kLearned},
       {"channel", BottleneckConfig::Scaling::kChannel}});
  visit("scaling", b.scale);
  visit("original_ln_before", b.original_ln_before);
  visit("original_ln_after", b.original_ln_after);
  visit("residual_before_ln", b.residual_before_ln);
  visit("adapter_residual_before_ln", b.adapter_residual_before_ln);
  visit("ln_before", b.ln_before);
  visit("ln_after", b.ln_after);
  visit("dropout", b.dropout);
  visit("gate", b.gate);
  visit("leave_out", b.leave_out);
  visit("adapter_drop", b.drop_layers);
  visit.template Choice<BottleneckConfig::Init>("init_weights", b.init,
                                                {{"bert", BottleneckConfig::Init::kBert},
                                                 {"mam_adapter", BottleneckConfig::Init::kMam},
                                                 {"houlsby", BottleneckConfig::Init::kHoulsby}});
}

}  // namespace

absl::StatusOr<BottleneckConfig> ReadBottleneckConfig(const ConfigFile& file) {
  BottleneckConfig config;
  FieldReader reader(file);
  VisitFields(config, reader);
  PERMAFROST_RETURN_IF_ERROR(reader.Finish());
  if (!(config.dropout >= 0 && config.dropout < 1)) {
    return ConfigError(file.fields, "dropout", "a rate in [0, 1)", absl::StrCat(config.dropout));
  }
  return config;
}

void WriteConfig(const BottleneckConfig& config, const Model& model,
                 nlohmann::ordered_json& object) {
  object["peft_type"] = "PERMAFROST_ADAPTER";
  FieldWriter writer(object);
  VisitFields(config, writer);
  constexpr int64_t kReduction = 16;
  if (config.width == 0) {
    object["bottleneck"] = std::max<int64_t>(1, model.info().width / kReduction);
  }
}

}  // namespace permafrost
