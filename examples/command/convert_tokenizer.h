// The vocabulary of a GGUF file as a Hugging Face tokenizer.json and tokenizer_config.json.
//
// A gpt2 vocabulary maps one to one. A llama vocabulary, which merges by score, becomes merges in
// order of score; as in every published Llama tokenizer.json the text of a control token such as
// </s> then stands for that token.
//
// Non-goals: llama vocabularies with unused pieces, chat templates.
#ifndef PERMAFROST_EXAMPLES_COMMAND_CONVERT_TOKENIZER_H_
#define PERMAFROST_EXAMPLES_COMMAND_CONVERT_TOKENIZER_H_

#include <string>

#include "absl/status/statusor.h"
#include "io/tokenizer.h"

namespace permafrost {

struct TokenizerFiles {
  std::string tokenizer_json, tokenizer_config_json;
};
// Errors: those of TokenizerFromGguf; unused pieces.
absl::StatusOr<TokenizerFiles> TokenizerFilesOf(const GgufVocabulary& vocabulary);

}  // namespace permafrost

#endif  // PERMAFROST_EXAMPLES_COMMAND_CONVERT_TOKENIZER_H_
