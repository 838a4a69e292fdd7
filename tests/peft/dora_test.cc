// DoRA on one linear with dropout: output and gradients against the equations in f64, with the norm
// held constant. What it computes without dropout is compared with PEFT in golden_variant_test.
#include "peft/dora.h"

#include <unistd.h>

#include <filesystem>
#include <functional>

#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

double Element(const Tensor& t, int64_t i, int64_t j) { return static_cast<double>(t.row(i)[j]); }

// Everything below is a plain [rows, columns] matrix in f64.
struct Matrix {
  Matrix(int64_t r, int64_t c) : rows(r), columns(c), values(static_cast<size_t>(r * c)) {}
  explicit Matrix(const Tensor& t) : Matrix(t.rows(), t.columns()) {
    for (int64_t i = 0; i < t.count(); ++i) values[static_cast<size_t>(i)] = t.f32()[i];
  }
  double& at(int64_t i, int64_t j) { return values[static_cast<size_t>(i * columns + j)]; }
  double at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * columns + j)]; }

  int64_t rows, columns;
  std::vector<double> values;
};

Matrix Product(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.columns);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t k = 0; k < a.columns; ++k) {
      for (int64_t j = 0; j < b.columns; ++j) c.at(i, j) += a.at(i, k) * b.at(k, j);
    }
  }
  return c;
}
Matrix Transposed(const Matrix& a) {
  Matrix t(a.columns, a.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.columns; ++j) t.at(j, i) = a.at(i, j);
  }
  return t;
}

void ExpectClose(const Tensor& actual, const Matrix& expected, const char* what) {
  ASSERT_EQ(actual.rows(), expected.rows) << what;
  ASSERT_EQ(actual.columns(), expected.columns) << what;
  double largest = 0;
  for (const double v : expected.values) largest = std::max(largest, std::abs(v));
  ASSERT_GT(largest, 0) << what;
  for (int64_t i = 0; i < actual.rows(); ++i) {
    for (int64_t j = 0; j < actual.columns(); ++j) {
      EXPECT_NEAR(Element(actual, i, j), expected.at(i, j), 1e-5 * largest)
          << what << " " << i << ", " << j;
    }
  }
}

class DoraTest : public testing::TestWithParam<const char*> {};

TEST_P(DoraTest, WithDropoutIsTheEquation) {
  GoldenWorld w = OpenGoldenWorld(GetParam());
  Context& c = *w.context;
  const LinearPlace& place = w.model->linears()[0];
  auto dora = DoraPlace::Create(c, *w.model, place);
  ASSERT_TRUE(dora.ok()) << dora.status();
  const Weight& weight = *w.model->tensors()[static_cast<size_t>(place.weight)].weight;

  Random random(2);
  constexpr int64_t kRows = 7, kRank = 3;
  const std::vector<TaskSpan> spans = {{0, 3, 0}, {5, 7, 0}};
  const LowRank options{.scale = 0.7f, .dropout = 0.4f, .mask = {.seed = 3, .step = 4, .place = 5}};
  ParameterList p;
  p.Add("x", NormalTensor({kRows, place.inputs}, 1, random));
  p.Add("y", NormalTensor({kRows, place.outputs}, 1, random));
  p.Add("a", NormalTensor({kRank, place.inputs}, 0.3, random));
  p.Add("b", NormalTensor({place.outputs, kRank}, 0.3, random));
  p.Add("m", UniformTensor({1, place.outputs}, 1, random));
  const Tensor dy = NormalTensor({kRows, place.outputs}, 1, random);
  c.training = true;
  // The mask counts the rows of the spans.
  Tensor ones({5, place.inputs});
  std::fill_n(ones.f32(), ones.count(), 1.0f);
  const Matrix packed(Dropout(c, ones, options.dropout, options.mask).value());
  Matrix mask(kRows, place.inputs);
  int64_t packed_row = 0;
  for (const TaskSpan& span : spans) {
    for (int64_t i = span.begin; i < span.end; ++i, ++packed_row) {
      for (int64_t k = 0; k < place.inputs; ++k) mask.at(i, k) = packed.at(packed_row, k);
    }
  }

  c.tape.mode = TapeMode::kRecord;
  // y goes through an op of its own, so that it is no leaf.
  const Var out = dora->Apply(c, p[0].var(), Scale(c, p[1].var(), 1), p[2].var(), p[3].var(),
                              p[4].var(), nullptr, options, spans);
  const Tensor value = out.value().Clone();
  Backward(c, out, dy.Clone());
  c.tape.mode = TapeMode::kOff;

  const Matrix base(weight.ToF32(c)), a(p[2].value()), b(p[3].value());
  Matrix d(p[0].value());
  for (size_t i = 0; i < d.values.size(); ++i) d.values[i] *= mask.values[i];
  const double s = static_cast<double>(options.scale);
  const Matrix ba = Product(b, a);
  Matrix changed = base;
  for (size_t i = 0; i < ba.values.size(); ++i) changed.values[i] += s * ba.values[i];
  const Matrix z = Product(d, Transposed(changed)), wd = Product(d, Transposed(base));

  Matrix expected(p[1].value()), dz(kRows, place.outputs), dp(kRows, place.outputs);
  Matrix dm(1, place.outputs);
  for (const TaskSpan& span : spans) {
    for (int64_t i = span.begin; i < span.end; ++i) {
      for (int64_t n = 0; n < place.outputs; ++n) {
        double square = 0;
        for (int64_t k = 0; k < place.inputs; ++k) square += std::pow(changed.at(n, k), 2);
        const double norm = std::sqrt(square), g = Element(p[4].value(), 0, n) / norm;
        expected.at(i, n) += g * z.at(i, n) - wd.at(i, n);
        dz.at(i, n) = g * Element(dy, i, n);
        dp.at(i, n) = -Element(dy, i, n);
        dm.at(0, n) += Element(dy, i, n) * z.at(i, n) / norm;
      }
    }
  }
  ExpectClose(value, expected, "output");
  for (const int64_t i : {3, 4}) {  // rows of others keep their bits
    for (int64_t n = 0; n < place.outputs; ++n) EXPECT_EQ(value.row(i)[n], p[1].value().row(i)[n]);
  }
  ExpectClose(p[4].gradient(), dm, "magnitude");
  ExpectClose(p[1].gradient(), Matrix(dy), "y");
  Matrix db = Product(Transposed(dz), Product(d, Transposed(a)));
  Matrix da = Product(Transposed(Product(dz, b)), d);
  for (double& v : db.values) v *= s;
  for (double& v : da.values) v *= s;
  ExpectClose(p[3].gradient(), db, "B");
  ExpectClose(p[2].gradient(), da, "A");
  Matrix dx = Product(dz, changed);
  const Matrix through_base = Product(dp, base);
  for (size_t i = 0; i < dx.values.size(); ++i) {
    dx.values[i] = (dx.values[i] + through_base.values[i]) * mask.values[i];
  }
  ExpectClose(p[0].gradient(), dx, "x");
}

INSTANTIATE_TEST_SUITE_P(Models, DoraTest, testing::Values("llama-1", "gpt2-1", "t5-v1_1-1"));

// The tensors of a safetensors file in f32, changed by `change` and written to `to`.
void Rewrite(const std::string& from, const std::string& to,
             const std::function<void(std::string& name, std::vector<float>& values)>& change) {
  const auto file = SafetensorsFile::Open(from);
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<std::string> names;
  std::vector<std::vector<float>> values;
  for (const TensorView& t : file->tensors()) {
    names.push_back(t.name);
    values.emplace_back(static_cast<size_t>(t.num_elements()));
    ASSERT_TRUE(ReadAsF32(t, 0, absl::MakeSpan(values.back())).ok());
    change(names.back(), values.back());
  }
  std::vector<TensorView> views;
  for (size_t i = 0; i < names.size(); ++i) {
    views.push_back(F32View(names[i], file->tensors()[i].shape, values[i]));
  }
  ASSERT_TRUE(WriteSafetensors(to, views).ok());
}

class DoraFiles : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    std::filesystem::copy(PERMAFROST_GOLDEN "/models/llama-1", folder_ + "/base",
                          std::filesystem::copy_options::recursive);
    std::filesystem::copy(adapter_, folder_ + "/adapter");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Context c_;
  const std::string folder_ = absl::StrCat(testing::TempDir(), "/dora_files_", getpid()),
                    adapter_ = PERMAFROST_GOLDEN "/adapters/dora/llama-1";
};

// A row of zeros has no direction: PEFT would divide zero by zero.
TEST_F(DoraFiles, ARowOfZerosIsRefused) {
  const std::string module = "model.layers.1.mlp.up_proj";
  Rewrite(PERMAFROST_GOLDEN "/models/llama-1/model.safetensors",
          folder_ + "/base/model.safetensors", [&](std::string& name, std::vector<float>& values) {
            if (name == module + ".weight") std::fill_n(values.begin() + 2 * 30, 30, 0.0f);
          });
  const auto model = OpenModel(c_, folder_ + "/base");
  ASSERT_TRUE(model.ok()) << model.status();
  const auto adapter = LoadAdapter(folder_ + "/adapter", 0, c_, **model);
  ASSERT_FALSE(adapter.ok());
  const std::string message(adapter.status().message());
  EXPECT_NE(message.find(module), std::string::npos) << message;
  EXPECT_NE(message.find("output 2"), std::string::npos) << message;
}

TEST_F(DoraFiles, OlderNamesOfTheMagnitude) {
  Rewrite(adapter_ + "/adapter_model.safetensors", folder_ + "/adapter/adapter_model.safetensors",
          [](std::string& name, std::vector<float>&) {
            if (name.ends_with("magnitude_vector")) name += ".weight";
          });
  const auto model = OpenModel(c_, folder_ + "/base");
  ASSERT_TRUE(model.ok()) << model.status();
  const auto old = LoadAdapter(folder_ + "/adapter", 0, c_, **model);
  const auto now = LoadAdapter(adapter_, 0, c_, **model);
  ASSERT_TRUE(old.ok()) << old.status();
  ASSERT_TRUE(now.ok()) << now.status();
  for (size_t i = 0; i < now->method->parameters().size(); ++i) {
    const Tensor &a = old->method->parameters()[i].value(),
                 &b = now->method->parameters()[i].value();
    EXPECT_TRUE(std::equal(a.values().begin(), a.values().end(), b.values().begin()));
  }
}

// Merged weights have the trained magnitudes as their rows' norms.
TEST(Dora, MergedRowsHaveTheirMagnitudes) {
  Random random(1);
  const Tensor w = NormalTensor({4, 6}, 1, random);
  const Tensor m = Tensor::From({1, 4}, {1, 2, 0.25f, 3});
  MergeMagnitude(m, w);
  for (int64_t n = 0; n < 4; ++n) {
    double square = 0;
    for (int64_t k = 0; k < 6; ++k) square += Element(w, n, k) * Element(w, n, k);
    EXPECT_NEAR(std::sqrt(square), m.f32()[n], 1e-6 * m.f32()[n]);
  }
}

}  // namespace
}  // namespace permafrost
