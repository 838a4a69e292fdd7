#!/usr/bin/env python3
"""Makes sst2/train.tsv and sst2/dev.tsv from the SST-2 files of GLUE.

    python3 make_sst2.py TRAIN.tsv DEV.tsv [OUTPUT_FOLDER]

TRAIN.tsv is GLUE's training file or a part of it, DEV.tsv its development file of 872 sentences;
both have the columns sentence and label. The output folder defaults to sst2/ beside this script.
The same input always gives the same two files.
"""

import hashlib
import pathlib
import sys

TRAIN_SENTENCES = 4000
MIN_WORDS = 6  # most lines of the training file are fragments of a few words; the dev file has none


def read(path):
    lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
    if lines[0] != "sentence\tlabel":
        sys.exit(f"error: {path}:1: expected the columns sentence and label, found {lines[0]!r}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        sentence, tab, label = line.rpartition("\t")
        if not tab or label not in ("0", "1"):
            sys.exit(f"error: {path}:{number}: expected a sentence, a tab and 0 or 1")
        rows.append((sentence.strip(), label))
    return rows


def write(path, rows):
    path.write_text("sentence\tlabel\n" + "".join(f"{s}\t{l}\n" for s, l in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} rows, {sum(l == '1' for _, l in rows)} positive")


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    train, dev = read(sys.argv[1]), read(sys.argv[2])
    folder = pathlib.Path(sys.argv[3]) if len(sys.argv) == 4 else pathlib.Path(__file__).parent / "sst2"
    held_out = {s for s, _ in dev}
    unique = {s: l for s, l in train if len(s.split()) >= MIN_WORDS and s not in held_out}
    # The order of a hash: a sample that depends on no generator and no Python version.
    order = sorted(unique, key=lambda s: hashlib.sha256(s.encode()).hexdigest())
    chosen = order[:TRAIN_SENTENCES]
    folder.mkdir(exist_ok=True)
    write(folder / "train.tsv", [(s, unique[s]) for s in chosen])
    write(folder / "dev.tsv", dev)


if __name__ == "__main__":
    main()
