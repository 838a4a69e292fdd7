// Strict loading: a model asks for every tensor by name and shape; at the end every missing, unused
// or mis-shaped one is reported in a single error. Values must be finite.
#ifndef PERMAFROST_MODELS_LOADER_H_
#define PERMAFROST_MODELS_LOADER_H_

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/context.h"
#include "models/model.h"
#include "models/weight_source.h"

namespace permafrost {

class Loader {
 public:
  // Fills the three lists of a model; `weights` owns the packed matrices that BaseTensor::weight
  // points to.
  Loader(Context& c, const WeightSource& source, std::vector<BaseTensor>& tensors,
         std::vector<LinearPlace>& linears, std::vector<std::unique_ptr<Weight>>& weights)
      : c_(c), source_(source), tensors_(tensors), linears_(linears), weights_(weights) {}

  // Names in the file are names here without this prefix (GPT-2 files without "transformer.").
  void set_missing_prefix(std::string prefix) { missing_prefix_ = std::move(prefix); }

  // W [outputs, inputs] (in the file [inputs, outputs] if conv1d).
  TensorId Matrix(const std::string& name, int64_t outputs, int64_t inputs, bool conv1d = false);
  // A vector [1, n].
  TensorId Vector(const std::string& name, int64_t n);
  // A small matrix kept as plain f32 [rows, columns].
  TensorId Table(const std::string& name, int64_t rows, int64_t columns);
  // A linear with its place; bias "module.bias" if `bias`. Returns its index.
  int LinearAt(const SiteId& site, const std::string& module, int64_t outputs, int64_t inputs,
               bool bias, bool conv1d = false);

  bool Has(const std::string& name) const { return source_.ShapeOf(FileName(name)).has_value(); }
  // Whether two tensors of the file hold the same values. Both must exist.
  bool Same(const std::string& a, const std::string& b) const;
  // Marks a tensor as known and not needed.
  void Ignore(const std::string& name) { used_.insert(FileName(name)); }
  void IgnoreSuffix(const std::string& suffix);

  // OK, or the error that lists everything.
  absl::Status Finish() const;

 private:
  std::string FileName(const std::string& name) const;
  // Whether the tensor exists with that shape; notes the problem if not.
  bool Expect(const std::string& name, const std::vector<int64_t>& shape);
  absl::Status ReadFinite(const std::string& name, int64_t first, absl::Span<float> out) const;
  Tensor ReadAll(const std::string& name, Shape shape, MemoryTag tag);

  Context& c_;
  const WeightSource& source_;
  std::vector<BaseTensor>& tensors_;
  std::vector<LinearPlace>& linears_;
  std::vector<std::unique_ptr<Weight>>& weights_;
  std::string missing_prefix_;
  std::set<std::string> used_;
  std::vector<std::string> missing_, misshaped_, broken_;
};

}  // namespace permafrost

#endif  // PERMAFROST_MODELS_LOADER_H_
