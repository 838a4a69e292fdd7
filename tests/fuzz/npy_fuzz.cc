#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  permafrost::fuzz::Npy(data, size);
  return 0;
}
