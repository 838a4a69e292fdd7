// The menu of differentiable ops. R rows, D width, N outputs, H heads, G key heads, K head size,
// V vocabulary, P virtual tokens, r rank.
//
// Every op takes f32 Vars and returns an f32 Var. "Saves" lists what a recorded op keeps, beside
// constants; nothing is kept for an input that needs no gradient. Ops that take a Var by value may
// reuse its memory if nothing else holds it. A shape that breaks a rule is a checked abort.
#ifndef PERMAFROST_ENGINE_OPS_H_
#define PERMAFROST_ENGINE_OPS_H_

#include <vector>

#include "engine/autograd.h"
#include "engine/context.h"
#include "engine/rows.h"
#include "engine/weight.h"
#include "kernels/activation.h"

namespace permafrost {

using kernels::Activation;

// y [R, N] = x [R, D] W^T + bias [1, N] (bias may be empty). Frozen weight: saves nothing.
Var Linear(Context& c, const Var& x, const Weight& w, const Tensor& bias = {});

// y [R, N] = x [R, D] w^T, w [N, D], both differentiable. Saves x if w needs a gradient (and w
// otherwise lives anyway).
Var MatMulTransposed(Context& c, const Var& x, const Var& w);

// y[:, :] += bias [1, N].
Var AddBias(Context& c, Var y, const Var& bias);

// Which elements a dropout drops: a function of these and of (row, column), never stored.
struct DropoutMask {
  uint64_t seed = 0;
  uint32_t step = 0;
  uint32_t place = 0;
};

// y += scale * gate_i * dropout(x) A^T B^T on the rows i of `spans` (LoRA, Hu et al. 2021, eq. 3).
// A [r, D], B [N, r], gate [R, 1] or empty for 1. Saves x, and the r-wide product of those rows.
// The mask counts the rows of
// `spans` from 0, so that it does not depend on the rest of the batch.
struct LowRank {
  float scale = 1;
  float dropout = 0;
  DropoutMask mask;
};
Var AddLowRank(Context& c, Var y, const Var& x, const Var& a, const Var& b, const LowRank& options,
               absl::Span<const TaskSpan> spans, const Var& gate = {});

// x with the rows of `spans` multiplied by scale [1, D] (IA3, Liu et al. 2022). Saves x if the
// scale needs a gradient.
Var ScaleColumns(Context& c, Var x, const Var& scale, absl::Span<const TaskSpan> spans);

// x with row i multiplied by gate [R, 1] at i. Saves x if the gate needs a gradient, and the gate.
Var ScaleRows(Context& c, Var x, const Var& gate);

// The rows of `spans` one after another: x itself if they are all rows. Saves nothing.
Var TakeRows(Context& c, const Var& x, absl::Span<const TaskSpan> spans);
// x with the rows of `spans` replaced by `rows` [their number, D], in order. Saves nothing.
Var PutRows(Context& c, Var x, const Var& rows, absl::Span<const TaskSpan> spans);
// ||W_n||^2 of each output n of a frozen weight, f64.
std::vector<double> SquaredRowNorms(Context& c, const Weight& w);
// ||W_n + scale (B A)_n|| of each output n, [1, N], without the sum W + B A: `squares` (of
// SquaredRowNorms) + 2 scale (W A^T)_n . B_n + scale^2 B_n (A A^T) B_n^T, added in f64 (a bf16
// weight takes A rounded to bf16). A [r, D], B [N, r]. A constant: DoRA's gradient takes it as one
// (Liu et al. 2024, section 4.3).
Tensor ChangedRowNorms(Context& c, const Weight& w, absl::Span<const double> squares,
                       const Tensor& a, const Tensor& b, float scale);
// y + (magnitude / norms - 1) (y - bias) on the rows of `spans`; magnitude, norms and bias (may be
// empty) [1, N], all but the norms differentiable. Saves y if the magnitude needs a gradient.
Var SetMagnitude(Context& c, Var y, const Var& magnitude, const Tensor& norms, const Var& bias,
                 absl::Span<const TaskSpan> spans);

// y += scale * bias [1, N] on the rows of `spans`. Saves nothing.
Var AddSpanBias(Context& c, Var y, const Var& bias, float scale, absl::Span<const TaskSpan> spans);

// x[i] += scale * B A[:, ids[i]] on the rows i of `spans` (LoRA on an embedding). x [R, D], A [r,
// V], B [D, r], an id for each row of x. Saves the columns of A of those rows.
Var AddEmbeddingLowRank(Context& c, Var x, const Var& a, const Var& b, float scale,
                        absl::Span<const int32_t> ids, absl::Span<const TaskSpan> spans);

// x + y. Saves nothing.
Var Add(Context& c, Var x, const Var& y);
// factor * x. Saves nothing.
Var Scale(Context& c, Var x, float factor);

// RMSNorm with scale [1, D]; saves x and 1/rms [R].
Var RmsNorm(Context& c, const Var& x, const Var& scale, float epsilon);
// LayerNorm with scale and bias [1, D]; saves x, mean and 1/std [R].
Var LayerNorm(Context& c, const Var& x, const Var& scale, const Var& bias, float epsilon);

// act(x). Saves x, or for relu one bit an element.
Var Activate(Context& c, Activation activation, Var x);
// act(gate) * up. Saves gate and up.
Var Gated(Context& c, Activation activation, const Var& gate, const Var& up);

// One direction of an LSTM (Hochreiter and Schmidhuber 1997; torch's gates and their order i, f, g,
// o) over the rows of `gates` [R, 4 h] = x W_ih^T + biases, from the last row to the first if
// `reverse`: gates += y_before w^T, c = s(f) c_before + s(i) tanh(g), y = s(o) tanh(c), w [4 h, h],
// y and c start at 0. Returns y [R, h]. Saves the gates, the cells and w, and y if w needs a
// gradient.
Var Lstm(Context& c, const Var& gates, const Var& w, bool reverse);

// y [n, D] = x[0:n] * (a[a_begin : a_begin + n] b[b_begin : b_begin + r]), elementwise by a product
// of low rank (multitask prompts, Wang et al. 2023). x [P, D], a [any, r], b [any, D]. Saves x, a,
// b and the product, each if another input's gradient reads it.
struct LowRankScale {
  int64_t rows = 0;  // n
  int64_t a_begin = 0, b_begin = 0;
};
Var ScaleByLowRank(Context& c, const Var& x, const Var& a, const Var& b, const LowRankScale& part);

// Cosines and sines [positions, K / 2] of rotary embedding.
struct RopeTable {
  Tensor cos;
  Tensor sin;
};
// Rotates each head of x [R, heads * K]. `positions` must outlive the tape. Saves nothing.
Var Rope(Context& c, Var x, const RopeTable& table, const std::vector<int32_t>& positions,
         int64_t heads);

// T5's relative position bias by distance, [H, 2 M + 1] (kernels/attention.h).
struct AttentionOptions {
  int64_t heads = 1;
  int64_t key_heads = 1;
  int64_t head_size = 1;
  float scale = 1;
  bool causal = true;
  int64_t bias_distance = 0;  // M
};
// Consecutive query rows that see a prefix; the first has position `position`.
struct PrefixRows {
  int64_t begin = 0;
  int64_t length = 0;
  int64_t position = 0;
};
// Trained keys and values that some rows see beside the text's (Li & Liang 2021). They are visible
// to every row of `segments`.
struct AttentionPrefix {
  Var keys, values;  // [P, G K]
  Var gate;  // [R, 1] or [R, 2] (keys', values'), or empty: what row i sees is multiplied by it
  bool biased = false;  // with the position bias of `position` .. `position` + P - 1, or none
  int64_t position = 0;
  std::vector<PrefixRows> segments;
};

// softmax(scale q k^T + bias) v over the plan's segments. q [R, H K], k and v [key rows, G K]; bias
// may be empty. `plan` must outlive the tape. Saves q, k, v, the output and the log-sum-exp [R, H].
Var Attention(Context& c, const Var& q, const Var& k, const Var& v, const Var& bias,
              const AttentionPlan& plan, const AttentionOptions& options,
              absl::Span<const AttentionPrefix> prefixes = {});

// [R, width]: columns begin .. begin + width of x. Saves nothing.
Var Columns(Context& c, const Var& x, int64_t begin, int64_t width);

// Rows x[ids[i], :]. Saves nothing. `ids` must outlive the tape.
Var GatherRows(Context& c, const Var& x, const std::vector<int32_t>& ids);

// x with rows[i] replaced by source[source_rows[i], :]: virtual tokens (Lester et al. 2021). Both
// index lists must outlive the tape.
Var ReplaceRows(Context& c, Var x, const std::vector<int32_t>& rows, const Var& source,
                const std::vector<int32_t>& source_rows);

// What earlier calls of a generation left, by slot.
struct RunningSums {
  Tensor table;                          // [slots, 1 + n]: count, sums
  const std::vector<int32_t>& slots;     // by row: where its own sum goes
  const std::vector<int32_t>& previous;  // by row without a previous row: the slot before it, or -1
};
// [R, n]: the means of sigmoid(logits [R, n]) over the counted rows of a row's text, 0 where there
// are none: up to the row (kRunning), or all of its segment and its ancestors (kWhole). `pooling`
// must outlive the tape. Saves the sigmoids and counts.
enum class MeanOver { kRunning, kWhole };
Var PooledGate(Context& c, const Var& logits, const Pooling& pooling, MeanOver over,
               const RunningSums* earlier = nullptr);

// dropout(x) with inverted scaling; the identity unless c.training. Saves nothing.
Var Dropout(Context& c, Var x, float rate, const DropoutMask& mask);

// T5's table [buckets, H] spread over distances: [H, 2 M + 1], entry (h, M + d) = table[bucket[M +
// d], h]. `buckets` (2 M + 1 entries) must outlive the tape.
Var SpreadBuckets(Context& c, const Var& table, const std::vector<int32_t>& buckets);

// Cross-entropy of logits = scale * h head^T without a whole logits matrix.
struct HeadLoss {
  Var loss;           // [1, 1]: sum over targets of weight_i * loss_i
  Tensor per_target;  // [1, T] unweighted losses
};
struct HeadOptions {
  float scale = 1;  // T5 v1.0: d_model^-1/2
  float z_loss = 0;
};
// h [rows, D]; target i reads row `rows[i]` of h and has weight weights[i]. Either `head` (frozen)
// or `trainable_head` [V, D] is used. The gradient is made in the forward pass: saves dh (and
// dhead) only.
HeadLoss HeadCrossEntropy(Context& c, const Var& h, const Weight* head, const Var& trainable_head,
                          absl::Span<const int32_t> rows, absl::Span<const int32_t> labels,
                          absl::Span<const float> weights, const HeadOptions& options);

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_OPS_H_
