// Bottleneck adapters: A(h) = s (W_up f(W_down h + b_down) + b_up), W_down [b, D], W_up [D, b],
// behind or beside a sublayer. With x the residual stream that the sublayer read and y its output:
//   Houlsby et al. 2019   x + y + A(y)          after attention and feed-forward
//   Pfeiffer et al. 2021  x + y + A(x + y)      after the feed-forward
//   parallel (He et al. 2022)  x + y + s A(x)   beside the feed-forward
// and what lies between, by the fields of the `adapters` library (peft-survey 1.5). Its rule:
// sequential: h = x + y if original_ln_before else y; r = y if residual_before_ln else h;
// u = gate A(LN_b(h)); v = LN_a(u + r) if adapter_residual_before_ln else LN_a(u) + r.
// Parallel: h = x, v = LN_a(u) + y. The stream goes on with v + x if original_ln_after else v. LN_b
// and LN_a are the identity unless asked for.
#ifndef PERMAFROST_PEFT_BOTTLENECK_H_
#define PERMAFROST_PEFT_BOTTLENECK_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/activation.h"
#include "peft/gate.h"
#include "peft/method.h"

namespace permafrost {

struct BottleneckConfig {
  int64_t width = 0;                    // b; 0: D / 16, at least 1
  std::map<int, int64_t> layer_widths;  // of single layers, T5's decoder counted after its encoder
  bool after_attention = false, after_cross = false, after_feed_forward = true;
  bool parallel = false;
  Activation activation = Activation::kRelu;
  enum class Scaling { kFixed, kLearned, kChannel };  // s: `scale`, [1, 1] or [1, D] from 1 on
  Scaling scaling = Scaling::kFixed;
  double scale = 1;
  bool original_ln_before = true, original_ln_after = true;
  bool residual_before_ln = true, adapter_residual_before_ln = false;
  bool ln_before = false, ln_after = false;
  double dropout = 0;
  GateConfig gate;
  std::vector<int> leave_out;  // layers without adapters, counted as layer_widths
  // AdapterDrop (Rücklé et al. 2021): in training the adapters of the first n layers of a stack
  // rest, n drawn for every step from 0 .. `drop_layers`.
  int64_t drop_layers = 0;
  // bert: weights N(0, 0.02); mam: W_down kaiming uniform, W_up 0, so that the base is unchanged at
  // first; houlsby: N(0, 0.01) cut at two deviations. Biases are 0.
  enum class Init { kBert, kMam, kHoulsby };
  Init init = Init::kBert;
};

BottleneckConfig HoulsbyConfig();
BottleneckConfig PfeifferConfig();
BottleneckConfig ParallelConfig();

class Bottleneck : public Method {
 public:
  // Error: no layer left, a width of the config that is not positive.
  static absl::StatusOr<std::unique_ptr<Bottleneck>> Create(int task,
                                                            const BottleneckConfig& config,
                                                            const Model& model, Random& random);

  bool ReadsAllRows() const override;
  bool ReadsFuture(int task) const override;
  Var OnSublayerOutput(Context& c, const SiteId& site, const Var& x_in, Var y,
                       const PlaceRows& rows) override;

  // Biases, norms and scales as vectors [n].
  std::vector<int64_t> FileShape(const Parameter& p) const override;
  std::vector<GateMean> TakeGateMeans() override;

 private:
  struct Adapter {
    SiteId site;
    size_t down, up;  // weight, then bias
    std::optional<size_t> norm_before, norm_after, scaling;
    std::optional<Gate> gate;
    uint32_t dropout_place;
  };

  Bottleneck(int task, const BottleneckConfig& config) : Method(task), config_(config) {}
  void AddAdapter(const SiteId& site, int64_t bottleneck, int64_t width, Random& random);
  Adapter* Find(const SiteId& site);
  bool Rests(const Context& c, int layer) const;
  // gates A(LN_b(h)) for packed rows h; `gates` are of the same rows or empty.
  Var Apply(Context& c, const Adapter& a, const Var& h, const Var& gates) const;
  Var NormIf(Context& c, const std::optional<size_t>& norm, const Var& x) const;

  BottleneckConfig config_;
  std::vector<Adapter> adapters_;
};

// "encoder.layers.0.feed_forward": a sublayer in names of files and messages.
std::string SublayerName(const SiteId& site);

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_BOTTLENECK_H_
