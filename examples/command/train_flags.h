// The flags of train, with what they leave open filled in by method and base.
#ifndef PERMAFROST_EXAMPLES_COMMAND_TRAIN_FLAGS_H_
#define PERMAFROST_EXAMPLES_COMMAND_TRAIN_FLAGS_H_

#include <string>

#include "mixture.h"
#include "peft/trainer.h"
#include "train_method.h"

namespace permafrost {

struct TrainFlags {
  BaseFlags base;
  DataFlags data;
  MethodFlags method;
  MixtureFlags mixture;
  std::string data_path, eval_path, out;
  int64_t steps = 0, epochs = 1, batch_size = 8, accumulate = 1, warmup = 0, seed = 0;
  int64_t checkpoint_every = 0, eval_every = 0, eval_batch_size = 16, log_every = 1, patience = 0;
  std::string optimizer, schedule, order = "shuffle", score = "sum";
  double lr = -1, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = -1, clip = 0;
  double z_loss = -1;
  std::string recompute = kDefaultRecompute;
  bool resume = false, quiet = false;
};
void AddTrainFlags(CLI::App* app, TrainFlags& flags);

// Usage errors that need no file.
absl::Status CheckTrainFlags(const TrainFlags& flags);

// Values that flags leave open, by method and model (peft-survey section 3).
void FillDefaults(TrainFlags& flags, const AdapterConfig& config, const ModelInfo& info);

// Everything that decides the run's result: what a resumed run must share.
nlohmann::json TrainSettings(const TrainFlags& flags, const Model& model,
                             const std::string& data_hash);

// The trainer's options but for the lines.
TrainOptions OptionsOf(const TrainFlags& flags, const AdapterConfig& config);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_TRAIN_FLAGS_H_
