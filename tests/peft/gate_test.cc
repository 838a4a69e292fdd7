// What a gate of UniPELT may depend on: the rows of its own text up to its own, and nothing else.
#include <map>

#include "tests/util/golden_forward.h"
#include "tests/util/golden_world.h"

namespace permafrost {
namespace {

class GateTest : public testing::TestWithParam<std::string> {
 protected:
  GateTest() : w_(OpenGoldenWorld(GetParam())) {}

  bool t5() const { return w_.model->info().encoder_decoder; }
  Adapter Union(GateConfig::Kind kind, int task = 0) {
    UniPeltConfig config = UnionNamed("unipelt", w_.model->info().model_type);
    for (PartConfig& part : config.parts) {
      if (auto* prefix = std::get_if<PrefixTuningConfig>(&part)) prefix->gate.kind = kind;
      if (auto* lora = std::get_if<LoraConfig>(&part)) lora->gate.kind = kind;
      if (auto* adapter = std::get_if<BottleneckConfig>(&part)) adapter->gate.kind = kind;
    }
    Adapter adapter = FreshAdapter(config, task, *w_.context, *w_.model);
    MoveParameters(*adapter.method, 0.3);
    return adapter;
  }
  std::vector<float> Logits(Hooks& hooks, absl::Span<const TokenLine> lines) {
    return RunForward(*w_.context, *w_.model, hooks, lines, Outputs::kAll).logits;
  }
  // Gates' means over the rows of `lines`, by gate.
  std::map<std::string, double> Means(Hooks& hooks, Method& method,
                                      absl::Span<const TokenLine> lines) {
    Logits(hooks, lines);
    std::map<std::string, double> means;
    for (const GateMean& gate : method.TakeGateMeans()) means[gate.name] = gate.mean;
    return means;
  }
  // How many rows of `line` a gate sees: LoRAs on cross attention's keys and values and the
  // encoder's gates read encoder rows.
  double RowsOf(const std::string& gate, const TokenLine& line) const {
    const auto has = [&](const char* part) { return gate.find(part) != std::string::npos; };
    const bool encoder = t5() && (has("encoder.") || has("encoder_prefix") ||
                                  has("EncDecAttention.k") || has("EncDecAttention.v"));
    return static_cast<double>(t5() && !encoder ? line.labels.size() : line.input_ids.size());
  }

  GoldenWorld w_;
};

// The last row's token is another. A gate over the whole text would tell earlier rows.
TEST_P(GateTest, ALastTokenChangesNoEarlierRow) {
  for (const GateConfig::Kind kind : {GateConfig::Kind::kRunning, GateConfig::Kind::kWhole}) {
    const Adapter adapter = Union(kind);
    int checked = 0;
    for (const TokenLine& line : w_.lines) {
      TokenLine other = line;
      // T5's decoder reads its labels one row later.
      std::vector<int32_t>& ids = t5() ? other.labels : other.input_ids;
      if (ids.size() < 3) continue;
      int32_t& last = t5() ? ids[ids.size() - 2] : ids.back();
      last = last == 5 ? 6 : 5;
      const std::vector<float> a = Logits(*adapter.method, {&line, 1});
      const std::vector<float> b = Logits(*adapter.method, {&other, 1});
      ASSERT_EQ(a.size(), b.size());
      const auto earlier = static_cast<std::ptrdiff_t>(a.size() / ids.size() * (ids.size() - 1));
      EXPECT_FALSE(std::equal(a.begin() + earlier, a.end(), b.begin() + earlier));
      EXPECT_EQ(std::equal(a.begin(), a.begin() + earlier, b.begin()),
                kind == GateConfig::Kind::kRunning);
      ++checked;
    }
    EXPECT_GE(checked, 3);
  }
}

TEST_P(GateTest, OtherLinesOfTheBatchChangeNoGate) {
  const Adapter adapter = Union(GateConfig::Kind::kRunning);
  const std::vector<float> together = Logits(*adapter.method, w_.lines);
  std::vector<float> alone;
  adapter.method->TakeGateMeans();
  std::map<std::string, double> sums, rows;
  for (const TokenLine& line : w_.lines) {
    const std::vector<float> logits = Logits(*adapter.method, {&line, 1});
    alone.insert(alone.end(), logits.begin(), logits.end());
    for (const GateMean& gate : adapter.method->TakeGateMeans()) {
      sums[gate.name] += gate.mean * RowsOf(gate.name, line);
      rows[gate.name] += RowsOf(gate.name, line);
    }
  }
  EXPECT_LE(RelativeMaxDifference(together, alone), kLogitBound);
  const std::map<std::string, double> means = Means(*adapter.method, *adapter.method, w_.lines);
  ASSERT_EQ(means.size(), sums.size());
  for (const auto& [gate, mean] : means) EXPECT_NEAR(mean, sums[gate] / rows[gate], 1e-6) << gate;
}

// Lines of another union and of the bare base stand between those of the first one.
TEST_P(GateTest, LinesOfOtherTasksChangeNoGate) {
  const Adapter first = Union(GateConfig::Kind::kRunning),
                second = Union(GateConfig::Kind::kRunning, 1);
  AdapterSet set;
  set.Add("first", first.method);
  set.Add("second", second.method);
  std::vector<TokenLine> mixed;
  for (size_t i = 0; i < w_.lines.size(); ++i) {
    mixed.push_back(w_.lines[(i + 1) % w_.lines.size()]);
    mixed.back().task = i % 2 == 0 ? 1 : kNoTask;
    mixed.push_back(w_.lines[i]);
  }
  const std::map<std::string, double> alone = Means(*first.method, *first.method, w_.lines);
  const std::map<std::string, double> together = Means(set, *first.method, mixed);
  ASSERT_EQ(together.size(), alone.size());
  EXPECT_GT(alone.size(), 0u);
  for (const auto& [gate, mean] : together) EXPECT_NEAR(mean, alone.at(gate), 1e-6) << gate;
}

INSTANTIATE_TEST_SUITE_P(Models, GateTest, testing::ValuesIn(GoldenModelNames()), TestName);

}  // namespace
}  // namespace permafrost
