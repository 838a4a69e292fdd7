// permafrost convert: a base as a Hugging Face folder, with an adapter merged in if one is given;
// soft prompts between Google's .npy files and PEFT folders; adapters between PEFT's and
// AdapterHub's folders. convert_combine.cc makes adapters of adapters and of checkpoints.
#include <algorithm>
#include <filesystem>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "command.h"
#include "convert_combine.h"
#include "convert_tokenizer.h"
#include "engine/check.h"
#include "io/file.h"
#include "io/json.h"
#include "io/npy.h"
#include "io/safetensors.h"
#include "nlohmann/json.hpp"
#include "peft/adapterhub.h"
#include "peft/prompt_init.h"

namespace permafrost {
namespace {

struct ConvertFlags {
  std::string base, out, prompt_npy, to_npy, to_peft, to_adapterhub;
  std::string adapter_name = "adapter";
  std::vector<std::string> adapters;
  CombineFlags combine;
  ExtractFlags extract;
  int threads = 0;

  bool with_adapter() const { return !adapters.empty(); }
};

absl::Status MakeFolder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (!error) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat(folder, ": cannot create the folder: ", error.message()));
}

// config.json for the f32 tensors that are written. Tying and T5's scale are decided from the
// tensors when a base is opened; the copy says what was decided, so that every reader agrees.
absl::StatusOr<std::string> ConfigFor(const Model& model) {
  const ModelInfo& info = model.info();
  PERMAFROST_ASSIGN_OR_RETURN(nlohmann::json config, ParseJson(info.config_json, info.path));
  config.erase("torch_dtype");
  config.erase("quantization_config");
  config["dtype"] = "float32";
  config["tie_word_embeddings"] = model.head_tensor() == model.embedding_tensor();
  if (info.encoder_decoder) config["scale_decoder_outputs"] = model.head_scale() != 1;
  return DumpJson(config, 2) + "\n";
}

// An adapter that a base's tensors can hold.
absl::StatusOr<Adapter> OpenMergeableAdapter(const std::string& folder, Context& c,
                                             const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(Adapter adapter, LoadAdapter(folder, 0, c, model));
  if (!adapter.method->mergeable()) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder,
                     ": a prompt adapter cannot be merged, nor can an embedding or a head that the "
                     "base ties, nor a bias where the base has none: expected LoRA, DoRA, IA3 or a "
                     "fully trained model; --to-npy FILE writes a prompt"));
  }
  return adapter;
}

// [n, m] to [m, n].
Tensor Transposed(const Tensor& t) {
  Tensor out({t.columns(), t.rows()});
  for (int64_t i = 0; i < t.rows(); ++i) {
    for (int64_t j = 0; j < t.columns(); ++j) out.row(j)[i] = t.row(i)[j];
  }
  return out;
}

// The base's tensors as the engine holds them (a matrix is [outputs, inputs]), adapter included.
std::vector<Tensor> MergedTensors(Context& c, const Model& model, const Adapter* adapter) {
  std::vector<Tensor> values;
  for (const BaseTensor& t : model.tensors()) {
    values.push_back(t.weight != nullptr ? t.weight->ToF32(c) : t.vector.Clone());
  }
  if (adapter != nullptr) adapter->method->MergeInto(model, values);
  return values;
}

absl::Status WriteWeights(const std::string& path, Context& c, const Model& model,
                          const Adapter* adapter) {
  std::vector<Tensor> values = MergedTensors(c, model, adapter);
  std::vector<TensorView> views;
  for (size_t i = 0; i < values.size(); ++i) {
    const BaseTensor& t = model.tensors()[i];
    if (t.conv1d) values[i] = Transposed(values[i]);
    views.push_back(F32View(t.name, t.shape, values[i].values()));
  }
  return WriteSafetensors(path, views);
}

absl::Status CopyTokenizer(const std::string& base, const std::string& out) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "added_tokens.json", "vocab.json", "merges.txt", "spiece.model",
                           "tokenizer.model", "chat_template.jinja", "generation_config.json"}) {
    const std::string from = absl::StrCat(base, "/", name);
    if (!FileExists(from)) continue;
    PERMAFROST_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(from));
    PERMAFROST_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(out, "/", name), bytes));
  }
  return absl::OkStatus();
}

absl::Status WriteGgufTokenizer(const std::string& base, const std::string& out) {
  PERMAFROST_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(base));
  if (!file.Has("tokenizer.ggml.model")) return absl::OkStatus();  // weights only
  PERMAFROST_ASSIGN_OR_RETURN(const GgufVocabulary vocabulary, ReadGgufVocabulary(file));
  const absl::StatusOr<TokenizerFiles> files = TokenizerFilesOf(vocabulary);
  if (!files.ok()) {
    return absl::Status(files.status().code(),
                        absl::StrCat(base, ": ", std::string(files.status().message())));
  }
  PERMAFROST_RETURN_IF_ERROR(WriteFileAtomically(out + "/tokenizer.json", files->tokenizer_json));
  return WriteFileAtomically(out + "/tokenizer_config.json", files->tokenizer_config_json);
}

// config.json comes last: a folder without it is no base.
absl::Status ConvertBase(const ConvertFlags& f, Context& c, const Model& model) {
  std::error_code error;
  if (std::filesystem::equivalent(f.base, f.out, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--out ", f.out, ": expected another folder than --base"));
  }
  Adapter adapter;
  if (f.with_adapter()) {
    PERMAFROST_ASSIGN_OR_RETURN(adapter, OpenMergeableAdapter(f.adapters[0], c, model));
  }
  PERMAFROST_ASSIGN_OR_RETURN(const std::string config, ConfigFor(model));
  PERMAFROST_RETURN_IF_ERROR(MakeFolder(f.out));
  PERMAFROST_RETURN_IF_ERROR(absl::EndsWith(f.base, ".gguf") ? WriteGgufTokenizer(f.base, f.out)
                                                             : CopyTokenizer(f.base, f.out));
  PERMAFROST_RETURN_IF_ERROR(
      WriteWeights(f.out + "/model.safetensors", c, model, f.with_adapter() ? &adapter : nullptr));
  return WriteFileAtomically(f.out + "/config.json", config);
}

absl::Status PromptFromNpy(const ConvertFlags& f, Context& c, const Model& model) {
  if (!absl::EndsWith(f.prompt_npy, ".npy")) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt-npy ", f.prompt_npy, ": expected a file that ends in .npy"));
  }
  PERMAFROST_ASSIGN_OR_RETURN(Tensor prompt, ReadPromptFile(f.prompt_npy, c, model));
  return SaveAdapter(f.out, PromptAdapter(0, std::move(prompt)), model);
}

absl::Status PromptToNpy(const ConvertFlags& f, Context& c, const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(const Adapter adapter, LoadAdapter(f.adapters[0], 0, c, model));
  const PromptTuning* method = AsPrompt(adapter);
  if (method == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        f.adapters[0],
        ": --to-npy writes a prompt: expected a prompt adapter, found another method"));
  }
  const Tensor prompt = method->prompt();
  return WriteNpy(f.to_npy, std::vector<int64_t>{prompt.rows(), prompt.columns()}, prompt.values());
}

// An adapter in another library's format.
absl::Status ConvertAdapter(const ConvertFlags& f, Context& c, const Model& model) {
  PERMAFROST_ASSIGN_OR_RETURN(const Adapter adapter, LoadAdapter(f.adapters[0], 0, c, model));
  const absl::Status saved = f.to_peft.empty()
                                 ? SaveAdapterHub(f.to_adapterhub, f.adapter_name, adapter, model)
                                 : SaveAdapter(f.to_peft, adapter, model);
  if (saved.ok() || saved.code() != absl::StatusCode::kInvalidArgument) return saved;
  return absl::InvalidArgumentError(
      absl::StrCat(f.adapters[0], ": ", std::string(saved.message())));
}

// What only makes adapters leaves the base as it is.
absl::Status CheckAdapterWork(const ConvertFlags& f) {
  const bool combine = !f.combine.how.empty(), extract = f.extract.rank > 0;
  const bool other_format = !f.to_peft.empty() || !f.to_adapterhub.empty();
  if (combine + extract + !f.prompt_npy.empty() + !f.to_npy.empty() + !f.to_peft.empty() +
          !f.to_adapterhub.empty() >
      1) {
    return UsageError(
        "expected one of --combine, --extract-lora, --prompt-npy, --to-npy, --to-peft and "
        "--to-adapterhub, found several");
  }
  if (other_format && (!f.with_adapter() || !f.out.empty())) {
    return UsageError(
        "--to-peft DIR and --to-adapterhub DIR write an adapter: expected --adapter DIR and no "
        "--out");
  }
  if (!combine && f.adapters.size() > 1) {
    return UsageError(
        absl::StrCat("expected one --adapter (or --combine), found ", f.adapters.size()));
  }
  if (combine && f.adapters.size() < 2) {
    return UsageError(
        absl::StrCat("--combine: expected two or more --adapter, found ", f.adapters.size()));
  }
  if (!combine && !f.combine.weights.empty()) return UsageError("--weights: expected --combine");
  if (extract && (f.with_adapter() || f.extract.tuned.empty())) {
    return UsageError("--extract-lora RANK: expected --tuned CHECKPOINT and no --adapter");
  }
  if (!extract && !f.extract.tuned.empty()) return UsageError("--tuned: expected --extract-lora");
  return absl::OkStatus();
}

absl::Status RunConvert(const ConvertFlags& f) {
  PERMAFROST_RETURN_IF_ERROR(CheckAdapterWork(f));
  const bool from_npy = !f.prompt_npy.empty(), to_npy = !f.to_npy.empty();
  const bool adapter_only = !f.to_peft.empty() || !f.to_adapterhub.empty();
  if (from_npy && (to_npy || f.with_adapter())) {
    return UsageError(
        "--prompt-npy FILE --out DIR makes an adapter: expected no --adapter and no --to-npy");
  }
  if (to_npy && (!f.with_adapter() || !f.out.empty())) {
    return UsageError(
        "--to-npy FILE writes the prompt of an adapter: expected --adapter DIR and no --out");
  }
  if (!to_npy && !adapter_only && f.out.empty()) {
    return UsageError(
        "nothing to write: expected --out DIR, --to-npy FILE, --to-peft DIR or --to-adapterhub "
        "DIR");
  }
  const int threads = f.threads > 0
                          ? f.threads
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  Context context(threads, Precision::kF32);
  PERMAFROST_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, OpenModel(context, f.base));
  if (from_npy) return PromptFromNpy(f, context, *model);
  if (adapter_only) return ConvertAdapter(f, context, *model);
  if (!f.combine.how.empty()) {
    return CombineFolders(f.combine, f.adapters, f.out, context, *model);
  }
  if (f.extract.rank > 0) return ExtractFolder(f.extract, f.out, context, *model);
  return to_npy ? PromptToNpy(f, context, *model) : ConvertBase(f, context, *model);
}

}  // namespace

void AddConvert(Commands& commands) {
  auto flags = std::make_shared<ConvertFlags>();
  CLI::App* app = commands.Add(
      "convert",
      "A base to a Hugging Face folder, adapter merged; prompts and adapters to PEFT and back; "
      "adapters combined, or made of two checkpoints",
      [flags] { return RunConvert(*flags); });
  app->add_option("--base", flags->base, "Hugging Face folder or .gguf file")->required();
  app->add_option("--adapter", flags->adapters,
                  "adapter folder: LoRA, DoRA, IA3 or full to merge, prompt for --to-npy, several "
                  "for --combine")
      ->allow_extra_args(false);
  app->add_option("--out", flags->out, "folder to write");
  app->add_option("--prompt-npy", flags->prompt_npy,
                  "prompt [P, D] that becomes an adapter in --out");
  app->add_option("--to-npy", flags->to_npy, "file for the prompt of --adapter");
  app->add_option("--to-peft", flags->to_peft, "folder for --adapter in PEFT's format");
  app->add_option("--to-adapterhub", flags->to_adapterhub,
                  "folder for --adapter in AdapterHub's format");
  app->add_option("--adapter-name", flags->adapter_name,
                  "name in AdapterHub's tensors (default: adapter)");
  AddCombineFlags(app, flags->combine);
  AddExtractFlags(app, flags->extract);
  app->add_option("--threads", flags->threads, "threads (default: all cores)")
      ->check(Between(1, 1024));
}

}  // namespace permafrost
