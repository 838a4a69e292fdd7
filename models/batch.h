// A batch: the row forests of a model's stacks and the index lists that ops point to. It must
// outlive the tape of every forward pass that reads it, so it does not move once used.
#ifndef PERMAFROST_MODELS_BATCH_H_
#define PERMAFROST_MODELS_BATCH_H_

#include <functional>
#include <vector>

#include "engine/rows.h"
#include "models/sites.h"

namespace permafrost {

// Rows that the method of `task` fills with virtual tokens of its prompt `prompt`: row rows[i] gets
// token tokens[i], which counts the virtual rows of a segment from 0.
struct VirtualRows {
  int task = kNoTask;
  int prompt = 0;
  std::vector<int32_t> rows;
  std::vector<int32_t> tokens;
};

// One stack's rows with what is derived from them.
struct StackRows {
  Rows rows;
  AttentionPlan self;
  std::vector<TaskSpan> spans;
  Pooling pooling;              // of gates
  std::vector<int32_t> lookup;  // token ids, 0 for virtual rows
  std::vector<VirtualRows> virtual_rows;
};

struct Batch {
  StackRows encoder;  // no rows in a decoder-only model
  StackRows decoder;
  AttentionPlan cross;
  // Decoder rows whose hidden states are wanted, ascending, and their task spans: head and last
  // feed-forward see no others.
  std::vector<int32_t> outputs;
  std::vector<TaskSpan> output_spans;
  // By target of decoder.rows.targets: its row among `outputs`, and its label.
  std::vector<int32_t> target_outputs;
  std::vector<int32_t> target_labels;
};

// One line of data in token ids. Ids may be kVirtual, the next virtual token of the line's adapter
// (an anchored prompt: Hooks::AnchoredTokens). Decoder-only: labels[i] is what position i is scored
// for (as transformers: the row before it predicts it), -100 for none, as many as input_ids.
// Encoder-decoder: labels are the target's ids.
struct TokenLine {
  std::vector<int32_t> input_ids;
  std::vector<int32_t> labels;
  int task = kNoTask;
  int prompt = 0;  // of an adapter that has several (multitask prompt tuning)
};

// How a model lays lines out.
struct BatchLayout {
  bool encoder_decoder = false;
  int32_t decoder_start = 0;
  int32_t pad = 0;  // stands for -100 in a shifted decoder input
  std::function<int64_t(int task)> virtual_tokens;
  std::function<int64_t(int task)> first_position;  // of a decoder-only text without virtual tokens
  std::function<int64_t(int task, Stack)> bias_shift;  // of a text in T5's relative position bias
};

// Which decoder rows are wanted: those with a label, or (forward's logits) every text row.
enum class Outputs { kLabelled, kAll };

// Lays lines out as rows: a causal prompt once for all lines that share it, an encoder prompt in
// front of each text. With a causal prompt the last virtual row predicts labels[0], as in PEFT.
// target.example is the line's index.
Batch MakeBatch(const BatchLayout& layout, absl::Span<const TokenLine> lines, Outputs outputs);

// A text and the candidates that may follow it (label words): candidates share the text's rows.
struct ChoiceLine {
  std::vector<int32_t> input_ids;
  std::vector<std::vector<int32_t>> candidates;  // none empty
  int task = kNoTask;
  int prompt = 0;
};
// target.example counts (line, candidate) pairs in order.
Batch MakeChoiceBatch(const BatchLayout& layout, absl::Span<const ChoiceLine> lines);

// Fills the derived lists of a batch whose rows and targets are set. Wanted rows: `outputs` if it
// is not empty, else those with a target.
void FinishBatch(Batch& batch, bool encoder_decoder);

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_BATCH_H_
