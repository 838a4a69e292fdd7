// All of models: opening a base, batches, generation.
#ifndef PERMAFROST_MODELS_MODELS_H_
#define PERMAFROST_MODELS_MODELS_H_

#include "models/batch.h"
#include "models/generate.h"
#include "models/hooks.h"
#include "models/model.h"

#endif  // PERMAFROST_MODELS_MODELS_H_
