// permafrost bench: optimizer steps on random weights of a published shape, and single matrix
// products; JSON lines. Flags and keys are those of the PyTorch + PEFT program that it is compared
// with.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "command.h"
#include "engine/check.h"
#include "kernels/probe.h"
#include "models/weight_source.h"
#include "nlohmann/json.hpp"
#include "peft/prompt_init.h"
#include "peft/trainer.h"
#include "train_method.h"

namespace permafrost {
namespace {

struct StepFlags {
  std::string shape = "smollm2-135m", method = "lora", targets, lengths, precision = "bf16";
  int64_t rank = 8, virtual_tokens = 100, batch_size = 16, tokens = 128, target_tokens = 8;
  double labels = 1;
  int threads = 1;
  int64_t steps = 5, warmup = 1;
  int64_t adapters = 1;
  std::string recompute = kDefaultRecompute;
};

nlohmann::json ShapeConfig(const std::string& shape) {
  if (shape == "smollm2-135m") {
    return {{"model_type", "llama"},
            {"hidden_size", 576},
            {"intermediate_size", 1536},
            {"num_hidden_layers", 30},
            {"num_attention_heads", 9},
            {"num_key_value_heads", 3},
            {"vocab_size", 49152},
            {"rope_theta", 100000.0},
            {"rms_norm_eps", 1e-5},
            {"tie_word_embeddings", true},
            {"max_position_embeddings", 8192}};
  }
  if (shape == "gpt2") {
    return {{"model_type", "gpt2"}, {"n_embd", 768},       {"n_layer", 12},
            {"n_head", 12},         {"vocab_size", 50257}, {"n_positions", 1024}};
  }
  const bool small = shape == "t5-small", gated = shape == "t5-v1_1-base";
  return {{"model_type", "t5"},
          {"d_model", small ? 512 : 768},
          {"d_kv", 64},
          {"d_ff", gated || small ? 2048 : 3072},
          {"num_layers", small ? 6 : 12},
          {"num_heads", small ? 8 : 12},
          {"vocab_size", 32128},
          {"feed_forward_proj", gated ? "gated-gelu" : "relu"},
          {"tie_word_embeddings", true}};
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Usage {
  double cpu;
  int64_t faults, peak_rss;
};
Usage CurrentUsage() {
  rusage u;
  getrusage(RUSAGE_SELF, &u);
  const auto seconds = [](timeval t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return {seconds(u.ru_utime) + seconds(u.ru_stime), u.ru_minflt, u.ru_maxrss * 1024};
}

template <class T>
T Median(std::vector<T> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

double Probe(const std::string& precision) {
  return precision == "bf16" ? kernels::cpu::Bf16DotProbeGflops(0.3)
                             : kernels::cpu::FmaProbeGflops(0.3);
}

std::vector<TokenLine> RandomLines(const StepFlags& f, const ModelInfo& info) {
  Random random(1);
  int64_t low = f.tokens, high = f.tokens;
  if (!f.lengths.empty()) {
    const std::vector<std::string> parts = absl::StrSplit(f.lengths, ':');
    low = std::stoll(parts[0]);
    high = std::stoll(parts[1]);
  }
  const auto id = [&] { return static_cast<int32_t>(5 + random.Below(info.vocabulary - 5)); };
  std::vector<TokenLine> lines;
  for (int64_t i = 0; i < f.batch_size; ++i) {
    const int64_t length = low + random.Below(high - low + 1);
    TokenLine line;
    line.task = 0;
    for (int64_t t = 0; t < length; ++t) line.input_ids.push_back(id());
    if (info.encoder_decoder) {
      for (int64_t t = 0; t < f.target_tokens; ++t) line.labels.push_back(id());
    } else {
      const int64_t first = static_cast<int64_t>(static_cast<double>(length) * (1 - f.labels));
      for (int64_t t = 0; t < length; ++t) {
        line.labels.push_back(t >= first ? line.input_ids[static_cast<size_t>(t)] : -100);
      }
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

// Multiply-adds times 2 of the frozen linears on the rows of one step: forward, and the gradient of
// the input.
double CountedGflop(const Model& model, const Batch& batch) {
  double flop = 0;
  const double encoder = static_cast<double>(batch.encoder.rows.count());
  const double decoder = static_cast<double>(batch.decoder.rows.count());
  const double outputs = static_cast<double>(batch.outputs.size());
  for (const LinearPlace& p : model.linears()) {
    const bool last = p.site.stack == Stack::kDecoder &&
                      p.site.layer + 1 == model.info().decoder_layers &&
                      p.site.sublayer == Sublayer::kFeedForward;
    const bool from_encoder =
        p.site.stack == Stack::kEncoder ||
        (p.site.sublayer == Sublayer::kCrossAttention &&
         (p.site.projection == Projection::kKey || p.site.projection == Projection::kValue));
    const double rows = last ? outputs : from_encoder ? encoder : decoder;
    flop += 4 * rows * static_cast<double>(p.inputs) * static_cast<double>(p.outputs);
  }
  flop += 4 * static_cast<double>(batch.target_labels.size()) *
          static_cast<double>(model.info().vocabulary) * static_cast<double>(model.info().width);
  return flop * 1e-9;
}

absl::StatusOr<Adapter> BenchAdapter(const StepFlags& f, int task, Context& c, const Model& model) {
  Random random(1);
  if (f.method == "prompt") {
    return PromptAdapter(task, NormalTensor({f.virtual_tokens, model.info().width}, 0.02, random));
  }
  MethodFlags flags;
  flags.method = f.method;
  flags.rank = f.rank;
  flags.alpha = 2 * static_cast<double>(f.rank);
  flags.targets = f.targets;
  flags.virtual_tokens = f.virtual_tokens;
  PERMAFROST_ASSIGN_OR_RETURN(const AdapterConfig config, ConfigOf(flags, model.info()));
  return CreateAdapter(config, task, c, model, random);
}

// The adapters that a step trains at once, and its lines among them.
struct BenchRuns {
  std::vector<Adapter> adapters;
  AdapterSet hooks;
  std::vector<std::unique_ptr<Optimizer>> optimizers;
  std::vector<StepPart> parts;

  int64_t trainable() const {
    int64_t count = 0;
    for (const Adapter& a : adapters) count += a.method->parameters().count();
    return count;
  }
  // Returns the mean loss of the first.
  double Step(Context& c, const Model& model, uint32_t number) {
    for (const Adapter& a : adapters) a.method->SetRandom(1, number);
    const std::vector<StepLoss> losses = AccumulateTogether(c, model, hooks, parts);
    for (const auto& optimizer : optimizers) optimizer->Step(c, 1);
    return losses[0].loss;
  }
};

absl::StatusOr<std::unique_ptr<BenchRuns>> MakeRuns(const StepFlags& f, Context& c,
                                                    const Model& model,
                                                    absl::Span<const TokenLine> lines) {
  auto runs = std::make_unique<BenchRuns>();
  const size_t count = static_cast<size_t>(f.adapters);
  for (size_t i = 0; i < count; ++i) {
    const int task = static_cast<int>(i);
    PERMAFROST_ASSIGN_OR_RETURN(Adapter adapter, BenchAdapter(f, task, c, model));
    runs->adapters.push_back(std::move(adapter));
    runs->hooks.Add(absl::StrCat(i), runs->adapters[i].method);
    runs->optimizers.push_back(std::make_unique<Optimizer>(OptimizerConfig{.learning_rate = 1e-4},
                                                           runs->adapters[i].method->parameters()));
    const size_t begin = i * lines.size() / count, end = (i + 1) * lines.size() / count;
    StepPart& part = runs->parts.emplace_back();
    part.task = task;
    part.micro_batches.emplace_back(lines.begin() + static_cast<long>(begin),
                                    lines.begin() + static_cast<long>(end));
    for (TokenLine& line : part.micro_batches[0]) line.task = task;
  }
  return runs;
}

absl::Status RunStep(const StepFlags& f) {
  Context c(f.threads, f.precision == "bf16" ? Precision::kBF16 : Precision::kF32);
  BaseFiles files{ShapeConfig(f.shape).dump(), "shape " + f.shape, RandomWeights(0, 0.02f)};
  PERMAFROST_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, BuildModel(c, files));
  c.recompute = ParseRecompute(f.recompute);
  const std::vector<TokenLine> lines = RandomLines(f, model->info());
  PERMAFROST_ASSIGN_OR_RETURN(const std::unique_ptr<BenchRuns> runs, MakeRuns(f, c, *model, lines));
  int64_t text_tokens = 0;
  for (const TokenLine& line : lines) text_tokens += static_cast<int64_t>(line.input_ids.size());
  const Batch batch = MakeBatch(model->layout(runs->hooks), lines, Outputs::kLabelled);

  const double probe_before = Probe(f.precision);
  const Usage start = CurrentUsage();
  std::vector<double> wall, cpu;
  std::vector<int64_t> faults;
  double loss = 0;
  for (int64_t i = 0; i < f.warmup + f.steps; ++i) {
    const Usage u = CurrentUsage();
    const double t = Now();
    loss = runs->Step(c, *model, static_cast<uint32_t>(i));
    if (i < f.warmup) continue;
    wall.push_back(Now() - t);
    cpu.push_back(CurrentUsage().cpu - u.cpu);
    faults.push_back(CurrentUsage().faults - u.faults);
  }
  const double probe = std::max(probe_before, Probe(f.precision));
  nlohmann::ordered_json row = {{"peer", "permafrost"},
                                {"shape", f.shape},
                                {"method", f.method},
                                {"precision", f.precision},
                                {"batch_size", f.batch_size},
                                {"tokens", f.tokens},
                                {"recompute", f.recompute},
                                {"threads", f.threads},
                                {"text_tokens", text_tokens},
                                {"adapters", f.adapters},
                                {"trainable", runs->trainable()},
                                {"wall_median", Median(wall)},
                                {"wall_min", *std::min_element(wall.begin(), wall.end())},
                                {"cpu_median", Median(cpu)},
                                {"cpu_min", *std::min_element(cpu.begin(), cpu.end())},
                                {"minor_faults", Median(faults)},
                                {"weights_mb", static_cast<double>(model->weight_bytes()) / 1e6},
                                {"peak_rss_mb", static_cast<double>(CurrentUsage().peak_rss) / 1e6},
                                {"rss_before_mb", static_cast<double>(start.peak_rss) / 1e6},
                                {"loss", loss},
                                {"probe_gflops", probe},
                                {"model_gflop", CountedGflop(*model, batch)}};
  for (int t = 0; t < kMemoryTags; ++t) {
    const MemoryTag tag = static_cast<MemoryTag>(t);
    row[absl::StrCat(MemoryTagName(tag), "_mb")] = static_cast<double>(MemoryOf(tag).peak) / 1e6;
  }
  std::printf("%s\n", row.dump().c_str());
  return absl::OkStatus();
}

struct GemmFlags {
  int64_t m = 2048, n = 576, k = 576;
  std::string precision = "bf16", weights = "packed";
  int threads = 1;
};

absl::Status RunGemm(const GemmFlags& f) {
  Context c(f.threads, f.precision == "bf16" ? Precision::kBF16 : Precision::kF32);
  Random random(1);
  const Tensor w = NormalTensor({f.n, f.k}, 1, random);
  const Var x(NormalTensor({f.m, f.k}, 1, random));
  const Weight packed = Weight::FromF32(c, w, f.precision == "bf16" ? DType::kBF16 : DType::kF32);
  const double flop =
      2e-9 * static_cast<double>(f.m) * static_cast<double>(f.n) * static_cast<double>(f.k);
  double best = 1e300, probe = Probe(f.precision) * f.threads;
  const double end = Now() + 1;
  while (Now() < end) {
    const double t = Now();
    Linear(c, x, packed);
    best = std::min(best, Now() - t);
  }
  probe = std::max(probe, Probe(f.precision) * f.threads);
  const nlohmann::ordered_json row = {{"m", f.m},
                                      {"n", f.n},
                                      {"k", f.k},
                                      {"precision", f.precision},
                                      {"weights", f.weights},
                                      {"threads", f.threads},
                                      {"gflops", flop / best},
                                      {"probe_gflops", probe},
                                      {"fraction", flop / best / probe}};
  std::printf("%s\n", row.dump().c_str());
  return absl::OkStatus();
}

void AddStepFlags(CLI::App* app, StepFlags& f) {
  AddConfigFlag(app);
  app->add_option("--shape", f.shape, "the published model whose sizes the weights have")
      ->check(CLI::IsMember({"smollm2-135m", "gpt2", "t5-small", "t5-base", "t5-v1_1-base"}))
      ->capture_default_str();
  app->add_option("--method", f.method, "what is trained")
      ->check(CLI::IsMember({"lora", "dora", "prompt", "prefix", "ia3", "adapter",
                             "parallel-adapter", "bitfit", "unipelt", "full"}))
      ->capture_default_str();
  app->add_option("--rank", f.rank, "LoRA rank")->check(Positive())->capture_default_str();
  app->add_option("--adapters", f.adapters, "adapters trained at once, the lines among them")
      ->check(Between(1, 1000))
      ->capture_default_str();
  app->add_option("--targets", f.targets,
                  "LoRA, IA3: module names, e.g. q_proj,v_proj or all-linear");
  app->add_option("--virtual-tokens", f.virtual_tokens, "prompt: rows")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--batch-size", f.batch_size, "lines of a step")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--tokens", f.tokens, "tokens of a line")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--target-tokens", f.target_tokens, "T5: decoder tokens of a line")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--lengths", f.lengths, "LO:HI, tokens of a line drawn uniformly")
      ->check([](const std::string& v) {
        long long low = 0, high = 0;
        char rest = 0;
        const bool good = std::sscanf(v.c_str(), "%lld:%lld%c", &low, &high, &rest) == 2;
        return good && low >= 1 && high >= low ? std::string() : "expected LO:HI, found " + v;
      });
  app->add_option("--labels", f.labels, "fraction of positions with a label")
      ->check(Between(0.001, 1.0))
      ->capture_default_str();
  app->add_option("--precision", f.precision, "number type of weights and kept activations")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app->add_option("--threads", f.threads, "threads")
      ->check(Between(1, 1024))
      ->capture_default_str();
  app->add_option("--steps", f.steps, "steps that are timed")
      ->check(Positive())
      ->capture_default_str();
  app->add_option("--warmup", f.warmup, "steps before them")
      ->check(NonNegative())
      ->capture_default_str();
  AddRecomputeFlag(app, f.recompute);
}

void AddGemmFlags(CLI::App* app, GemmFlags& f) {
  AddConfigFlag(app);
  app->add_option("--m", f.m, "rows of X")->check(Positive())->capture_default_str();
  app->add_option("--n", f.n, "outputs")->check(Positive())->capture_default_str();
  app->add_option("--k", f.k, "inputs")->check(Positive())->capture_default_str();
  app->add_option("--precision", f.precision, "number type of the weight")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app->add_option("--weights", f.weights, "packed: as a frozen weight is kept")
      ->check(CLI::IsMember({"packed"}))
      ->capture_default_str();
  app->add_option("--threads", f.threads, "threads")
      ->check(Between(1, 1024))
      ->capture_default_str();
}

}  // namespace

void AddBench(Commands& commands) {
  auto step = std::make_shared<StepFlags>();
  auto gemm = std::make_shared<GemmFlags>();
  auto chosen = std::make_shared<CLI::App*>(nullptr);
  CLI::App* app = commands.Add("bench", "Benchmarks; JSON lines", [=] {
    return *chosen != nullptr && (*chosen)->get_name() == "gemm" ? RunGemm(*gemm) : RunStep(*step);
  });
  app->require_subcommand(1);
  CLI::App* s = app->add_subcommand("step", "optimizer steps on random weights of a shape");
  s->callback([=] { *chosen = s; });
  AddStepFlags(s, *step);
  CLI::App* g = app->add_subcommand("gemm", "one product with a packed frozen weight");
  g->callback([=] { *chosen = g; });
  AddGemmFlags(g, *gemm);
}

}  // namespace permafrost
