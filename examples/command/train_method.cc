#include "train_method.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "io/anchors.h"
#include "peft/prompt_init.h"

namespace permafrost {
namespace {

absl::StatusOr<Tensor> InitialPrompt(const MethodFlags& f, const DataFlags& data, Session& s,
                                     Random& random) {
  // Ids are ordered by frequency, so the first 5000 are the common pieces (Lester et al. 2021).
  constexpr int64_t kMostCommon = 5000;
  const int64_t width = s.model->info().width;
  Context& c = *s.context;
  if (f.init == "random") return UniformTensor({f.virtual_tokens, width}, f.init_range, random);
  if (f.init == "normal") return NormalTensor({f.virtual_tokens, width}, f.init_range, random);
  if (f.init == "vocab") {
    return SampledVocabularyPrompt(c, *s.model, f.virtual_tokens, kMostCommon, random);
  }
  if (f.init == "labels") {
    PERMAFROST_ASSIGN_OR_RETURN(const auto labels, LabelIds(data, s));
    if (labels.empty()) {
      return absl::InvalidArgumentError(
          "--init labels: expected label words (--task or --label-words), found none");
    }
    return LabelPrompt(c, *s.model, f.virtual_tokens, labels, kMostCommon, random);
  }
  if (f.init == "text") {
    PERMAFROST_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(s));
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> ids,
                                tokenizer->Encode(f.init_text, Special::kAdd));
    if (ids.empty()) {
      return absl::InvalidArgumentError(
          "--init text: expected --init-text TEXT, found an empty text");
    }
    return TextPrompt(c, *s.model, f.virtual_tokens, ids);
  }
  PERMAFROST_ASSIGN_OR_RETURN(Tensor prompt, ReadPromptFile(f.init_file, c, *s.model));
  if (prompt.rows() != f.virtual_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(f.init_file, ": expected ", f.virtual_tokens,
                                                   " rows (--virtual-tokens), found ",
                                                   prompt.rows()));
  }
  return prompt;
}

// An --input with {v*N} anchors the virtual tokens of prompt and ptuning.
absl::Status CountAnchors(const std::string& input, MethodFlags& f) {
  if (!HasAnchors(input)) return absl::OkStatus();
  if (f.method != "prompt" && f.method != "ptuning") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--input '", input, "' has virtual tokens: expected --method prompt or ptuning, found ",
        f.method));
  }
  PERMAFROST_ASSIGN_OR_RETURN(const std::vector<AnchoredPiece> pieces, ParseAnchors(input));
  const int64_t count = CountVirtualTokens(pieces);
  if (f.virtual_tokens != 0 && f.virtual_tokens != count) {
    return absl::InvalidArgumentError(absl::StrCat("--input '", input, "' has ", count,
                                                   " virtual tokens: expected --virtual-tokens ",
                                                   count, " or none, found ", f.virtual_tokens));
  }
  f.virtual_tokens = count;
  f.input_template = input;
  return absl::OkStatus();
}

}  // namespace

void AddMethodFlags(CLI::App* app, MethodFlags& f) {
  app->add_option("--method", f.method, "what to train")
      ->check(CLI::IsMember({"prompt", "prefix", "ptuning", "multitask-prompt", "lora", "dora",
                             "ia3", "adapter", "parallel-adapter", "bitfit", "norm", "head",
                             "top-layers", "unipelt", "full"}));
  app->add_option("--init-adapter", f.init_adapter,
                  "go on from an adapter folder (PEFT's, AdapterHub's or our own)");
  const auto own = [&f](CLI::Option* option, std::vector<std::string> methods) {
    f.owned.push_back({option, std::move(methods)});
    return option;
  };
  own(app->add_option(
          "--virtual-tokens", f.virtual_tokens,
          "prompt, ptuning, multitask-prompt, prefix: rows (default 100 for T5 prompts, "
          "else 20; unipelt 10; with {v*N} in --input as many as that has)"),
      {"prompt", "ptuning", "multitask-prompt", "prefix", "unipelt"})
      ->check(Between(1, 100000));
  own(app->add_option("--encoder-width", f.encoder_width,
                      "ptuning: width of the prompt encoder (default: the base's)"),
      {"ptuning"})
      ->check(Between(1, 65536));
  own(app->add_option("--encoder", f.encoder, "ptuning: what makes the prompt"), {"ptuning"})
      ->check(CLI::IsMember({"mlp", "lstm"}))
      ->capture_default_str();
  own(app->add_option("--encoder-layers", f.encoder_layers, "ptuning: layers of the LSTM"),
      {"ptuning"})
      ->check(Between(1, 64))
      ->capture_default_str();
  own(app->add_option("--num-tasks", f.num_tasks, "multitask-prompt: tasks (lines' task_id)"),
      {"multitask-prompt"})
      ->check(Between(1, 65536));
  own(app->add_option("--num-ranks", f.num_ranks, "multitask-prompt: rank of a task's factors"),
      {"multitask-prompt"})
      ->check(Between(1, 65536))
      ->capture_default_str();
  const std::vector<std::string> tables = {"prompt", "multitask-prompt"};
  const std::vector<std::string> starts = {"prompt", "multitask-prompt", "prefix"};
  own(app->add_option("--init", f.init,
                      "prompt, multitask-prompt: initialisation (default vocab); prefix: normal, "
                      "zero or text"),
      starts)
      ->check(CLI::IsMember({"random", "normal", "zero", "vocab", "labels", "text", "file"}));
  own(app->add_option("--init-text", f.init_text,
                      "prompt, multitask-prompt, prefix: text for --init text"),
      starts);
  own(app->add_option("--init-file", f.init_file,
                      "prompt, multitask-prompt: .npy file or adapter folder for --init file"),
      tables);
  own(app->add_option("--init-range", f.init_range,
                      "prompt, multitask-prompt: half width of --init random, deviation of --init "
                      "normal"),
      tables)
      ->check(Positive())
      ->capture_default_str();
  own(app->add_option("--rank", f.rank, "lora, dora: rank"), {"lora", "dora", "unipelt"})
      ->check(Between(1, 65536))
      ->capture_default_str();
  own(app->add_option("--alpha", f.alpha, "lora, dora: alpha"), {"lora", "dora", "unipelt"})
      ->check(Positive())
      ->capture_default_str();
  own(app->add_option("--dropout", f.dropout, "lora, dora, prefix, adapters: dropout rate"),
      {"lora", "dora", "prefix", "adapter", "parallel-adapter", "unipelt"})
      ->check(Between(0.0, 0.999))
      ->capture_default_str();
  own(app->add_flag("--rslora", f.rslora, "lora, dora: scale alpha / sqrt(rank)"),
      {"lora", "dora"});
  own(app->add_option(
          "--targets", f.targets,
          "lora, dora, ia3, bitfit, norm: module names, e.g. q_proj,v_proj or all-linear"),
      {"lora", "dora", "ia3", "bitfit", "norm", "unipelt"});
  const std::vector<std::string> lora = {"lora", "dora"};
  own(app->add_option("--exclude", f.exclude, "lora, dora, ia3: module names that are no targets"),
      {"lora", "dora", "ia3"});
  own(app->add_option("--layers", f.layers, "lora, dora: numbers of layers, e.g. 0,1,2"), lora);
  own(app->add_option("--init-lora", f.init_lora,
                      "lora: start of the factors; gaussian, or from the weights: pissa, olora"),
      lora)
      ->check(CLI::IsMember({"default", "gaussian", "pissa", "olora"}))
      ->capture_default_str();
  own(app->add_option("--bias", f.bias, "lora, dora: which of the base's biases are trained"), lora)
      ->check(CLI::IsMember({"none", "all", "lora_only"}))
      ->capture_default_str();
  own(app->add_flag("--lora-bias", f.lora_bias, "lora: a bias of B's own"), {"lora"});
  own(app->add_option("--modules-to-save", f.modules_to_save,
                      "lora, dora: modules trained as whole copies, e.g. lm_head"),
      lora);
  own(app->add_option("--lora-plus-ratio", f.lora_plus_ratio,
                      "lora, dora: learning rate of B over that of A (LoRA+)"),
      lora)
      ->check(Positive())
      ->capture_default_str();
  AddModuleFlags(app, f.modules, own);
}

absl::Status CheckMethodFlags(const MethodFlags& f) {
  if (f.method.empty() == f.init_adapter.empty()) {
    return UsageError(absl::StrCat("expected one of --method METHOD and --init-adapter DIR, found ",
                                   f.method.empty() ? "neither" : "both"));
  }
  for (const MethodFlags::Owned& flag : f.owned) {
    const bool fits =
        std::find(flag.methods.begin(), flag.methods.end(), f.method) != flag.methods.end();
    if (flag.option->count() == 0 || fits) continue;
    return UsageError(absl::StrCat(flag.option->get_name(), ": expected with --method ",
                                   absl::StrJoin(flag.methods, " or "), ", found ",
                                   f.method.empty()
                                       ? "--init-adapter, whose settings are the adapter's own"
                                       : "--method " + f.method));
  }
  PERMAFROST_RETURN_IF_ERROR(ParseLayers("--layers", f.layers).status());
  if (f.init == "text" && f.method == "prefix" && f.modules.projection) {
    return UsageError("--init text: expected a prefix without --prefix-projection");
  }
  if (f.init == "text" && f.init_text.empty()) {
    return UsageError("--init text: expected the text, --init-text TEXT");
  }
  if (f.method == "multitask-prompt" && f.num_tasks == 0) {
    return UsageError("--method multitask-prompt: expected --num-tasks N");
  }
  const bool prefix_init =
      f.init.empty() || f.init == "normal" || f.init == "zero" || f.init == "text";
  if (f.method == "prefix" ? !prefix_init : f.init == "zero") {
    return UsageError(absl::StrCat(
        "--init ", f.init, ": expected ",
        f.method == "prefix" ? "normal, zero or text with --method prefix"
                             : absl::StrCat("another initialisation with --method ", f.method)));
  }
  if (f.init == "file" && f.init_file.empty()) {
    return UsageError("--init file: expected the file, --init-file FILE");
  }
  return absl::OkStatus();
}

namespace {

absl::StatusOr<LoraConfig> LoraOf(const MethodFlags& f, const ModelInfo& info) {
  static const std::map<std::string, LoraInit> kInits = {{"default", LoraInit::kDefault},
                                                         {"gaussian", LoraInit::kGaussian},
                                                         {"pissa", LoraInit::kPissa},
                                                         {"olora", LoraInit::kOlora}};
  static const std::map<std::string, LoraBias> kBiases = {
      {"none", LoraBias::kNone}, {"all", LoraBias::kAll}, {"lora_only", LoraBias::kLoraOnly}};
  LoraConfig lora;
  lora.dora = f.method == "dora";
  lora.rank = f.rank;
  lora.alpha = f.alpha;
  lora.dropout = f.dropout;
  lora.rslora = f.rslora;
  lora.init = kInits.at(f.init_lora);
  lora.bias = kBiases.at(f.bias);
  lora.lora_bias = f.lora_bias;
  lora.modules_to_save = SplitList(f.modules_to_save);
  lora.targets.modules =
      f.targets.empty() ? DefaultLoraTargets(info.model_type) : SplitList(f.targets);
  lora.targets.exclude = SplitList(f.exclude);
  PERMAFROST_ASSIGN_OR_RETURN(lora.targets.layers, ParseLayers("--layers", f.layers));
  return lora;
}

}  // namespace

absl::StatusOr<AdapterConfig> ConfigOf(const MethodFlags& f, const ModelInfo& info) {
  if (IsModuleMethod(f.method)) {
    PERMAFROST_ASSIGN_OR_RETURN(const LoraConfig lora, LoraOf(f, info));
    SharedSettings shared{f.method, f.virtual_tokens, f.init, f.dropout, lora, {}};
    shared.targets.modules = SplitList(f.targets);
    return ModuleConfig(f.modules, shared, info);
  }
  if (f.method == "ptuning") {
    return PTuningConfig{
        .virtual_tokens = f.virtual_tokens,
        .encoder_width = f.encoder_width,
        .encoder = f.encoder == "lstm" ? PromptEncoder::kLstm : PromptEncoder::kMlp,
        .encoder_layers = f.encoder_layers,
        .input_template = f.input_template};
  }
  if (f.method != "ia3") return LoraOf(f, info);
  Ia3Config ia3 = DefaultIa3Config(info.model_type, SplitList(f.targets));
  ia3.targets.exclude = SplitList(f.exclude);
  return ia3;
}

absl::StatusOr<Adapter> MakeAdapter(MethodFlags& f, const DataFlags& data, int64_t seed, int task,
                                    Session& s) {
  Context& c = *s.context;
  const Model& model = *s.model;
  if (!f.init_adapter.empty()) return LoadAdapter(f.init_adapter, task, c, model);
  Random random(static_cast<uint64_t>(seed));
  PERMAFROST_RETURN_IF_ERROR(CountAnchors(data.input, f));
  if (f.virtual_tokens == 0) {
    const bool prompt =
        f.method == "prompt" || f.method == "ptuning" || f.method == "multitask-prompt";
    f.virtual_tokens = f.method == "unipelt"                    ? 10
                       : prompt && model.info().encoder_decoder ? 100
                                                                : 20;
  }
  if (f.method == "prompt" || f.method == "multitask-prompt") {
    if (f.init.empty()) {
      f.init = !f.init_text.empty() ? "text" : !f.init_file.empty() ? "file" : "vocab";
    }
    PERMAFROST_ASSIGN_OR_RETURN(Tensor prompt, InitialPrompt(f, data, s, random));
    if (f.method == "prompt") return PromptAdapter(task, std::move(prompt), f.input_template);
    const MultitaskPromptConfig config{
        .virtual_tokens = f.virtual_tokens, .tasks = f.num_tasks, .ranks = f.num_ranks};
    return MultitaskPromptAdapter(task, config, std::move(prompt), random);
  }
  PERMAFROST_ASSIGN_OR_RETURN(const AdapterConfig config, ConfigOf(f, model.info()));
  PERMAFROST_ASSIGN_OR_RETURN(Adapter adapter, CreateAdapter(config, task, c, model, random));
  if (f.lora_plus_ratio != 1) SetLoraPlusRatio(*adapter.method, f.lora_plus_ratio);
  if (f.method == "prefix" && f.init == "text") {
    PERMAFROST_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(s));
    PERMAFROST_ASSIGN_OR_RETURN(const std::vector<int> ids,
                                tokenizer->Encode(f.init_text, Special::kAdd));
    const std::vector<int32_t> tokens(ids.begin(), ids.end());
    PERMAFROST_RETURN_IF_ERROR(
        InitialisePrefixFromText(c, model, tokens, static_cast<PrefixTuning&>(*adapter.method)));
  }
  return adapter;
}

}  // namespace permafrost
