// Debian builds Abseil with a string_view of its own; this converts the standard one at calls.

#ifndef PERMAFROST_IO_TOKENIZER_VIEW_H_
#define PERMAFROST_IO_TOKENIZER_VIEW_H_

#include <string_view>

#include "absl/strings/string_view.h"

namespace permafrost {

inline absl::string_view AbslView(std::string_view text) {
  return absl::string_view(text.data(), text.size());
}

}  // namespace permafrost

#endif  // PERMAFROST_IO_TOKENIZER_VIEW_H_
