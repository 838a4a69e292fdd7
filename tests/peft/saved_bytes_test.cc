// What a training step keeps for its backward pass, to the byte and to the node, for every method
// on every golden base. The formulas are those of docs/architecture.md, "What a step keeps".
#include "absl/strings/str_join.h"
#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

constexpr int64_t kRank = 3, kPrompt = 5;

enum class Trained { kPrompt, kLoraDefault, kLoraAll, kIa3, kFull };

AdapterConfig ConfigOf(Trained trained, const std::string& model_type) {
  switch (trained) {
    case Trained::kPrompt:
      return PromptConfig(kPrompt);
    case Trained::kLoraDefault:
      return LoraConfigOf(DefaultLoraTargets(model_type), kRank);
    case Trained::kLoraAll:
      return LoraConfigOf({"all-linear"}, kRank);
    case Trained::kIa3:
      return DefaultIa3Config(model_type, {});
    case Trained::kFull:
      return FullConfig();
  }
  return {};
}

// Records the loss of `lines`; the batch outlives the tape.
struct Recorded {
  Batch batch;
  int64_t bytes = 0;
  std::vector<std::string> nodes;
};
std::unique_ptr<Recorded> Record(Context& c, const Model& model, Hooks& hooks,
                                 absl::Span<const TokenLine> lines) {
  auto r = std::make_unique<Recorded>();
  r->batch = MakeBatch(model.layout(hooks), lines, Outputs::kLabelled);
  c.tape.mode = TapeMode::kRecord;
  c.training = true;
  model.Loss(c, r->batch, hooks, std::vector<float>(r->batch.target_labels.size(), 1.0f));
  r->bytes = c.tape.saved_bytes();
  for (const Tape::Node& n : c.tape.nodes()) r->nodes.push_back(n.name);
  c.tape.Clear();
  return r;
}

// Rows of a step, counted from the lines alone.
struct Counts {
  int64_t encoder = 0, decoder = 0;
  int64_t outputs = 0;  // decoder rows that predict something
  int64_t targets = 0;
};
Counts CountRows(absl::Span<const TokenLine> lines, bool encoder_decoder, int64_t prompt) {
  Counts n;
  int64_t first_labels = 0;
  for (const TokenLine& line : lines) {
    const int64_t length = static_cast<int64_t>(line.input_ids.size());
    if (encoder_decoder) {
      n.encoder += prompt + length;
      n.decoder += static_cast<int64_t>(line.labels.size());
    } else {
      n.decoder += length;
    }
    for (size_t i = 0; i < line.labels.size(); ++i) {
      if (line.labels[i] == -100) continue;
      if (i == 0 && !encoder_decoder) {
        ++first_labels;
      } else {
        ++n.targets;
      }
    }
  }
  n.outputs = n.targets;
  if (!encoder_decoder && prompt > 0) {  // one row predicts the first label of all lines
    n.decoder += prompt;
    n.targets += first_labels;
    n.outputs += first_labels > 0 ? 1 : 0;
  }
  return n;
}

// The formulas. D width, F feed-forward, H heads, G key heads, K head size, V vocabulary, L layers,
// r rank, M largest relative distance; e bytes of a kept activation.
class Formula {
 public:
  Formula(const Model& model, Trained trained, Precision precision, const Counts& n)
      : info_(model.info()), trained_(trained), e_(precision == Precision::kBF16 ? 2 : 4), n_(n) {
    const auto config = nlohmann::json::parse(info_.config_json);
    gpt2_ = info_.model_type == "gpt2";
    relu_ = config.value("feed_forward_proj", "") == "relu";
    distances_ = 2 * config.value("relative_attention_max_distance", int64_t{128}) + 1;
    for (const LinearPlace& p : model.linears()) {
      if (p.site.projection == Projection::kGate) gated_ = true;
      if (p.site.projection == Projection::kUp) hidden_ = p.outputs;
    }
  }

  int64_t Bytes() const { return info_.encoder_decoder ? T5() : DecoderStack(); }

  // A prompt's, with layers or attention recomputed.
  int64_t PromptBytes(Recompute recompute) const {
    const bool attention = recompute == Recompute::kAttention;
    const auto input = [&](int64_t rows) { return e_ * rows * info_.width; };
    const auto feed_forward = [&](int64_t rows) { return attention ? FeedForward(rows) : 0; };
    int64_t bytes = Norm(n_.outputs) + Head();
    if (!info_.encoder_decoder) {
      for (int64_t i = 0; i < info_.layers; ++i) {
        bytes += input(n_.decoder);
        bytes += feed_forward(i + 1 == info_.layers ? n_.outputs : n_.decoder);
      }
      return bytes;
    }
    bytes += Norm(n_.encoder) + info_.layers * (input(n_.encoder) + feed_forward(n_.encoder));
    for (int64_t i = 0; i < info_.decoder_layers; ++i) {
      // Self and cross attention, of which the first layer's self attention is not recorded.
      bytes += (attention && i > 0 ? 2 : 1) * input(n_.decoder);
      bytes += feed_forward(i + 1 == info_.decoder_layers ? n_.outputs : n_.decoder);
    }
    return bytes;
  }

 private:
  bool full() const { return trained_ == Trained::kFull; }
  bool lora() const { return trained_ == Trained::kLoraDefault || trained_ == Trained::kLoraAll; }
  bool ia3() const { return trained_ == Trained::kIa3; }
  bool all_linears() const { return trained_ == Trained::kLoraAll || full(); }
  bool any_linear() const { return lora() || full(); }
  // Whether something trains below the first layer's first norm.
  bool starts_below_the_norm() const { return !lora() && !ia3(); }

  // Input and one or two statistics a row.
  int64_t Norm(int64_t rows) const { return e_ * rows * info_.width + 4 * rows * (gpt2_ ? 2 : 1); }
  // q, k, v, the output, and the log-sum-exp of each row and head.
  int64_t Attention(int64_t rows, int64_t key_rows) const {
    const int64_t inner = info_.heads * info_.head_size;
    return 2 * e_ * rows * inner + 2 * e_ * key_rows * info_.key_heads * info_.head_size +
           4 * rows * info_.heads;
  }
  int64_t Activation(int64_t rows) const {
    if (gated_) return 2 * e_ * rows * hidden_;
    return relu_ ? 4 * ((rows * hidden_ + 31) / 32) : e_ * rows * hidden_;
  }
  // The r-wide product of each LoRA, and the span of rows that it acts on.
  int64_t LowRank(int64_t rows) const { return lora() ? 4 * rows * kRank + 8 : 0; }

  // The inputs of the trained linears around attention. The output projection's is the attention's
  // output, which is kept already. GPT-2 has one fused input projection.
  int64_t SelfAttentionLinears(int64_t rows) const {
    if (!any_linear()) return 0;
    const int64_t inputs = gpt2_ ? 1 : all_linears() ? 3 : 2;
    return e_ * rows * info_.width + (inputs + (all_linears() ? 1 : 0)) * LowRank(rows);
  }
  // What IA3 rescales, before that, and the span of rows that it acts on.
  int64_t Rescaled(int64_t rows, int64_t width) const { return ia3() ? e_ * rows * width + 8 : 0; }
  // PEFT's default targets of attention: keys and values (Qwen2: queries and values).
  int64_t RescaledAttention(int64_t rows) const {
    const int64_t query = info_.heads * info_.head_size, key = info_.key_heads * info_.head_size;
    if (gpt2_) return Rescaled(rows, 3 * query);
    return Rescaled(rows, info_.model_type == "qwen2" ? query : key) + Rescaled(rows, key);
  }
  // T5; the encoder's output, which all layers share, is counted once in T5().
  int64_t CrossAttentionLinears() const {
    if (!any_linear()) return 0;
    return e_ * n_.decoder * info_.width + (all_linears() ? 2 : 1) * LowRank(n_.decoder) +
           (all_linears() ? 2 : 1) * LowRank(n_.encoder);
  }
  int64_t FeedForward(int64_t rows) const {
    const int64_t kept = Norm(rows) + Activation(rows) + Rescaled(rows, hidden_);
    if (!all_linears()) return kept;
    return kept + e_ * rows * (info_.width + hidden_) + (gated_ ? 3 : 2) * LowRank(rows);
  }
  // The gradient of each target's hidden row, its row number; the gradient of a trained head.
  int64_t Head() const {
    return 4 * n_.targets * info_.width + 4 * n_.targets +
           (full() ? 4 * info_.vocabulary * info_.width : 0);
  }

  int64_t DecoderStack() const {
    int64_t bytes = Norm(n_.outputs) + Head();
    for (int64_t i = 0; i < info_.layers; ++i) {
      if (i > 0 || starts_below_the_norm()) bytes += Norm(n_.decoder);
      bytes += Attention(n_.decoder, n_.decoder) + SelfAttentionLinears(n_.decoder);
      bytes += RescaledAttention(n_.decoder);
      bytes += FeedForward(i + 1 == info_.layers ? n_.outputs : n_.decoder);
    }
    return bytes;
  }

  int64_t T5() const {
    const bool prompt = trained_ == Trained::kPrompt;
    int64_t bytes = Norm(n_.encoder) + Norm(n_.outputs) + Head();  // final norms
    bytes += 2 * 4 * info_.heads * distances_;                     // both stacks' bias by distance
    if (any_linear()) bytes += e_ * n_.encoder * info_.width;
    for (int64_t i = 0; i < info_.layers; ++i) {
      if (i > 0 || starts_below_the_norm()) bytes += Norm(n_.encoder);
      bytes += Attention(n_.encoder, n_.encoder) + SelfAttentionLinears(n_.encoder);
      bytes += RescaledAttention(n_.encoder);
      bytes += FeedForward(n_.encoder);
    }
    for (int64_t i = 0; i < info_.decoder_layers; ++i) {
      // A prompt reaches the decoder by the first cross attention.
      if (i > 0 || full()) bytes += Norm(n_.decoder);
      if (i > 0 || !prompt) {
        bytes += Attention(n_.decoder, n_.decoder) + SelfAttentionLinears(n_.decoder);
        bytes += RescaledAttention(n_.decoder) + Norm(n_.decoder);
      }
      bytes += Attention(n_.decoder, n_.encoder) + CrossAttentionLinears();
      bytes += RescaledAttention(n_.encoder);
      bytes += FeedForward(i + 1 == info_.decoder_layers ? n_.outputs : n_.decoder);
    }
    return bytes;
  }

  const ModelInfo& info_;
  Trained trained_;
  int64_t e_;
  Counts n_;
  bool gpt2_ = false, relu_ = false, gated_ = false;
  int64_t hidden_ = 0, distances_ = 0;
};

class SavedBytesTest : public testing::TestWithParam<std::string> {};

TEST_P(SavedBytesTest, AStepKeepsWhatTheFormulaSays) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    GoldenWorld w = OpenGoldenWorld(GetParam(), precision);
    for (const Trained trained : {Trained::kPrompt, Trained::kLoraDefault, Trained::kLoraAll,
                                  Trained::kIa3, Trained::kFull}) {
      const Adapter adapter =
          FreshAdapter(ConfigOf(trained, w.model->info().model_type), 0, *w.context, *w.model);
      const auto recorded = Record(*w.context, *w.model, *adapter.method, w.lines);
      const Counts n = CountRows(w.lines, w.model->info().encoder_decoder,
                                 trained == Trained::kPrompt ? kPrompt : 0);
      EXPECT_EQ(recorded->batch.encoder.rows.count(), n.encoder);
      EXPECT_EQ(recorded->batch.decoder.rows.count(), n.decoder);
      EXPECT_EQ(recorded->bytes, Formula(*w.model, trained, precision, n).Bytes())
          << "method " << static_cast<int>(trained) << ", precision "
          << static_cast<int>(precision);
    }
  }
}

// Beside what LoRA keeps: the output before the magnitude, norms and factors, the span.
TEST_P(SavedBytesTest, DoraKeepsItsOutputsBeside) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    GoldenWorld w = OpenGoldenWorld(GetParam(), precision);
    LoraConfig config = LoraConfigOf({"all-linear"}, kRank);
    const Adapter lora = FreshAdapter(config, 0, *w.context, *w.model);
    config.dora = true;
    const Adapter dora = FreshAdapter(config, 0, *w.context, *w.model);
    const ModelInfo& info = w.model->info();
    const Counts n = CountRows(w.lines, info.encoder_decoder, 0);
    int64_t expected = Record(*w.context, *w.model, *lora.method, w.lines)->bytes;
    for (const LinearPlace& p : w.model->linears()) {
      const SiteId& s = p.site;
      const bool from_encoder =
          s.stack == Stack::kEncoder ||
          (s.sublayer == Sublayer::kCrossAttention &&
           (s.projection == Projection::kKey || s.projection == Projection::kValue));
      const bool last = s.sublayer == Sublayer::kFeedForward && s.layer + 1 == info.decoder_layers;
      const int64_t rows = from_encoder ? n.encoder : last ? n.outputs : n.decoder;
      expected += (precision == Precision::kBF16 ? 2 : 4) * rows * p.outputs + 8 * p.outputs + 8;
    }
    EXPECT_EQ(Record(*w.context, *w.model, *dora.method, w.lines)->bytes, expected)
        << "precision " << static_cast<int>(precision);
  }
}

// Recomputed layers keep their input alone; recomputed attention keeps its sublayer's input, and
// the feed-forward what it keeps anyway.
TEST_P(SavedBytesTest, RecomputationKeepsInputs) {
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    GoldenWorld w = OpenGoldenWorld(GetParam(), precision);
    const Adapter adapter = FreshAdapter(PromptConfig(kPrompt), 0, *w.context, *w.model);
    const Counts n = CountRows(w.lines, w.model->info().encoder_decoder, kPrompt);
    const Formula formula(*w.model, Trained::kPrompt, precision, n);
    for (const Recompute recompute : {Recompute::kAttention, Recompute::kLayers}) {
      w.context->recompute = recompute;
      EXPECT_EQ(Record(*w.context, *w.model, *adapter.method, w.lines)->bytes,
                formula.PromptBytes(recompute))
          << "precision " << static_cast<int>(precision) << ", recompute "
          << static_cast<int>(recompute);
    }
  }
}

// Nodes of a soft prompt's step: everything above the first place that reads the prompt.
TEST_P(SavedBytesTest, APromptRecordsWhatLiesAboveIt) {
  GoldenWorld w = OpenGoldenWorld(GetParam());
  const Adapter adapter = FreshAdapter(PromptConfig(kPrompt), 0, *w.context, *w.model);
  const std::vector<std::string> nodes =
      Record(*w.context, *w.model, *adapter.method, w.lines)->nodes;
  const ModelInfo& info = w.model->info();
  size_t expected = 0;
  if (info.encoder_decoder) {
    const bool gated = GetParam().find("v1_1") != std::string::npos;
    const size_t attention = 7;  // norm, q, k, v, attention, o, add
    const size_t feed_forward = gated ? 6 : 5;
    const size_t encoder = static_cast<size_t>(info.layers) * (attention + feed_forward);
    const size_t decoder =
        static_cast<size_t>(info.decoder_layers) * (2 * attention + feed_forward) - attention - 2;
    // The first decoder layer's self attention, cross norm and cross query read no prompt. Beside
    // layers: prompt rows, two final norms, wanted rows, head (v1.0 scales its input).
    expected = encoder + decoder + 5 + (gated ? 0 : 1);
  } else if (info.model_type == "gpt2") {
    expected = static_cast<size_t>(info.layers) * (8 + 5) + 5;  // positions are added as well
  } else {
    expected = static_cast<size_t>(info.layers) * (9 + 6) + 4;
  }
  EXPECT_EQ(nodes.size(), expected) << absl::StrJoin(nodes, " ");
  EXPECT_EQ(nodes.front(), "ReplaceRows");
}

// A LoRA on decoder layers l and above records nothing of what lies below (T5: of the encoder
// either), and not the linears whose outputs it adds to there.
TEST_P(SavedBytesTest, ALoraRecordsNothingBelowItsFirstLayer) {
  GoldenWorld w = OpenGoldenWorld(GetParam());
  const ModelInfo& info = w.model->info();
  const bool t5 = info.encoder_decoder, gpt2 = info.model_type == "gpt2";
  const bool gated = GetParam().find("v1_0") == std::string::npos;
  // A layer above: norm, linears, LoRAs, rope or columns, attention, output, add; T5's cross
  // attention, whose keys need nothing; feed-forward.
  const size_t layer = t5 ? 9 + 7 + (gated ? 6 : 5) : gpt2 ? 9 + 5 : 11 + 6;
  // The first: without norm and linears; a key path without LoRA is not recorded at all.
  const size_t unrecorded = t5 ? 4 : gpt2 ? 2 : 5;
  const size_t top = t5 && !gated ? 4 : 3;  // wanted rows, final norm, head, its scale
  for (int64_t l = 0; l < info.decoder_layers; ++l) {
    LoraConfig config = LoraConfigOf(DefaultLoraTargets(info.model_type), kRank);
    if (t5) {
      config.targets.modules = {absl::StrCat("decoder\\.block\\.[", l, "-9]\\..*\\.[qv]")};
      config.targets.modules_are_regex = true;
    } else {
      for (int64_t i = l; i < info.layers; ++i)
        config.targets.layers.push_back(static_cast<int>(i));
    }
    const Adapter adapter = FreshAdapter(config, 0, *w.context, *w.model);
    const auto recorded = Record(*w.context, *w.model, *adapter.method, w.lines);
    const size_t layers = static_cast<size_t>(info.decoder_layers - l);
    EXPECT_EQ(recorded->nodes.size(), layers * layer - unrecorded + top)
        << "from layer " << l << ": " << absl::StrJoin(recorded->nodes, " ");
    EXPECT_EQ(recorded->nodes.front(), "AddLowRank");
  }
}

// Three more virtual tokens cost three rows, however many lines share a causal prompt; an encoder's
// prompt costs three rows a line.
TEST_P(SavedBytesTest, ACausalPromptCostsItsRowsOnce) {
  GoldenWorld w = OpenGoldenWorld(GetParam());
  const bool t5 = w.model->info().encoder_decoder;
  const auto cost = [&](size_t copies) {  // of three virtual tokens: bytes, rows
    const std::vector<TokenLine> lines(copies, w.lines[3]);
    std::pair<int64_t, int64_t> difference{0, 0};
    for (const int64_t prompt : {kPrompt + 3, kPrompt}) {
      const Adapter adapter = FreshAdapter(PromptConfig(prompt), 0, *w.context, *w.model);
      const auto r = Record(*w.context, *w.model, *adapter.method, lines);
      const int64_t sign = prompt == kPrompt ? -1 : 1;
      difference.first += sign * r->bytes;
      difference.second += sign * (r->batch.encoder.rows.count() + r->batch.decoder.rows.count());
    }
    return difference;
  };
  const auto [bytes, rows] = cost(1);
  const auto [shared_bytes, shared_rows] = cost(16);
  EXPECT_EQ(rows, 3);
  EXPECT_EQ(shared_rows, t5 ? 16 * 3 : 3);
  if (!t5) {
    EXPECT_EQ(shared_bytes, bytes);
  } else if (GetParam().find("v1_1") != std::string::npos) {  // relu keeps bits in words of 32
    EXPECT_EQ(shared_bytes, 16 * bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SavedBytesTest, testing::ValuesIn(GoldenModelNames()), TestName);

}  // namespace
}  // namespace permafrost
