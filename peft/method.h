// A PEFT method: hooks that act at the model's places, and the trainable tensors behind them. A
// method acts on rows of its own task only. Method names are strings in adapter_config.cc and in
// the command only.
#ifndef PERMAFROST_PEFT_METHOD_H_
#define PERMAFROST_PEFT_METHOD_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/parameter.h"
#include "io/safetensors.h"
#include "models/model.h"

namespace permafrost {

// A tensor of an adapter file.
struct FileTensor {
  std::string name;
  std::vector<int64_t> shape;
  Tensor value;
};

// A tensor of another library's file: parts of parameters one after another, each read row by row.
struct FilePart {
  size_t parameter;  // into Method::parameters()
  int64_t row = 0, column = 0, rows = 0, columns = 0;
};
struct FileLayout {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<FilePart> parts;
};

// The mean of a gate over its task's rows since it was last asked.
struct GateMean {
  std::string name;
  double mean = 0;
};

class Method : public Hooks {
 public:
  explicit Method(int task) : task_(task) {}
  int task() const { return task_; }
  ParameterList& parameters() { return parameters_; }
  const ParameterList& parameters() const { return parameters_; }

  // Shapes of the adapter file's tensors where they differ from [rows, columns].
  virtual std::vector<int64_t> FileShape(const Parameter& p) const {
    return {p.value().rows(), p.value().columns()};
  }

  // What the adapter file holds: the parameters, or what is made of them.
  virtual std::vector<FileTensor> FileTensors() const;

  // The text that lines are made of, its virtual tokens as {v*N} among columns and words; empty:
  // virtual tokens, if there are any, stand in front.
  virtual std::string InputTemplate() const { return ""; }
  // How many prompts a line can choose from (TokenLine::prompt).
  virtual int64_t Prompts() const { return 1; }

  // The tensors of the file that the parameters came from, if those are not the parameters
  // themselves (adapterhub.h): gradients go by their names.
  const std::vector<FileLayout>& source() const { return source_; }
  void set_source(std::vector<FileLayout> source) { source_ = std::move(source); }

  // Means of the method's gates since they were last taken, over the rows of its task outside of
  // training.
  virtual std::vector<GateMean> TakeGateMeans() { return {}; }

  // Whether it replaces tensors of the base that all rows of a batch share.
  virtual bool needs_batch_alone() const { return false; }

  // What dropout and other random parts of the next forward passes in training come from.
  virtual void SetRandom(uint64_t seed, uint32_t step) {
    seed_ = seed;
    step_ = step;
  }

  // Whether the file may hold `t` beside the parameters: a copy of a base tensor.
  virtual bool IsCopyOfBase(const TensorView& /*t*/) const { return false; }

  // Whether a base can hold the adapter in its own tensors.
  virtual bool mergeable() const { return false; }
  // Puts the adapter into `values`, the base's f32 tensors by TensorId in the shapes of the engine
  // (linears [outputs, inputs]).
  virtual void MergeInto(const Model&, std::vector<Tensor>& /*values*/) const {}

 protected:
  // The spans of `spans` that belong to this method.
  std::vector<TaskSpan> Own(absl::Span<const TaskSpan> spans) const;

  DropoutMask MaskOf(uint32_t place) const { return {seed_, step_, place}; }

  int task_;
  uint64_t seed_ = 0;
  uint32_t step_ = 0;
  ParameterList parameters_;

 private:
  std::vector<FileLayout> source_;
};

// Several methods side by side, each on its own task: the hooks of a batch that mixes adapters.
class AdapterSet : public Hooks {
 public:
  void Add(std::string name, std::shared_ptr<Method> method);
  // The task number of an adapter name; "" is the only adapter, or the bare base if there are
  // several or none. Error: an unknown name (lists what is loaded).
  absl::StatusOr<int> TaskOf(const std::string& name) const;
  Method* method(size_t i) const { return methods_[i].get(); }
  // The method of a task, or null.
  const Method* MethodOf(int task) const;
  size_t size() const { return methods_.size(); }

  int64_t VirtualTokens(int task) const override;
  int64_t AnchoredTokens(int task) const override;
  int64_t FirstPosition(int task) const override;
  int64_t BiasShift(int task, Stack stack) const override;
  bool ReadsAllRows() const override;
  bool ReadsFuture(int task) const override;
  const Var* Replacement(TensorId tensor, int task) const override;
  const Var* TiedHeadReplacement(TensorId embedding, int task) const override;
  Var OnEmbedding(Context& c, Stack stack, const Batch& batch, Var x) override;
  void OnAttention(Context& c, const SiteId& site, const Var& x, const PlaceRows& rows,
                   std::vector<Prefix>& prefixes) override;
  Var OnLinearInput(Context& c, const LinearPlace& place, Var x, const PlaceRows& rows) override;
  Var OnLinear(Context& c, const LinearPlace& place, const Var& x, Var y,
               const PlaceRows& rows) override;
  Var OnSublayerOutput(Context& c, const SiteId& site, const Var& x_in, Var y,
                       const PlaceRows& rows) override;

 private:
  std::vector<std::string> names_;
  std::vector<std::shared_ptr<Method>> methods_;
};

}  // namespace permafrost

#endif  // PERMAFROST_PEFT_METHOD_H_
