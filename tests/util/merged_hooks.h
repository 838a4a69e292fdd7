// A base with an adapter merged in: every base tensor is replaced by the merged one.
#ifndef PERMAFROST_TESTS_UTIL_MERGED_HOOKS_H_
#define PERMAFROST_TESTS_UTIL_MERGED_HOOKS_H_

#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "peft/method.h"

namespace permafrost {

class Merged : public Hooks {
 public:
  Merged(Context& c, const Model& model, const Method& method) {
    std::vector<Tensor> values;
    for (const BaseTensor& t : model.tensors()) {
      values.push_back(t.weight != nullptr ? t.weight->ToF32(c) : t.vector.Clone());
    }
    EXPECT_TRUE(method.mergeable());
    method.MergeInto(model, values);
    for (Tensor& value : values) vars_.emplace_back(std::move(value));
  }
  const Tensor& value(TensorId tensor) const { return vars_[static_cast<size_t>(tensor)].value(); }
  const Var* Replacement(TensorId tensor, int) const override {
    return &vars_[static_cast<size_t>(tensor)];
  }

 private:
  std::vector<Var> vars_;
};

}  // namespace permafrost

#endif  // PERMAFROST_TESTS_UTIL_MERGED_HOOKS_H_
