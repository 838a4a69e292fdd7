// permafrost forward: logits, losses and on request gradients of a data file.
#include "absl/strings/str_cat.h"
#include "command.h"
#include "data.h"
#include "engine/check.h"
#include "io/safetensors.h"
#include "kernels/elementwise.h"
#include "peft/trainer.h"

namespace permafrost {
namespace {

struct ForwardFlags {
  BaseFlags base;
  DataFlags data;
  std::vector<std::string> adapters;
  std::string data_path, out, gradients;
};

// Logits [text rows, V] of one line (decoder: its text tokens; T5: its decoder rows).
Tensor LineLogits(Context& c, const Model& model, Hooks& hooks, const TokenLine& line) {
  const Batch batch = MakeBatch(model.layout(hooks), {&line, 1}, Outputs::kAll);
  const Var encoded = model.Encode(c, batch, hooks);
  const Var hidden = model.Decode(c, batch, encoded, hooks, nullptr);
  const Tensor logits = model.Logits(c, hidden, batch.output_spans, hooks).value();
  // A causal prompt's last row may be among the outputs, in front of the text.
  const int64_t text = batch.decoder.rows.segments.back().length;
  return logits.RowRange(logits.rows() - text, text);
}

absl::Status RunForward(const ForwardFlags& flags) {
  const bool gradients = !flags.gradients.empty();
  if (gradients && flags.adapters.size() != 1) {
    return UsageError(
        absl::StrCat("--gradients are those of one adapter: expected one --adapter DIR, found ",
                     flags.adapters.size()));
  }
  PERMAFROST_ASSIGN_OR_RETURN(Session session, OpenSession(flags.base));
  PERMAFROST_ASSIGN_OR_RETURN(AdapterSet adapters, OpenAdapters(flags.adapters, session));
  PERMAFROST_ASSIGN_OR_RETURN(
      const LoadedData data,
      LoadData(flags.data_path, flags.data, Labels::kOptional, session, adapters));
  Context& c = *session.context;
  const Model& model = *session.model;

  std::vector<Tensor> kept;
  std::vector<TensorView> views;
  const LineLosses losses = ComputeLosses(c, model, adapters, data.lines, 1);
  if (gradients && losses.labelled == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.data_path, ": no labelled token, so there is no gradient"));
  }
  for (size_t i = 0; i < data.lines.size(); ++i) {
    const Tensor logits = LineLogits(c, model, adapters, data.lines[i]);
    if (!kernels::cpu::AllFinite(logits.f32(), logits.count())) {
      return absl::FailedPreconditionError(absl::StrCat(
          flags.data_path, ":", data.line_numbers[i],
          ": the logits are not finite: the base or the adapter overflows --precision ",
          flags.base.precision));
    }
    kept.push_back(logits);
    views.push_back(
        F32View(absl::StrCat("logits.", i), {logits.rows(), logits.columns()}, logits.values()));
    kept.push_back(Tensor::From({1, 1}, {static_cast<float>(losses.per_line[i])}));
    views.push_back(F32View(absl::StrCat("loss.", i), {1}, kept.back().values()));
  }
  PERMAFROST_RETURN_IF_ERROR(WriteSafetensors(flags.out, views));

  if (!gradients) return absl::OkStatus();
  AccumulateGradients(c, model, adapters, std::vector<std::vector<TokenLine>>{data.lines}, 0);
  return WriteGradients(flags.gradients, *adapters.method(0));
}

}  // namespace

void AddForward(Commands& commands) {
  auto flags = std::make_shared<ForwardFlags>();
  CLI::App* app = commands.Add("forward", "Logits, losses and gradients to a safetensors file",
                               [flags] { return RunForward(*flags); });
  AddBaseFlags(app, flags->base);
  AddAdapterFlag(app, flags->adapters);
  AddDataFlags(app, flags->data);
  app->add_option("--data", flags->data_path, "data file")->required();
  app->add_option("--out", flags->out, "safetensors file for logits.i and loss.i")->required();
  app->add_option("--gradients", flags->gradients,
                  "safetensors file for the gradient of each adapter tensor");
}

}  // namespace permafrost
