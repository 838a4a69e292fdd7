"""Tokenizers for the random models: small ones are trained on the spot, in the file formats of real models."""
import json
import os

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import reference as ref

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
WORDS = ("the frozen ground keeps its shape while a thin layer on top thaws and moves every prompt is short but reads like a sentence of "
         "seven words or more don't we'll they've I'M naïve café Straße über ångström привет мир γειά σου 你好 世界 नमस्ते שלום 123 2024 3.14 "
         "x86_64 C++ http://example.org/a?b=c&d #tag @name (brackets) [square] {curly} \"quotes\" 'single' semi;colon — dash … dots").split()
AWKWARD = ["", " ", "   ", "a", " a", "a ", "  two  spaces  ", "tab\tand\nnewline\r\nmixed\n\n  end", "don't I'LL we've", "1234567890 12 3",
           "naïve café e\u0301 \u00e9", "ﬁ ligature ﬀ ½ ² ™ Ａｗｉｄｅ", "🙂 👩‍👩‍👧‍👦 🇩🇪 \u200d\ufe0f", "中文字符，日本語テキスト。한국어", "שלום مرحبا",
           "\u2581already\u2581marked", "\u00a0nbsp\u3000ideographic\u2009thin", "under_score-hyphen.dot,comma;!?", "<b>html</b> &amp; </s> <s> <unk>",
           "x" * 200, "aaaa bbbb " * 20, "\ufeffbom", "\u0000nul\u0001\u007f", "zero\u200bwidth", "A\u030a\u0323 stacked", "\t\t\tindent", "end\n"]


def sentence(rng, low=2, high=9):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def random_texts(rng, count):
    """Awkward strings, sentences, and strings of random code points (no surrogates)."""
    found = list(AWKWARD)
    while len(found) < count:
        if rng.random() < 0.5:
            found.append(sentence(rng, 1, 20))
        else:
            ranges = [(0x20, 0x7e), (0xa0, 0x17f), (0x300, 0x36f), (0x400, 0x45f), (0x2000, 0x206f), (0x4e00, 0x4fff), (0x1f300, 0x1f6ff)]
            found.append("".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 30))))
    return found


def make_tokenizer(shape, folder, rng):
    """Writes the tokenizer of `shape` to `folder`; its number of ids. llama: tokenizer.model; T5: spiece.model; mistral: tokenizer.json
    in SmolLM2's form; qwen2 and gpt2: theirs."""
    corpus = [sentence(rng, 3, 25) for _ in range(2000)]
    if shape == "llama" or ref.is_t5(shape):
        prefix = os.path.join(folder, "tokenizer" if shape == "llama" else "spiece")
        text = os.path.join(folder, "corpus.txt")
        with open(text, "w", encoding="utf-8") as f:
            f.write("\n".join(corpus))
        settings = dict(input=text, model_prefix=prefix, minloglevel=2, hard_vocab_limit=False, num_threads=1)
        if shape == "llama":
            sentencepiece.SentencePieceTrainer.train(model_type="bpe", vocab_size=420, byte_fallback=True, normalization_rule_name="identity",
                                                     remove_extra_whitespaces=False, character_coverage=0.99, unk_id=0, bos_id=1, eos_id=2,
                                                     pad_id=-1, **settings)
        else:
            sentencepiece.SentencePieceTrainer.train(model_type="unigram", vocab_size=280, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, **settings)
        os.remove(text)
        os.remove(prefix + ".vocab")
        size = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model").vocab_size()
        return size + (100 if ref.is_t5(shape) else 0)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if shape == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(tokenizers.Regex(QWEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    elif shape == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    return tokenizer.get_vocab_size()


class Reference:
    """The reference ids of a folder: the tokenizers or the sentencepiece library."""

    def __init__(self, folder):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
            self.t5 = json.load(f)["model_type"] == "t5"
        self.fast = self.pieces = None
        for name in ("tokenizer.model", "spiece.model"):
            if os.path.exists(os.path.join(folder, name)):
                self.pieces = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, name))
        if self.pieces is None:
            self.fast = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))

    def encode(self, text, plain=False):
        if self.fast:
            return self.fast.encode(text, add_special_tokens=not plain).ids
        ids = self.pieces.encode(text)
        if plain:
            return ids
        return ids + [1] if self.t5 else [1] + ids

    def decode(self, ids):
        if self.fast:
            return self.fast.decode(ids, skip_special_tokens=False)
        return self.pieces.decode([i for i in ids if i < self.pieces.vocab_size()])
