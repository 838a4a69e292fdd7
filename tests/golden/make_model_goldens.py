#!/usr/bin/env python3
"""Makes models/<shape>-<seed>/: tiny random models, inputs, and what transformers and PEFT compute on them (see README.md).

    python make_model_goldens.py [--only llama-1] [--out DIR] [--any-version]
"""
import argparse
import json
import os
import shutil
import sys
import tempfile

import torch
from safetensors.torch import save_file

import reference as ref

STEPS, BATCH, MAX_NEW, BEAMS = 10, 4, 12, 4
LR = {"prompt": 1e-2, "lora": 1e-3, "ia3": 3e-3}
DECODER_LENGTHS = [1, 9, 139, 5, 33, 2, 17]
ENCODER_LENGTHS = [1, 9, 151, 5, 33, 2, 17]
TARGET_LENGTHS = [3, 1, 7, 135, 2, 4, 5]
UNLABELLED_LINE = 5
DECODER_LOGITS = [0, 1, 2, 6]
T5_LOGITS = [0, 1, 2, 3]

# Awkward on purpose: odd sizes, inner width != width, grouped heads, other bases, buckets and epsilons than the defaults.
SIZES = {
    ("t5-v1_0", 1): dict(vocab=131, d=30, head=7, heads=6, ff=37, layers=3, decoder_layers=2, buckets=32, distance=128, eps=1e-6),
    ("t5-v1_0", 2): dict(vocab=97, d=25, head=8, heads=3, ff=41, layers=2, decoder_layers=3, buckets=18, distance=50, eps=1e-5),
    ("t5-v1_1", 1): dict(vocab=131, d=28, head=6, heads=6, ff=39, layers=3, decoder_layers=2, buckets=32, distance=128, eps=1e-6),
    ("t5-v1_1", 2): dict(vocab=101, d=27, head=5, heads=4, ff=37, layers=1, decoder_layers=3, buckets=12, distance=40, eps=1e-6),
    ("llama", 1): dict(vocab=131, d=30, head=8, heads=6, kv=2, ff=37, layers=3, theta=5000.0, positions=192, tied=False, eps=1e-5),
    ("llama", 2): dict(vocab=97, d=33, head=10, heads=3, kv=1, ff=43, layers=3, theta=123456.0, positions=256, tied=True, eps=1e-6),
    ("mistral", 1): dict(vocab=127, d=36, head=6, heads=4, kv=2, ff=41, layers=3, theta=20000.0, positions=192, tied=False, window=None,
                         eps=1e-5),
    ("mistral", 2): dict(vocab=99, d=24, head=12, heads=6, kv=3, ff=37, layers=2, theta=10000.0, positions=256, tied=False,
                         window=4096, eps=1e-6),
    ("qwen2", 1): dict(vocab=131, d=36, head=6, heads=6, kv=2, ff=37, layers=3, theta=30000.0, positions=192, tied=True, eps=1e-6),
    ("qwen2", 2): dict(vocab=97, d=40, head=8, heads=5, kv=5, ff=45, layers=2, theta=1000000.0, positions=256, tied=False, eps=1e-5),
    ("gpt2", 1): dict(vocab=131, d=30, head=6, heads=5, ff=37, layers=3, positions=160, eps=1e-5),
    ("gpt2", 2): dict(vocab=97, d=27, head=9, heads=3, ff=None, layers=2, positions=153, eps=1e-6),
}
VIRTUAL_TOKENS = {1: 5, 2: 7}
LORA = {1: dict(r=4, lora_alpha=6), 2: dict(r=3, lora_alpha=10)}


def make_lines(shape, vocab, generator):
    def draw(n, low=3):
        return torch.randint(low, vocab, (n,), generator=generator).tolist()

    def hide(labels, fraction):
        drop = torch.rand(len(labels), generator=generator) < fraction
        return [-100 if d else x for x, d in zip(labels, drop)]

    lines = []
    for i in range(len(DECODER_LENGTHS)):
        if ref.is_t5(shape):
            ids = draw(ENCODER_LENGTHS[i] - 1) + [1]
            labels = draw(TARGET_LENGTHS[i] - 1) + [1]
        else:
            ids = draw(DECODER_LENGTHS[i])
            labels = draw(len(ids)) if i == 4 else list(ids)  # line 4: labels that are not the input
        if i == UNLABELLED_LINE:
            labels = [-100] * len(labels)
        elif i in (2, 3, 4):
            labels = hide(labels, 0.4)
        elif i == 6:
            labels[:len(labels) // 2] = [-100] * (len(labels) // 2)
        lines.append({"input_ids": ids, "labels": labels})
    return lines


def generation_prompts(models, shape, vocab, generator):
    """Two prompts with varied outputs that no rounding error changes: f32, f64 and slightly moved weights agree on all of them."""
    modes = [(kind, name, beams) for kind in models for name, beams in (("greedy", 1), ("beam", BEAMS))]
    candidates = []
    for attempt in range(24):
        ids = torch.randint(3, vocab, (3 + attempt % 9,), generator=generator).tolist()
        if ref.is_t5(shape):
            ids[-1] = 1
        outputs = {(kind, name): ref.generate(models[kind], ids, MAX_NEW, beams) for kind, name, beams in modes}
        ended = sum(len(o) < MAX_NEW for o in outputs.values())
        distinct = len({tuple(o) for o in outputs.values()})
        candidates.append((3 * min(ended, 3) + 2 * distinct + sum(len(set(o)) for o in outputs.values()) / 6, ids, outputs))
    candidates.sort(key=lambda c: -c[0])

    variants = {kind: [ref.copy.deepcopy(model).double()] for kind, model in models.items()}
    for kind, model in models.items():
        for _ in range(2):
            moved = ref.copy.deepcopy(model)
            with torch.no_grad():
                for p in moved.parameters():
                    p.mul_(1 + 3e-5 * torch.randn(p.shape, generator=generator))
            variants[kind].append(moved)
    chosen, results = [], {kind: {"greedy": [], "beam": []} for kind in models}
    for _, ids, outputs in candidates:
        if any(ref.generate(m, ids, MAX_NEW, beams) != outputs[kind, name] for kind, name, beams in modes for m in variants[kind]):
            continue
        chosen.append(ids)
        for (kind, name), o in outputs.items():
            results[kind][name].append(o)
        if len(chosen) == 2:
            return chosen, results
    raise RuntimeError(f"{shape}: no two prompts with stable output")


def check_attention(base, lines):
    """Mean top attention weight of a 33-token line: neither uniform (1/33) nor one-hot."""
    ids = torch.tensor([lines[4]["input_ids"]])
    with torch.no_grad():
        if base.config.is_encoder_decoder:
            attentions = base.get_encoder()(input_ids=ids, output_attentions=True).attentions
        else:
            attentions = base(input_ids=ids, output_attentions=True).attentions
    top = torch.stack([a.max(-1).values.mean() for a in attentions]).mean().item()
    if not 0.12 < top < 0.95:
        raise RuntimeError(f"attention is near uniform or one-hot: mean top weight {top}")
    return round(top, 3)


def make_case(shape, seed, root):
    name = f"{shape}-{seed}"
    folder = os.path.join(root, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    z = SIZES[shape, seed]
    ref.make_base(shape, z, 1000 * seed + ref.SHAPES.index(shape), folder)
    base = ref.load_base(folder)
    generator = torch.Generator().manual_seed(77 * seed + ref.SHAPES.index(shape))
    lines = make_lines(shape, z["vocab"], generator)
    ref.write_jsonl(os.path.join(folder, "data.jsonl"), lines)

    targets = None if seed == 1 else ref.BROAD_TARGETS[shape]
    configs = {"prompt": ref.prompt_config(base, VIRTUAL_TOKENS[seed]),
               "lora": ref.lora_config(base, target_modules=targets, **LORA[seed]),
               "ia3": ref.ia3_config(base, target_modules=targets,
                                     feedforward_modules=None if seed == 1 else ref.BROAD_FEEDFORWARD[shape])}
    models = {"none": base}
    for kind, config in configs.items():
        models[kind] = ref.attach(base, config, 31 * seed + len(kind))
        adapter = os.path.join(folder, "adapters", kind)
        ref.save_adapter(models[kind], adapter)
        again = ref.forward_file(ref.load_adapter(base, adapter), lines)[1]
        if again != ref.forward_file(models[kind], lines)[1]:
            raise RuntimeError(f"{name}: the saved {kind} adapter is not the one in memory")

    logit_lines = T5_LOGITS if ref.is_t5(shape) else DECODER_LOGITS
    out, training, spread = {}, {}, {}
    for kind, model in models.items():
        logits, losses, total, tokens = ref.forward_file(model, lines)
        precise = ref.forward_file(ref.copy.deepcopy(model).double(), lines)
        for i in logit_lines:
            out[f"{kind}.logits.{i}"] = logits[i].contiguous().clone()
        for i, loss in enumerate(losses):
            out[f"{kind}.loss.{i}"] = torch.tensor([loss])
        spread[kind] = {
            "logits": max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(logits, precise[0])),
            "loss": max(abs(a - b) / abs(b) for a, b in zip(losses, precise[1]) if b)}
        if kind == "none":
            continue
        parameters = ref.adapter_parameters(model)
        in_f64 = ref.copy.deepcopy(model).double()
        parameters_f64 = ref.adapter_parameters(in_f64)
        before = {n: p.detach().clone() for n, p in parameters.items()}
        grads = ref.gradients(model, parameters, lines)
        grads_f64 = ref.gradients(in_f64, parameters_f64, lines)
        records = ref.train(model, parameters, lines, STEPS, BATCH, LR[kind])
        ref.train(in_f64, parameters_f64, lines, STEPS, BATCH, LR[kind])
        for n, p in parameters.items():
            out[f"{kind}.grad.{n}"] = grads[n]
            out[f"{kind}.adamw10.{n}"] = p.detach().clone()
        spread[kind]["grad"] = max(ref.relative_norm(grads[n], grads_f64[n]) for n in grads)
        spread[kind]["adamw10"] = max(
            ref.relative_norm(p.detach(), parameters_f64[n].detach(), p.detach() - before[n]) for n, p in parameters.items())
        if spread[kind]["logits"] > 1e-5 or spread[kind]["grad"] > 5e-5 or spread[kind]["adamw10"] > 2e-4:
            raise RuntimeError(f"{name} {kind}: ill-conditioned, f32 and f64 differ: {spread[kind]}")
        training[kind] = {"lr": LR[kind], "mean_loss_of_file": total / tokens, "labelled_tokens": tokens, "steps": records}
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(before[n])

    prompts, generated = generation_prompts(models, shape, z["vocab"], generator)
    save_file({k: v.float().contiguous() for k, v in out.items()}, os.path.join(folder, "expected.safetensors"))
    case = {
        "shape": shape, "seed": seed, "versions": ref.versions(), "kinds": list(models), "logit_lines": logit_lines,
        "lines": len(lines), "mean_top_attention": check_attention(base, lines), "f32_against_f64": spread,
        "adamw": {"steps": STEPS, "batch_size": BATCH, "order": "file", "schedule": "constant", "warmup": 0,
                  "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01, "clip": 1.0, **training},
        "generate": {"max_new_tokens": MAX_NEW, "beams": BEAMS, "eos_token_id": base.config.eos_token_id, "length_penalty": 1.0,
                     "prompts": prompts, **generated},
    }
    with open(os.path.join(folder, "case.json"), "w", encoding="utf-8") as f:
        json.dump(case, f, indent=1)
        f.write("\n")
    size = sum(os.path.getsize(os.path.join(d, x)) for d, _, files in os.walk(folder) for x in files)
    ended = sum(len(o) < MAX_NEW for k in models for g in ("greedy", "beam") for o in generated[k][g])
    print(f"{name}: {size / 1024:.0f} KiB, attention {case['mean_top_attention']}, ended early {ended}, {json.dumps(spread)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "models"))
    parser.add_argument("--only", help="one case, such as llama-1")
    parser.add_argument("--any-version", action="store_true", help="run with other versions than the pinned ones")
    args = parser.parse_args()
    ref.require_versions(args.any_version)
    ref.set_up()
    os.makedirs(args.out, exist_ok=True)
    # A case is made beside its place and moved in when whole.
    with tempfile.TemporaryDirectory(dir=args.out) as scratch:
        for shape, seed in SIZES:
            name = f"{shape}-{seed}"
            if args.only in (None, name):
                make_case(shape, seed, scratch)
                shutil.rmtree(os.path.join(args.out, name), ignore_errors=True)
                shutil.move(os.path.join(scratch, name), os.path.join(args.out, name))


if __name__ == "__main__":
    sys.exit(main())
