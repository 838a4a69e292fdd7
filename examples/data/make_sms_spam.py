#!/usr/bin/env python3
"""Makes sms_spam/train.tsv and sms_spam/eval.tsv from the SMS Spam Collection.

    python3 make_sms_spam.py PATH/TO/SMSSpamCollection [OUTPUT_FOLDER]

The input is the original file of the collection: one message a line, `ham` or `spam`, a tab, the
text. The output folder defaults to sms_spam/ beside this script. The same input always gives the
same two files: the only randomness is a fixed linear congruential generator written out below.
"""

import hashlib
import pathlib
import sys

SOURCE_SHA256 = "55341228082b25b832a5868a5ab4b038142a57f70c676c123280af6ff457fe46"
LABELS = ("ham", "spam")
EVAL_PER_LABEL = 200
SEED = 1


class Lcg:
    """Knuth's 64-bit MMIX generator: the order must not depend on a Python version."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n


def shuffle(items, generator):
    for i in range(len(items) - 1, 0, -1):
        j = generator.below(i + 1)
        items[i], items[j] = items[j], items[i]


def duplicate_key(text):
    """Letters only: the same advertisement with another telephone number is a duplicate."""
    return "".join(c for c in text.lower() if c.isalpha()) or text


def read_messages(data):
    messages = []
    for number, line in enumerate(data.decode("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not tab or label not in LABELS:
            sys.exit(f"error: line {number}: expected ham or spam, a tab and a text")
        messages.append((label, text.rstrip("\r").replace("\r", " ").replace("\t", " ")))
    return messages


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    data = pathlib.Path(sys.argv[1]).read_bytes()
    if hashlib.sha256(data).hexdigest() != SOURCE_SHA256:
        print("warning: not the file that the bundled data was made from", file=sys.stderr)
    default_folder = pathlib.Path(__file__).resolve().parent / "sms_spam"
    folder = pathlib.Path(sys.argv[2]) if len(sys.argv) == 3 else default_folder
    folder.mkdir(parents=True, exist_ok=True)

    unique = {}
    messages = read_messages(data)
    for label, text in messages:
        unique.setdefault(duplicate_key(text), (label, text))
    by_label = {name: [m for m in unique.values() if m[0] == name] for name in LABELS}
    generator = Lcg(SEED)
    for name in LABELS:
        shuffle(by_label[name], generator)
    size = min(len(rows) for rows in by_label.values())
    evaluation = [m for name in LABELS for m in by_label[name][:EVAL_PER_LABEL]]
    training = [m for name in LABELS for m in by_label[name][EVAL_PER_LABEL:size]]

    counts = ", ".join(f"{len(by_label[name])} {name}" for name in LABELS)
    print(f"{len(messages)} messages, {len(unique)} unique ({counts})")
    for file_name, rows in (("train.tsv", training), ("eval.tsv", evaluation)):
        shuffle(rows, generator)
        content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for label, text in rows)
        (folder / file_name).write_bytes(content.encode("utf-8"))
        print(f"{file_name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
