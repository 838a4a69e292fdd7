// How published byte-level tokenizers split text into words, as regular expressions.
#ifndef PERMAFROST_IO_TOKENIZER_PATTERNS_H_
#define PERMAFROST_IO_TOKENIZER_PATTERNS_H_

namespace permafrost {

inline constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr char kQwen2Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

}  // namespace permafrost

#endif  // PERMAFROST_IO_TOKENIZER_PATTERNS_H_
