// Loads a base, attaches a soft prompt, trains it on own data, generates, saves: train_prompt BASE
// OUT
#include <cstdio>

#include "models/models.h"
#include "peft/peft.h"

using namespace permafrost;

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  Context context(/*threads=*/1);
  auto model = OpenModel(context, argv[1]);
  if (!model.ok()) return std::fprintf(stderr, "%s\n", model.status().ToString().c_str()), 1;

  Random random(/*seed=*/1);
  Adapter adapter =
      PromptAdapter(/*task=*/0, SampledVocabularyPrompt(context, **model, 8, 5000, random));

  // Own data: after "5 6", say "7 8".
  const std::vector<TokenLine> lines = {{{5, 6, 7, 8}, {-100, -100, 7, 8}, /*task=*/0}};
  TrainOptions options;
  options.out = argv[2];
  options.steps = 20;
  options.optimizer.learning_rate = 0.1;
  auto result = Train(context, **model, adapter, lines, nullptr, options, {});
  if (!result.ok()) return std::fprintf(stderr, "%s\n", result.status().ToString().c_str()), 1;

  auto ids = Generate(context, **model, *adapter.method, 0, {5, 6}, {.max_new_tokens = 2}, nullptr);
  std::printf("loss %.4f, then %d %d\n", result->last_loss, (*ids)[0], (*ids)[1]);
  return 0;
}
