// All of PEFT: methods, adapter files, training, evaluation.
#ifndef PERMAFROST_PEFT_PEFT_H_
#define PERMAFROST_PEFT_PEFT_H_

#include "peft/adapter_file.h"
#include "peft/adapterhub.h"
#include "peft/combine.h"
#include "peft/evaluate.h"
#include "peft/extract_lora.h"
#include "peft/ia3.h"
#include "peft/linear_algebra.h"
#include "peft/lora.h"
#include "peft/method.h"
#include "peft/metrics.h"
#include "peft/mixture.h"
#include "peft/multitask_prompt.h"
#include "peft/neighbors.h"
#include "peft/objectives.h"
#include "peft/p_tuning.h"
#include "peft/prompt_init.h"
#include "peft/prompt_tuning.h"
#include "peft/shots.h"
#include "peft/trainer.h"

#endif  // PERMAFROST_PEFT_PEFT_H_
