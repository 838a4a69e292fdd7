#include "models/loader.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/check.h"
#include "kernels/elementwise.h"

namespace permafrost {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

std::string Listing(const char* title, const std::vector<std::string>& names) {
  constexpr size_t kShown = 12;
  if (names.empty()) return "";
  std::vector<std::string> shown(names.begin(),
                                 names.begin() + static_cast<long>(std::min(names.size(), kShown)));
  if (names.size() > kShown) shown.push_back(absl::StrCat("and ", names.size() - kShown, " more"));
  return absl::StrCat("; ", title, ": ", absl::StrJoin(shown, ", "));
}

}  // namespace

std::string Loader::FileName(const std::string& name) const {
  return std::string(absl::StripPrefix(name, missing_prefix_));
}

bool Loader::Expect(const std::string& name, const std::vector<int64_t>& shape) {
  const std::string file_name = FileName(name);
  const auto found = source_.ShapeOf(file_name);
  if (!found.has_value()) {
    missing_.push_back(file_name);
    return false;
  }
  used_.insert(file_name);
  if (!found->empty() && *found != shape) {
    misshaped_.push_back(absl::StrCat(file_name, " (expected ", ShapeText(shape), ", found ",
                                      ShapeText(*found), ")"));
    return false;
  }
  return true;
}

absl::Status Loader::ReadFinite(const std::string& name, int64_t first,
                                absl::Span<float> out) const {
  PERMAFROST_RETURN_IF_ERROR(source_.Read(FileName(name), first, out));
  if (!kernels::cpu::AllFinite(out.data(), static_cast<int64_t>(out.size()))) {
    return absl::InvalidArgumentError(
        absl::StrCat(source_.path(), ": tensor ", FileName(name), ": NaN or infinite values"));
  }
  return absl::OkStatus();
}

Tensor Loader::ReadAll(const std::string& name, Shape shape, MemoryTag tag) {
  Tensor t(shape, tag);
  const absl::Status status =
      ReadFinite(name, 0, absl::MakeSpan(t.f32(), static_cast<size_t>(t.count())));
  if (!status.ok()) broken_.push_back(std::string(status.message()));
  return t;
}

TensorId Loader::Matrix(const std::string& name, int64_t outputs, int64_t inputs, bool conv1d) {
  BaseTensor t{.name = name,
               .shape = conv1d ? std::vector<int64_t>{inputs, outputs}
                               : std::vector<int64_t>{outputs, inputs},
               .conv1d = conv1d,
               .weight = nullptr,
               .vector = {}};
  weights_.push_back(std::make_unique<Weight>());
  t.weight = weights_.back().get();
  if (Expect(name, t.shape)) {
    Tensor stored;  // a Conv1D weight is read whole, to be transposed
    if (conv1d) stored = ReadAll(name, {inputs, outputs}, MemoryTag::kWorkspace);
    const auto read = [&](int64_t first, int64_t rows, float* out) {
      if (conv1d) {
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t k = 0; k < inputs; ++k) out[r * inputs + k] = stored.row(k)[first + r];
        }
        return absl::OkStatus();
      }
      return ReadFinite(name, first * inputs,
                        absl::MakeSpan(out, static_cast<size_t>(rows * inputs)));
    };
    const DType format = c_.precision == Precision::kBF16 ? DType::kBF16 : DType::kF32;
    absl::StatusOr<Weight> packed = Weight::Pack(c_, outputs, inputs, format, read);
    if (packed.ok()) {
      *weights_.back() = *std::move(packed);
    } else {
      broken_.push_back(std::string(packed.status().message()));
    }
    source_.DropPages();
  }
  tensors_.push_back(std::move(t));
  return static_cast<TensorId>(tensors_.size()) - 1;
}

TensorId Loader::Table(const std::string& name, int64_t rows, int64_t columns) {
  BaseTensor t{
      .name = name, .shape = {rows, columns}, .conv1d = false, .weight = nullptr, .vector = {}};
  if (Expect(name, t.shape)) t.vector = ReadAll(name, {rows, columns}, MemoryTag::kWeight);
  tensors_.push_back(std::move(t));
  return static_cast<TensorId>(tensors_.size()) - 1;
}

TensorId Loader::Vector(const std::string& name, int64_t n) {
  BaseTensor t{.name = name, .shape = {n}, .conv1d = false, .weight = nullptr, .vector = {}};
  if (Expect(name, t.shape)) t.vector = ReadAll(name, {1, n}, MemoryTag::kWeight);
  tensors_.push_back(std::move(t));
  return static_cast<TensorId>(tensors_.size()) - 1;
}

int Loader::LinearAt(const SiteId& site, const std::string& module, int64_t outputs, int64_t inputs,
                     bool bias, bool conv1d) {
  LinearPlace place{.site = site,
                    .module = module,
                    .index = static_cast<int>(linears_.size()),
                    .inputs = inputs,
                    .outputs = outputs,
                    .conv1d = conv1d,
                    .weight = kNoTensor,
                    .bias = kNoTensor};
  place.weight = Matrix(absl::StrCat(module, ".weight"), outputs, inputs, conv1d);
  if (bias) place.bias = Vector(absl::StrCat(module, ".bias"), outputs);
  linears_.push_back(std::move(place));
  return linears_.back().index;
}

bool Loader::Same(const std::string& a, const std::string& b) const {
  const auto shape = source_.ShapeOf(FileName(a));
  if (shape != source_.ShapeOf(FileName(b)) || shape->size() != 2) return false;
  const size_t width = static_cast<size_t>((*shape)[1]);
  std::vector<float> row_a(width), row_b(width);
  for (int64_t r = 0; r < (*shape)[0]; ++r) {
    const int64_t first = r * (*shape)[1];
    if (!source_.Read(FileName(a), first, absl::MakeSpan(row_a)).ok() ||
        !source_.Read(FileName(b), first, absl::MakeSpan(row_b)).ok() || row_a != row_b) {
      return false;
    }
  }
  return true;
}

void Loader::IgnoreSuffix(const std::string& suffix) {
  for (const std::string& name : source_.names()) {
    if (absl::EndsWith(name, suffix)) used_.insert(name);
  }
}

absl::Status Loader::Finish() const {
  std::vector<std::string> unused;
  for (const std::string& name : source_.names()) {
    if (!used_.contains(name)) unused.push_back(name);
  }
  if (missing_.empty() && misshaped_.empty() && unused.empty()) {
    if (broken_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(broken_.front());
  }
  return absl::InvalidArgumentError(absl::StrCat(
      source_.path(), ": tensors do not match config.json", Listing("missing", missing_),
      Listing("wrong shape", misshaped_), Listing("unused", unused)));
}

}  // namespace permafrost
