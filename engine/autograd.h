// Reverse-mode automatic differentiation with saving per need.
//
// A Var is a Tensor that may need a gradient: it then has a gradient slot. An op is recorded only
// if an input has a slot; it keeps only what the needed gradients read; edges point to slots, never
// to values. Nodes stand in order of creation, so the backward pass pops them from the end and
// frees what each kept. Nothing below the first trainable tensor is recorded.
//
// Backward functions are trivially copyable: they may hold scalars and pointers to things that
// outlive the tape (frozen weights, row graphs), while every kept tensor is in Saved and counted.
//
// Non-goals: second derivatives, several outputs per op, lazy evaluation.
#ifndef PERMAFROST_ENGINE_AUTOGRAD_H_
#define PERMAFROST_ENGINE_AUTOGRAD_H_

#include <functional>
#include <map>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "engine/tensor.h"

namespace permafrost {

struct Context;

struct GradSlot {
  Shape shape;
  Tensor grad;        // empty until something flows in
  bool leaf = false;  // a Parameter: its gradient stays after the backward pass
};

class Var {
 public:
  Var() = default;
  Var(Tensor value) : value_(std::move(value)) {}  // NOLINT: a constant is a Var
  Var(Tensor value, std::shared_ptr<GradSlot> slot)
      : value_(std::move(value)), slot_(std::move(slot)) {}

  explicit operator bool() const { return static_cast<bool>(value_); }
  const Tensor& value() const { return value_; }
  // The value, given up by this Var so that the caller may overwrite it if nothing else holds it.
  Tensor TakeValue() { return std::move(value_); }
  bool needs_grad() const { return slot_ != nullptr; }
  const std::shared_ptr<GradSlot>& slot() const { return slot_; }
  const Shape& shape() const { return value_.shape(); }
  int64_t rows() const { return value_.rows(); }
  int64_t columns() const { return value_.columns(); }

 private:
  Tensor value_;
  std::shared_ptr<GradSlot> slot_;
};

// The tensors that a node keeps for its backward function.
class Saved {
 public:
  // Keeps t exactly if `needed`; returns the index to Get it by.
  int Keep(const Tensor& t, bool needed = true);
  // As Keep, but as bf16 under Precision::kBF16. One copy serves all nodes that keep the same
  // tensor.
  int KeepActivation(Context& c, const Tensor& t, bool needed = true);
  // The tensor kept under `index`, as f32 for activations. Must have been kept.
  Tensor Get(Context& c, int index) const;

  const std::vector<Tensor>& tensors() const { return tensors_; }

 private:
  std::vector<Tensor> tensors_;
};

// Where a backward function puts the gradients of its node's inputs.
class GradSink {
 public:
  GradSink(Context& c, std::vector<std::shared_ptr<GradSlot>>& inputs) : c_(c), inputs_(inputs) {}
  bool Needs(size_t input) const { return inputs_[input] != nullptr; }

  // A buffer for a kernel to write the gradient of `input` into, with kOverwrite if it is fresh.
  struct Target {
    Tensor grad;
    kernels::Write write;
  };
  Target Buffer(size_t input);
  // As Buffer for kernels that only accumulate, or that write some rows or columns: zero-filled if
  // fresh.
  Tensor Accumulator(size_t input);
  // Adds `grad`; takes it over without a copy if nothing has flowed in yet.
  void Add(size_t input, const Tensor& grad);

 private:
  Context& c_;
  std::vector<std::shared_ptr<GradSlot>>& inputs_;
};

using BackwardFunction = std::function<void(Context&, const Saved&, const Tensor& dy, GradSink&)>;

// kRecord: nodes are kept. kPropagate: only whether a gradient is needed is tracked (the first run
// of a recomputed part). kOff: every result is a constant.
enum class TapeMode { kOff, kPropagate, kRecord };

class Tape {
 public:
  struct Node {
    const char* name;
    std::vector<std::shared_ptr<GradSlot>> inputs;
    std::shared_ptr<GradSlot> output;
    Saved saved;
    BackwardFunction backward;
  };

  TapeMode mode = TapeMode::kOff;

  const std::vector<Node>& nodes() const { return nodes_; }
  void Push(Node node) { nodes_.push_back(std::move(node)); }
  // Runs and removes every node from the last to `first`. Gradients of outputs must have been
  // seeded.
  void Backward(Context& c, size_t first = 0);
  void Clear();

  // Bytes of the distinct tensors that the nodes keep. Weights and parameters, which live without
  // the tape as well, do not count.
  int64_t saved_bytes() const;

  // The bf16 copy of `t`, made once for all nodes that keep it.
  Tensor Compressed(Context& c, const Tensor& t);

 private:
  std::vector<Node> nodes_;
  std::map<std::pair<uint64_t, const std::byte*>, Tensor> compressed_;  // by contents and start
};

// Gives y a slot, and a node if the tape records, if any input needs a gradient.
Var RecordNode(Context& c, const char* name, absl::Span<const Var* const> inputs, Tensor y,
               Saved saved, BackwardFunction backward);

template <class F>
Var Record(Context& c, const char* name, absl::Span<const Var* const> inputs, Tensor y, Saved saved,
           F backward) {
  static_assert(std::is_trivially_copyable_v<F>,
                "tensors go through Saved, where they are counted");
  return RecordNode(c, name, inputs, std::move(y), std::move(saved), backward);
}

// Whether Record would keep a node for these inputs: ops skip work that only a gradient needs.
bool WillRecord(const Context& c, absl::Span<const Var* const> inputs);

// Seeds d(root) = `seed` and runs the whole tape backwards.
void Backward(Context& c, const Var& root, const Tensor& seed);

// y = f(c, x) without keeping what f saves: the backward pass runs f again from x (under
// Precision::kBF16 from x as it is kept, rounded to bf16). Trainable tensors that f uses get their
// gradients although they are not inputs here. Source: Chen et al. 2016.
Var Checkpoint(Context& c, const Var& x, std::function<Var(Context&, const Var&)> f);

}  // namespace permafrost

#endif  // PERMAFROST_ENGINE_AUTOGRAD_H_
