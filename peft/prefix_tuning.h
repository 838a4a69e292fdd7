// Prefix tuning (Li & Liang 2021): trained keys and values K_p, V_p [P, G K] in front of those of
// an attention, Attn(q) = softmax([q K_p^T; q K^T]) [V_p; V], no query of their own. One table a
// group of layers, [P, 2 L G K]: row p, then layer, then keys and values, then heads. It is trained
// as it is, or made by a network, Linear(E, m), tanh, Linear(m, 2 L G K) of E [P, e], whose output
// is what an adapter file holds.
//
// Groups: the decoder's self-attention; in T5 also the encoder's and the cross attention.
// Positions: a decoder-only text starts at position P, as PEFT and the paper's code have it (keys
// of the prefix are not rotated). T5's relative bias sees either no prefix at all (the default for
// own prefixes, nearest to the paper) or takes it for the P positions before the text (PEFT), or
// counts the text's keys, not its queries, from P on, so that words are P further apart than they
// are (AdapterHub).
#ifndef PERMAFROST_PEFT_PREFIX_TUNING_H_
#define PERMAFROST_PEFT_PREFIX_TUNING_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "peft/gate.h"
#include "peft/method.h"

namespace permafrost {

struct PrefixTuningConfig {
  int64_t virtual_tokens = 20;  // P
  // Which attentions; `encoder` and `cross` exist in T5 only.
  bool encoder = false, decoder = true, cross = false;
  bool projection = false;       // trained through the network
  int64_t projection_width = 0;  // m; 0: G K
  int64_t embedding_width = 0;   // e; 0: G K
  Activation projection_activation = Activation::kTanh;
  double dropout = 0;  // on the tables
  enum class Init { kNormal, kZero };
  Init init = Init::kNormal;
  // PEFT's file: the decoder's group alone. In T5 its table has `layers` layers of which decoder
  // layer l reads keys at row 4 l mod 2 `layers` and values at the row after: for an even number
  // of layers half of the rows are dead and layers share the others (peft-survey 1.2.3).
  bool peft_layout = true;
  int64_t layers = 0;  // PEFT's num_layers; 0: the base's
  enum class Positions { kNone, kCache, kShifted };
  Positions positions = Positions::kCache;  // in T5's bias: none; before the text; see above
  bool text_after_prefix = true;  // decoder-only: the text starts at position P, else at 0
  GateConfig gate;
  std::vector<int> leave_out;  // layers without a prefix, T5's decoder counted after its encoder
};

class PrefixTuning : public Method {
 public:
  // Tables from N(0, 1), or zero, in which case the network's last linear is zero. The network is
  // initialised as torch's Linear and Embedding. Error: a group that the base does not have, more
  // decoder layers than PEFT's layout has.
  static absl::StatusOr<std::unique_ptr<PrefixTuning>> Create(int task,
                                                              const PrefixTuningConfig& config,
                                                              const Model& model, Random& random);

  int64_t FirstPosition(int task) const override;
  int64_t BiasShift(int task, Stack stack) const override;
  bool ReadsFuture(int task) const override;
  Var OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) override;
  void OnAttention(Context& c, const SiteId& site, const Var& x, const PlaceRows& rows,
                   std::vector<Prefix>& prefixes) override;

  // The finished tables, by PEFT's name or encoder_prefix, self_prefix, cross_prefix; the gates.
  std::vector<FileTensor> FileTensors() const override;
  std::vector<GateMean> TakeGateMeans() override;

  // A group's table [P, 2 L G K], for initial values. The method must not be projected.
  struct Table {
    Stack stack;
    Sublayer sublayer;
    Parameter* table;
    std::vector<int64_t> key_row, value_row;  // by layer, in units of G K; -1 for none
  };
  std::vector<Table> Tables();

 private:
  struct Group {
    std::string name;  // of the file's tensor
    Stack stack;
    Sublayer sublayer;
    // Table rows of each layer's keys and values, in units of G K; -1 for none.
    std::vector<int64_t> key_row, value_row;
    std::vector<std::optional<Gate>> gates;  // by layer
    size_t parameter = 0;  // the table, or E, followed by the network's weights and biases
    Var table;             // [P, 2 L G K], of the running forward pass
  };

  PrefixTuning(int task, const PrefixTuningConfig& config, const Model& model);
  void AddGroup(Stack stack, Sublayer sublayer, const std::string& name, const Model& model,
                Random& random);
  Var TableOf(Context& c, const Group& group) const;

  PrefixTuningConfig config_;
  int64_t width_;  // G K
  bool has_bias_;  // T5: the base biases positions
  std::vector<Group> groups_;
};

// Puts the keys and values that the base computes for a text into a prefix that is not projected:
// row i is that of token i. T5: `ids` are the encoder's text and the decoder's. Error: fewer
// tokens than virtual tokens.
absl::Status InitialisePrefixFromText(Context& c, const Model& model, absl::Span<const int32_t> ids,
                                      PrefixTuning& prefix);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_PREFIX_TUNING_H_
