#include "engine/autograd.h"

#include <algorithm>
#include <set>

#include "engine/check.h"
#include "engine/context.h"
#include "kernels/elementwise.h"

namespace permafrost {
namespace {

void AddInto(Context& c, const Tensor& x, const Tensor& y) {
  kernels::cpu::Axpby({.alpha = 1, .x = x.f32(), .beta = 1, .y = y.f32(), .count = x.count()},
                      c.parallel());
}

bool AnyNeedsGrad(absl::Span<const Var* const> inputs) {
  return std::any_of(inputs.begin(), inputs.end(), [](const Var* v) { return v->needs_grad(); });
}

}  // namespace

int Saved::Keep(const Tensor& t, bool needed) {
  tensors_.push_back(needed ? t : Tensor());
  return static_cast<int>(tensors_.size()) - 1;
}

int Saved::KeepActivation(Context& c, const Tensor& t, bool needed) {
  const bool compress =
      needed && c.precision == Precision::kBF16 && c.tape.mode == TapeMode::kRecord;
  return Keep(compress ? c.tape.Compressed(c, t) : t, needed);
}

Tensor Saved::Get(Context& c, int index) const {
  const Tensor& t = tensors_[static_cast<size_t>(index)];
  PERMAFROST_CHECK(t) << "Saved::Get: tensor " << index << " was not kept";
  if (t.dtype() != DType::kBF16) return t;
  Tensor expanded(t.shape(), MemoryTag::kWorkspace);
  kernels::cpu::ConvertFromBF16({.x = t.bf16(), .y = expanded.f32(), .count = t.count()},
                                c.parallel());
  return expanded;
}

GradSink::Target GradSink::Buffer(size_t input) {
  GradSlot& slot = *inputs_[input];
  if (!slot.grad) {
    slot.grad = Tensor(slot.shape, slot.leaf ? MemoryTag::kGradient : MemoryTag::kActivation);
    return {slot.grad, kernels::Write::kOverwrite};
  }
  if (!slot.grad.unique()) {
    slot.grad = slot.grad.Clone(slot.leaf ? MemoryTag::kGradient : MemoryTag::kActivation);
  }
  return {slot.grad, kernels::Write::kAccumulate};
}

Tensor GradSink::Accumulator(size_t input) {
  Target target = Buffer(input);
  if (target.write == kernels::Write::kOverwrite) {
    std::fill_n(target.grad.raw(), target.grad.bytes(), std::byte{0});
  }
  return target.grad;
}

void GradSink::Add(size_t input, const Tensor& grad) {
  GradSlot& slot = *inputs_[input];
  PERMAFROST_CHECK(grad.shape() == slot.shape)
      << "gradient " << ToString(grad.shape()) << " of a value " << ToString(slot.shape);
  if (!slot.grad && !slot.leaf) {
    slot.grad = grad;
    return;
  }
  AddInto(c_, grad, Accumulator(input));
}

void Tape::Backward(Context& c, size_t first) {
  while (nodes_.size() > first) {
    Node node = std::move(nodes_.back());
    nodes_.pop_back();
    Tensor dy = std::move(node.output->grad);
    node.output->grad = Tensor();
    if (dy) {  // otherwise nothing downstream read this value
      GradSink sink(c, node.inputs);
      node.backward(c, node.saved, dy, sink);
    }
    node.saved = Saved();
    // Copies that no remaining node keeps.
    std::erase_if(compressed_, [](const auto& entry) { return entry.second.unique(); });
  }
}

void Tape::Clear() {
  nodes_.clear();
  compressed_.clear();
}

int64_t Tape::saved_bytes() const {
  std::set<const std::byte*> seen;
  int64_t bytes = 0;
  for (const Node& node : nodes_) {
    for (const Tensor& t : node.saved.tensors()) {
      if (!t || t.tag() == MemoryTag::kWeight) continue;
      if (seen.insert(t.raw()).second) bytes += static_cast<int64_t>(t.bytes());
    }
  }
  return bytes;
}

Tensor Tape::Compressed(Context& c, const Tensor& t) {
  Tensor& copy = compressed_[{t.storage_id(), t.raw()}];
  if (copy && copy.shape() == t.shape()) return copy;
  copy = Tensor(t.shape(), MemoryTag::kActivation, DType::kBF16);
  kernels::cpu::ConvertToBF16({.x = t.f32(), .y = copy.bf16(), .count = t.count()}, c.parallel());
  return copy;
}

bool WillRecord(const Context& c, absl::Span<const Var* const> inputs) {
  return c.tape.mode == TapeMode::kRecord && AnyNeedsGrad(inputs);
}

Var RecordNode(Context& c, const char* name, absl::Span<const Var* const> inputs, Tensor y,
               Saved saved, BackwardFunction backward) {
  if (c.tape.mode == TapeMode::kOff || !AnyNeedsGrad(inputs)) return Var(std::move(y));
  auto slot = std::make_shared<GradSlot>();
  slot->shape = y.shape();
  if (c.tape.mode == TapeMode::kRecord) {
    Tape::Node node{name, {}, slot, std::move(saved), std::move(backward)};
    for (const Var* v : inputs) node.inputs.push_back(v->slot());
    c.tape.Push(std::move(node));
  }
  return Var(std::move(y), std::move(slot));
}

void Backward(Context& c, const Var& root, const Tensor& seed) {
  PERMAFROST_CHECK(root.needs_grad()) << "Backward: the root needs no gradient";
  PERMAFROST_CHECK(!c.tape.nodes().empty()) << "Backward: this graph has already been run";
  root.slot()->grad = seed;
  c.tape.Backward(c);
}

Var Checkpoint(Context& c, const Var& x, std::function<Var(Context&, const Var&)> f) {
  if (c.tape.mode != TapeMode::kRecord) return f(c, x);
  c.tape.mode = TapeMode::kPropagate;
  Var y = f(c, x);
  c.tape.mode = TapeMode::kRecord;
  if (!y.needs_grad()) return y;  // nothing trainable inside or below
  Saved saved;
  saved.KeepActivation(c, x.value());
  auto backward = [f = std::move(f)](Context& ctx, const Saved& s, const Tensor& dy, GradSink& g) {
    const size_t first = ctx.tape.nodes().size();
    const Tensor kept = s.Get(ctx, 0);
    std::shared_ptr<GradSlot> slot;
    if (g.Needs(0)) {
      slot = std::make_shared<GradSlot>();
      slot->shape = kept.shape();
    }
    const TapeMode mode = ctx.tape.mode;
    ctx.tape.mode = TapeMode::kRecord;
    Var again = f(ctx, Var(kept, slot));
    ctx.tape.mode = mode;
    again.slot()->grad = dy;
    ctx.tape.Backward(ctx, first);
    if (slot != nullptr && slot->grad) g.Add(0, slot->grad);
  };
  // y is a new Var of the outer graph; RecordNode sees only x, which may need no gradient itself.
  auto slot = std::make_shared<GradSlot>();
  slot->shape = y.shape();
  c.tape.Push({"Checkpoint", {x.slot()}, slot, std::move(saved), std::move(backward)});
  return Var(y.TakeValue(), std::move(slot));
}

}  // namespace permafrost
