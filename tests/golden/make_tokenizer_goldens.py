"""Makes tests/data/tokenizers and tests/golden/tokenizers: small tokenizers and the ids they give.

    python make_tokenizer_goldens.py --books FOLDER --t5 spiece.model

FOLDER holds public-domain books as Markdown (github.com/mlschmitt/classic-books-markdown); spiece.model
is T5's (Apache-2.0, google-research/prompt-tuning, prompt_tuning/test_data/t5_vocab). Every other
tokenizer is trained here on those books. Versions: requirements.txt.
"""

import argparse
import glob
import io
import json
import os
import random
import shutil
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors,
                        trainers)
from tokenizers import pre_tokenizers as pre
from transformers import AutoTokenizer, LlamaTokenizer, T5Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "..", "data", "tokenizers")
GOLDEN = os.path.join(HERE, "tokenizers")

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")

AWKWARD = [
    "", " ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\r\n\r\n a\r\n", "\n\n\n", " \n ", "\t\t", "a\tb",
    "a\u00a0b", "a\u0085b", "\u0085", "\x0b\x0c", "\x00", "a\x00b", "\x00\x00 x", "\x01\x02\x1f\x7f\x80\x9f",
    "Hello world.", "Hello  world", " Hello", "Hello ", "Hello  world's 12345!!\n\n  ok",
    "I'LL go\t\tnow   ", "I'm you're we've he'll she'd it's don't 'S 'RE", "'\u017f", "isn\u2019t",
    "<s>", "</s>", "<unk>", "<pad>", "a</s>b", "a </s> b", "<extra_id_0>", "a<extra_id_0>b",
    "<extra_id_5>, y", "<extra_id_99><extra_id_100>", " <extra_id_1> ", "<extra_id_01>", "a<extra_id_7 >",
    "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|im_start|>user\nhi<|im_end|>", "<|im_start",
    "<0x0A>", "<0x41>b", "<mask>", " <mask> ", "a<mask>b", "a \t<mask>\n b", "the worldly world, world",
    "\u2581", "\u2581\u2581a", "a\u2581b", " \u2581 ", "\u0120hello", "\u010a", "[SYM]", "a[SYM]b [SYM][SYM]",
    "\U0001f600", "\U0001f600\U0001f600 x", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd",
    "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", "\u2764\ufe0f", "a\u200db", "\u200b", "\ufeffa", "\ufffd",
    "e\u0301", "\u00e9", "a\u0308\u0301", "a\u0301\u0308b", "\u0301", "n\u0303o", "\u00c5\u212b", "\ufb01", "\ufb03x",
    "\uff46\uff55\uff4c\uff4c", "\u2460\u2461", "\u00bd", "x\u00bdy", "10\u00bd", "\u00b2\u00b3\u00b9", "\u2167",
    "\u0663\u0664\u0665", "\u0967\u0968\u0969", "12345678901234567890", "1,234.56", "3.14e-10", "\u180e", "a\u180eb",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u202eabc\u202c",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "\u4e2d\u6587\u6d4b\u8bd5\uff0c\u6807\u70b9\u3002", "\ud55c\uad6d\uc5b4",
    "\u1100\u1161\u11a8", "\u0e44\u0e17\u0e22", "\u0939\u093f\u0928\u094d\u0926\u0940", "Za\u017c\u00f3\u0142\u0107",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac", "\u0420\u0443\u0441\u0441\u043a\u0438\u0439", "\u00df\u1e9e",
    "a" * 100, "6" * 50, "66666666", "-------", "- - - - -------", " " * 30, " " * 31 + "x", "ab" * 50, "!!!!!!????",
    "....", "\u2014\u2013\u2013", "\u201cquotes\u201d \u2018single\u2019", "{ } < ~ \\ ^ `", "#$%&*()_+", "foo_bar.baz(x)[0]",
    "C++ & C#", "\"x\"", "\u2122", "\uff21\uff22\uff23 \u2122 caf\u00e9", "\U00010348", "\U0010ffff", "\xad", "\u2028\u2029",
    "\u3000a\u3000", "\u1680", "\u2060", "\u0600\uff41", "\r\u0301", "\n\u0301", " \u0301", "\U00010d40\U00010d41",
    "\u1c89\u1c8a", "\U0001d7d8", "\u0897", "\u24b6", "\u2126", "\U0001d15e", "\u0f73", "\u0344\u0958", "\u32ff\U000107b3",
]


def lines_of(books):
    lines = []
    for path in sorted(glob.glob(os.path.join(books, "*", "*.md"))):
        with open(path, encoding="utf-8") as file:
            lines += [line.strip() for line in file if len(line.strip()) > 20]
    return lines


def write(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=True, separators=(",", ":"), sort_keys=False)
        file.write("\n")


def save(tokenizer, name):
    """A compact tokenizer.json."""
    write(os.path.join(DATA, name, "tokenizer.json"), json.loads(tokenizer.to_str()))


def byte_level(corpus, steps, specials, size=600, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False))
    return tokenizer


def split(pattern):
    return [pre.Split(Regex(pattern), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]


def make_json_tokenizers(corpus):
    save(byte_level(corpus, [pre.ByteLevel(add_prefix_space=False)], ["<|endoftext|>"]), "gpt2")
    smollm = [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    save(byte_level(corpus, smollm, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), "smollm")
    tokenizer = byte_level(corpus, split(QWEN2), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()
    save(tokenizer, "qwen2")
    tokenizer = byte_level(corpus, split(LLAMA3), ["<|begin_of_text|>", "<|endoftext|>"], ignore_merges=True)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])])
    save(tokenizer, "llama3")
    # Parts that the published pipelines do not use, on a WordLevel model.
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKC(), normalizers.Replace(Regex("[.]{2,}"), "."), normalizers.Strip(left=False, right=True)])
    tokenizer.pre_tokenizer = pre.Sequence([
        pre.Whitespace(), pre.Punctuation("contiguous"), pre.Split("th", "merged_with_next"),
        pre.Split("e", "merged_with_previous")])
    tokenizer.train_from_iterator(corpus, trainers.WordLevelTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
    tokenizer.add_tokens([
        AddedToken("<mask>", lstrip=True, rstrip=True, special=True),
        AddedToken("world", single_word=True, normalized=True), AddedToken("\ufb03", normalized=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    save(tokenizer, "parts")


def make_models(corpus, t5):
    """SentencePiece files, and the tokenizer.json files that transformers makes of them."""
    os.makedirs(os.path.join(DATA, "t5"), exist_ok=True)
    shutil.copyfile(t5, os.path.join(DATA, "t5", "spiece.model"))
    os.chmod(os.path.join(DATA, "t5", "spiece.model"), 0o644)
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "rules.tsv"), "w", encoding="utf-8") as rules:
            pairs = [("\t", " "), ("\n", " "), ("\r", " "), ("\u00a0", " "), ("\u3000", " "), ("\ufb01", "fi"),
                     ("\ufb03", "ffi"), ("e\u0301", "\u00e9"), ("a\u0308", "\u00e4"), ("a\u0308\u0301", "\u01df"),
                     ("\u00bd", "1/2"), ("\u2122", "TM"), ("\u200b", ""), ("\x01", "")]
            pairs += [(chr(0xFF21 + i), chr(0x41 + i)) for i in range(26)]
            for source, target in pairs:
                rules.write(" ".join(f"{ord(c):X}" for c in source) + "\t"
                            + " ".join(f"{ord(c):X}" for c in target) + "\n")
        common = dict(sentence_iterator=None, vocab_size=600, character_coverage=0.999,
                      normalization_rule_tsv=os.path.join(folder, "rules.tsv"), minloglevel=2)
        for name, options in {
                "unigram": dict(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
                "unigram_symbols": dict(model_type="unigram", byte_fallback=True, vocab_size=800,
                                        remove_extra_whitespaces=False, user_defined_symbols="[SYM],the w"),
                "bpe": dict(model_type="bpe", byte_fallback=True, vocab_size=800,
                            normalization_rule_name="identity", normalization_rule_tsv=None,
                            remove_extra_whitespaces=False, user_defined_symbols="[SYM]")}.items():
            settings = {**common, **options, "sentence_iterator": iter(corpus)}
            settings = {k: v for k, v in settings.items() if v is not None}
            file = "spiece.model" if name == "unigram" else "tokenizer.model"
            os.makedirs(os.path.join(DATA, name), exist_ok=True)
            trained = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(model_writer=trained, **settings)
            proto = sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue())
            proto.normalizer_spec.ClearField("normalization_rule_tsv")  # the path of a temporary file
            with open(os.path.join(DATA, name, file), "wb") as out:
                out.write(proto.SerializeToString(deterministic=True))
    for name, source, kind, options in [("t5_json", "unigram", T5Tokenizer, {}),
                                        ("llama2_json", "bpe", LlamaTokenizer, {"add_bos_token": True})]:
        with tempfile.TemporaryDirectory() as folder:
            kind.from_pretrained(os.path.join(DATA, source), **options).save_pretrained(folder)
            for file in ["tokenizer.json", "tokenizer_config.json"]:
                with open(os.path.join(folder, file), encoding="utf-8") as text:
                    write(os.path.join(DATA, name, file), json.load(text))
    # The form that transformers 4 wrote for Llama 2.
    with open(os.path.join(DATA, "llama2_json", "tokenizer.json"), encoding="utf-8") as text:
        value = json.load(text)
    value["pre_tokenizer"] = None
    value["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
    write(os.path.join(DATA, "llama2_json_4x", "tokenizer.json"), value)


def decode_cases(size, seed):
    source = random.Random(seed)
    return [[source.randrange(size) for _ in range(source.randrange(12))] for _ in range(60)]


def golden(name, texts, encode, plain, decode, size):
    ids = decode_cases(size, 7)
    write(os.path.join(GOLDEN, name + ".json"), {
        "ids": [encode(t) for t in texts],
        "plain": plain,
        "decode": [{"ids": i, "text": decode(i, True), "all": decode(i, False)} for i in ids]})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--books", required=True)
    parser.add_argument("--t5", required=True)
    arguments = parser.parse_args()
    lines = lines_of(arguments.books)
    chooser = random.Random(3)
    corpus = chooser.sample(lines, 6000)
    texts = AWKWARD + [chooser.choice(["", " "]) + line[:160] for line in chooser.sample(lines, 120)]
    texts += ["".join(chooser.choice(AWKWARD[1:]) for _ in range(3))[:120] for _ in range(80)]
    make_json_tokenizers(corpus)
    make_models(corpus, arguments.t5)
    write(os.path.join(GOLDEN, "texts.json"), texts)
    for name in ["gpt2", "smollm", "qwen2", "llama3", "parts", "llama2_json_4x"]:
        t = Tokenizer.from_file(os.path.join(DATA, name, "tokenizer.json"))
        golden(name, texts, lambda x: t.encode(x).ids, None,
               lambda ids, skip: t.decode(ids, skip_special_tokens=skip), t.get_vocab_size())
    for name in ["t5_json", "llama2_json"]:
        t = AutoTokenizer.from_pretrained(os.path.join(DATA, name))
        golden(name, texts, lambda x: t.encode(x), None,
               lambda ids, skip: t.decode(ids, skip_special_tokens=skip), len(t))
    for name in ["t5", "unigram", "unigram_symbols", "bpe"]:
        file = "spiece.model" if name in ("t5", "unigram") else "tokenizer.model"
        s = sentencepiece.SentencePieceProcessor(model_file=os.path.join(DATA, name, file))
        extra = s.get_piece_size() if file == "spiece.model" else None

        def encode(text):
            """The library's ids, cut at T5's sentinels, which it does not know."""
            ids = []
            if extra is not None:
                for n in range(100):
                    text = text.replace(f"<extra_id_{n}>", f"\ue000{n}\ue001")
                for i, part in enumerate(text.replace("\ue001", "\ue000").split("\ue000")):
                    ids += s.encode(part) if i % 2 == 0 else [extra + 99 - int(part)]
                return ids + [s.eos_id()]
            return [s.bos_id()] + s.encode(text)

        golden(name, texts, encode, None, lambda ids, skip: s.decode(ids) if skip else None,
               s.get_piece_size())


if __name__ == "__main__":
    main()
