// The whole engine.
#ifndef PERMAFROST_ENGINE_ENGINE_H_
#define PERMAFROST_ENGINE_ENGINE_H_

#include "engine/autograd.h"
#include "engine/context.h"
#include "engine/memory.h"
#include "engine/ops.h"
#include "engine/optim/optimizer.h"
#include "engine/parameter.h"
#include "engine/random.h"
#include "engine/random_tensor.h"
#include "engine/rows.h"
#include "engine/tensor.h"
#include "engine/weight.h"

#endif  // PERMAFROST_ENGINE_ENGINE_H_
