// All file formats.
#ifndef PERMAFROST_IO_IO_H_
#define PERMAFROST_IO_IO_H_

#include "io/examples.h"
#include "io/gguf.h"
#include "io/safetensors.h"
#include "io/table.h"
#include "io/tasks.h"
#include "io/tensor_store.h"
#include "io/tokenizer.h"

#endif  // PERMAFROST_IO_IO_H_
