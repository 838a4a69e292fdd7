#!/usr/bin/env python3
"""Compares a built permafrost with AdapterHub's `adapters` on fresh random adapters: reading its folders, gradients, and its reading ours.

    python compare_adapterhub.py PATH/TO/permafrost [--seed 1] [--count 6] [--only gpt2-1] [--verbose]

Needs ../golden/requirements-adapterhub.txt. Draws configs for the golden bases, lets the library compute logits and gradients line by line,
runs `permafrost forward --gradients` on the folder, writes the adapter with `convert --to-adapterhub` and lets the library load that.
Exit status 0: all within bounds and nothing refused that the library runs, but for what adapterhub_config.h names.
"""
import argparse
import json
import logging
import os
import random
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "golden")]

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import make_adapterhub_goldens as hub  # noqa: E402
import reference as ref  # noqa: E402
from adapters import BnConfig, ConfigUnion, IA3Config, LoRAConfig, PrefixTuningConfig  # noqa: E402
from compare import Command, Report  # noqa: E402
from worlds import GRADIENT, LOGITS, LOSS  # noqa: E402

BASES = ("t5-v1_0-2", "t5-v1_1-1", "gpt2-1", "llama-square", "mistral-1", "qwen2-1")
NO_PREFIX = ("mistral-1", "qwen2-1")
# The random values may make a base amplify rounding: no statement about agreement then.
ILL_CONDITIONED = 5e-6
ACTIVATIONS = ("relu", "gelu", "gelu_new", "swish", "silu", "tanh", "leakyrelu")


def leave_out(rng, layers):
    return sorted(rng.sample(range(layers), rng.choice([0, 0, 1]))) if layers > 2 else []


def draw_bottleneck(rng, layers, base):
    factor = rng.choice([6.0, 9, 14, {"1": 8.0, "default": 11.5}])
    after = base == "qwen2-1" or rng.random() < 0.8
    gated, norm_after = rng.random() < 0.3, rng.random() < 0.25
    parallel = rng.random() < 0.3
    scaling = rng.choice([1.0, 0.5, 4.0, "learned", "channel"])
    if norm_after and (gated or scaling == "learned") and parallel:
        norm_after = False  # the norm hides a factor of its input: its gradient is rounding noise
    return BnConfig(mh_adapter=rng.random() < 0.5, output_adapter=True, cross_adapter=rng.random() < 0.5, reduction_factor=factor,
                    non_linearity=rng.choice(ACTIVATIONS), original_ln_before=rng.random() < 0.5, original_ln_after=after,
                    ln_before=rng.random() < 0.25, ln_after=norm_after, residual_before_ln=rng.random() < 0.7,
                    adapter_residual_before_ln=rng.random() < 0.3, is_parallel=parallel, scaling=scaling, use_gating=gated,
                    leave_out=leave_out(rng, layers))


def draw_prefix(rng, layers, base):
    # In T5 a left-out layer changes the position bias of the others (it is handed on from layer to layer).
    left = [] if base.startswith("t5") else leave_out(rng, layers)
    return PrefixTuningConfig(flat=rng.random() < 0.5, prefix_length=rng.randint(1, 6), bottleneck_size=rng.randint(2, 6),
                              encoder_prefix=rng.random() < 0.7, cross_prefix=rng.random() < 0.7, use_gating=rng.random() < 0.4,
                              shared_gating=rng.random() < 0.6, non_linearity=rng.choice(("tanh", "relu")), leave_out=left)


def draw_lora(rng, layers, base):
    matrices = rng.sample(["q", "k", "v"], rng.randint(1, 3))
    return LoRAConfig(r=rng.randint(1, 4), alpha=rng.randint(1, 9), attn_matrices=matrices, intermediate_lora=rng.random() < 0.4,
                      output_lora=rng.random() < 0.4, use_gating=rng.random() < 0.35, leave_out=leave_out(rng, layers))


def draw(rng, layers, base):
    kinds = ["bottleneck", "lora", "ia3", "union"] + ([] if base in NO_PREFIX else ["prefix"])
    kind = rng.choice(kinds)
    if kind == "ia3":
        return kind, IA3Config(intermediate_lora=rng.random() < 0.7, output_lora=rng.random() < 0.3, leave_out=leave_out(rng, layers))
    if kind == "union":
        parts = [draw_bottleneck, draw_lora] + ([] if base in NO_PREFIX else [draw_prefix])
        return kind, ConfigUnion(*[part(rng, layers, base) for part in rng.sample(parts, rng.randint(2, len(parts)))])
    return kind, {"bottleneck": draw_bottleneck, "prefix": draw_prefix, "lora": draw_lora}[kind](rng, layers, base)


def make_lines(base, generator):
    """Lines long enough for far buckets, some labels hidden."""
    lines = []
    for length, target in ((3, 2), (41, 23), (17, 9)):
        ids = torch.randint(3, base.config.vocab_size, (length,), generator=generator).tolist()
        labels = list(ids)
        if base.config.is_encoder_decoder:
            labels = torch.randint(3, base.config.vocab_size, (target,), generator=generator).tolist()
        for i in range(len(labels) // 3):
            labels[i] = -100
        lines.append({"input_ids": ids, "labels": labels})
    return lines


def compare(command, report, base, folder, name, config, seed, scratch, kind):
    where = f"{os.path.basename(folder)} {name}"
    if report.verbose:
        print(f"{where}: {json.dumps(config.to_dict())}", flush=True)
    model = hub.attach(base, name, config, seed)
    adapter, data = os.path.join(scratch, "hub"), os.path.join(scratch, "data.jsonl")
    hub.save(model, name, adapter)
    lines = make_lines(base, torch.Generator().manual_seed(seed))
    ref.write_jsonl(data, lines)
    logits, losses, _, _ = ref.forward_file(model, lines)
    spread = hub.worst(zip(logits, ref.forward_file(ref.copy.deepcopy(model).double(), lines)[0]))
    if spread > ILL_CONDITIONED:
        print(f"  left out: {where}: f32 and f64 differ by {spread:.2g} in the library itself", flush=True)
        return
    parameters = hub.parameters_of(model, name)
    grads = ref.gradients(model, parameters, lines)
    out, found_grads = os.path.join(scratch, "out.safetensors"), os.path.join(scratch, "grads.safetensors")
    try:
        command.run("forward", "--base", folder, "--adapter", adapter, "--data", data, "--out", out, "--gradients", found_grads)
    except RuntimeError as error:
        report.fail(where, str(error))
        return
    found = load_file(out)
    for i, rows in enumerate(logits):
        report.add(f"{kind}: logits", where, (found[f"logits.{i}"] - rows).abs().max() / rows.abs().max(), LOGITS)
        report.add(f"{kind}: loss", where, abs(found[f"loss.{i}"].item() - losses[i]) / abs(losses[i]), LOSS)
    found_grads = load_file(found_grads)
    if set(found_grads) != set(grads):
        report.fail(where, f"gradients of {sorted(set(found_grads) ^ set(grads))[:4]}")
        return
    largest = max(g.norm().item() for g in grads.values())
    for key, want in grads.items():
        if want.norm() > 1e-4 * largest:
            report.add(f"{kind}: gradients", f"{where} {key}", ref.relative_norm(found_grads[key], want), GRADIENT)
    back = os.path.join(scratch, "back")
    try:
        command.run("convert", "--base", folder, "--adapter", adapter, "--to-adapterhub", back, "--adapter-name", name)
    except RuntimeError as error:
        report.fail(where, str(error))
        return
    again = ref.forward_file(hub.load(base, name, back), lines)[0]
    for rows, want in zip(again, logits):
        report.add(f"{kind}: written, read by adapters", where, (rows - want).abs().max() / want.abs().max(), 1e-5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=6, help="adapters of each base")
    parser.add_argument("--only", help="one base, such as gpt2-1")
    parser.add_argument("--any-version", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    hub.require_versions(args.any_version)
    ref.set_up()
    logging.getLogger("adapters").setLevel(logging.ERROR)
    report, command = Report(args.verbose), Command(args.binary, 1)
    for name in BASES:
        if args.only not in (None, name):
            continue
        folder = os.path.join(hub.HERE, "models", name)
        if not os.path.isdir(folder):
            folder = os.path.join(hub.HERE, "adapterhub", name)
        base = hub.load_base(folder)
        config = base.config
        layers = config.num_layers + config.num_decoder_layers if config.is_encoder_decoder else config.num_hidden_layers
        rng = random.Random(f"{args.seed} {name}")
        for i in range(args.count):
            kind, drawn = draw(rng, layers, name)
            with tempfile.TemporaryDirectory() as scratch:
                compare(command, report, base, folder, f"{kind}_{i}", drawn, 1000 * args.seed + i, scratch, kind)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
