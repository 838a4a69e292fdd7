#!/usr/bin/env python3
"""Makes prompts/: virtual tokens among the text's own (a reference of its own, in torch), and multitask prompt tuning by PEFT (see
README.md).

    python make_prompt_goldens.py [--out DIR] [--any-version]
"""
import argparse
import json
import os
import sys

import torch
import torch.nn.functional as F
from peft import MultitaskPromptTuningConfig, get_peft_model
from safetensors.torch import save_file

import reference as ref

HERE = os.path.dirname(os.path.abspath(__file__))
NEW_TOKENS = 8
LAST_ROWS = 3  # of a line's logits: they have read all before them
ANCHORED = ("llama-1", "gpt2-1", "t5-v1_1-1")
# The seq2seq default of 2 submodules, and 1.
MULTITASK = {"llama-1": 1, "gpt2-1": 1, "t5-v1_1-1": 2, "t5-v1_0-1": 1}


def open_case(name):
    folder = os.path.join(HERE, "models", name)
    base = ref.load_base(folder)
    lines = [line for line in ref.read_jsonl(os.path.join(folder, "data.jsonl")) if len(line["input_ids"]) <= 40]
    lines = [{"input_ids": line["input_ids"], "labels": line["labels"]} for line in lines]
    return base, [line for line in lines if any(x != -100 for x in line["labels"][1:])][:3]


def run_embedded(base, embedded, labels):
    """(logits, summed loss, labelled tokens) of one line of embedded rows; decoder: row i predicts labels[i + 1]."""
    targets = torch.tensor(labels)
    if base.config.is_encoder_decoder:
        logits = base(inputs_embeds=embedded[None], labels=targets[None], use_cache=False).logits[0]
        rows = logits
    else:
        logits = base(inputs_embeds=embedded[None], use_cache=False).logits[0]
        rows, targets = logits[:-1], targets[1:]
    return logits, F.cross_entropy(rows, targets, ignore_index=-100, reduction="sum"), int((targets != -100).sum())


def generate_embedded(base, embedded):
    """Greedy new ids behind one line of embedded rows."""
    with torch.no_grad():
        ids = base.generate(inputs_embeds=embedded[None], attention_mask=torch.ones(1, len(embedded), dtype=torch.long), do_sample=False,
                            num_beams=1, max_new_tokens=NEW_TOKENS)[0].tolist()
    return ids[1:] if base.config.is_encoder_decoder else ids


def collect(base, lines, embed, parameters):
    """Last logits and loss of every line, the gradients of the mean loss, and what greedy search writes."""
    tensors, total, count = {}, 0.0, 0
    for i, line in enumerate(lines):
        logits, loss, n = run_embedded(base, embed(line), line["labels"])
        tensors[f"logits.{i}"], tensors[f"loss.{i}"] = logits[-LAST_ROWS:].detach(), (loss / n).detach().reshape(1)
        total, count = total + loss, count + n
        line["generated"] = generate_embedded(base, embed(line).detach())
    (total / count).backward()
    tensors.update({"grad." + n: p.grad for n, p in parameters.items()})
    return tensors


def write(out, name, tensors, lines):
    save_file({n: t.detach().float().contiguous() for n, t in tensors.items()}, os.path.join(out, name + ".safetensors"))
    os.chmod(os.path.join(out, name + ".safetensors"), 0o644)
    with open(os.path.join(out, name + ".jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)
    print(name, flush=True)


def make_anchored(name, out):
    """Five virtual tokens (-1 among the ids) in front, within and at the end: the i-th is row i of the table."""
    base, lines = open_case(name)
    embeddings = base.get_input_embeddings()
    table = torch.nn.Parameter(0.3 * torch.randn(5, embeddings.weight.shape[1], generator=torch.Generator().manual_seed(3)))
    for i, line in enumerate(lines):
        for place in sorted(((0, 0, 1, 2, 3), (0, 1, 1, 2, 2), (1, 1, 2, 3, 3))[i], reverse=True):
            line["input_ids"].insert(place, -1)
            if not base.config.is_encoder_decoder:
                line["labels"].insert(place, -100)

    def embed(line):
        ids = torch.tensor(line["input_ids"])
        rows = iter(table)
        return torch.stack([next(rows) if i < 0 else embeddings.weight[i] for i in ids])

    tensors = collect(base, lines, embed, {"prompt_embeddings": table})
    write(out, "anchored-" + name, tensors | {"prompt_embeddings": table}, lines)


def make_multitask(name, submodules, out):
    """PEFT's adapter of three tasks; its own prompt, in front of the text (T5: of the encoder's)."""
    base, lines = open_case(name)
    config = MultitaskPromptTuningConfig(task_type=ref.task_type(base), num_virtual_tokens=4, num_tasks=3, num_ranks=2,
                                         num_transformer_submodules=submodules)
    model = get_peft_model(ref.copy.deepcopy(base), config).eval()
    config.base_model_name_or_path = "base"
    encoder = model.prompt_encoder["default"]
    parameters = {"prompt_embeddings": encoder.embedding.weight, "prefix_task_cols": encoder.prefix_task_cols,
                  "prefix_task_rows": encoder.prefix_task_rows}
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in parameters.values():
            p.copy_(0.7 * torch.randn(p.shape, generator=generator))
    ref.save_adapter(model, os.path.join(out, "multitask-" + name))
    os.chmod(os.path.join(out, "multitask-" + name, "adapter_model.safetensors"), 0o644)
    embeddings = base.get_input_embeddings()
    for i, line in enumerate(lines):
        line["task_id"] = (2, 0, 2)[i]

    def embed(line):
        prompt = model.get_prompt(1, torch.tensor([line["task_id"]]))[0, :4]
        return torch.cat((prompt, embeddings.weight[torch.tensor(line["input_ids"])]))

    tensors, total, count = {}, 0.0, 0
    for i, line in enumerate(lines):
        causal = not base.config.is_encoder_decoder
        labels = [-100] * 4 * causal + line["labels"]
        logits, loss, n = run_embedded(base, embed(line), labels)
        tensors[f"logits.{i}"], tensors[f"loss.{i}"] = logits[-LAST_ROWS:].detach(), (loss / n).detach().reshape(1)
        total, count = total + loss, count + n
        line["generated"] = generate_embedded(base, embed(line).detach())
        check_against_peft(model, line, submodules, loss / n)
    (total / count).backward()
    tensors.update({"grad." + n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in parameters.items()})
    write(out, "multitask-" + name, tensors, lines)


def check_against_peft(model, line, submodules, loss):
    """PEFT's own loss (where it has the encoder's half alone) and its own greedy tokens are those of this script."""
    ids, task = torch.tensor([line["input_ids"]]), torch.tensor([line["task_id"]])
    seq2seq = model.config.is_encoder_decoder
    with torch.no_grad():
        theirs = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), task_ids=task, do_sample=False, num_beams=1,
                                max_new_tokens=NEW_TOKENS)[0].tolist()
        new = theirs[1:] if seq2seq else theirs[ids.shape[1]:] if theirs[:ids.shape[1]] == line["input_ids"] else theirs
        if new != line["generated"]:
            raise RuntimeError(f"PEFT generates {new}, this script {line['generated']}")
        if submodules > 1:
            return
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([line["labels"]]), task_ids=task)
    if abs(out.loss.item() - loss.item()) > 1e-5 * abs(loss.item()):
        raise RuntimeError(f"PEFT's loss is {out.loss.item()}, this script's {loss.item()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(HERE, "prompts"))
    parser.add_argument("--any-version", action="store_true", help="run with other versions than the pinned ones")
    args = parser.parse_args()
    ref.require_versions(args.any_version)
    ref.set_up()
    os.makedirs(args.out, exist_ok=True)
    for name in ANCHORED:
        make_anchored(name, args.out)
    for name, submodules in MULTITASK.items():
        make_multitask(name, submodules, args.out)


if __name__ == "__main__":
    sys.exit(main())
