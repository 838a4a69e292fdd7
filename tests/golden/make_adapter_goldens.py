#!/usr/bin/env python3
"""Makes adapters/<kind>/<world>/: further adapters on the bases and lines of models/<world>, and what PEFT computes with them (see README.md).

    python make_adapter_goldens.py [--kinds dora,adalora] [--out DIR] [--any-version]

`prefix`, `norm` and `dora` are made on every world, the other kinds on three of them.
"""
import argparse
import json
import math
import os
import shutil
import sys

import torch
from peft import AdaLoraConfig
from safetensors.torch import save_file

import reference as ref
from make_model_goldens import BATCH, SIZES, STEPS

HERE = os.path.dirname(os.path.abspath(__file__))
WORLDS = ("t5-v1_0-1", "llama-1", "gpt2-1")
LOGIT_LINES = [0, 1, 2]
DECODER_LOGIT_LINES = [0, 1, 3]
LR = 1e-3

EMBEDDING = {"t5": "embed_tokens", "llama": "embed_tokens", "gpt2": "wte"}
NORM = {"t5": "final_layer_norm", "llama": "norm", "gpt2": "ln_f"}


def family(shape):
    return "t5" if ref.is_t5(shape) else shape


def adalora_config(base, **settings):
    # The penalty on A and B is part of PEFT's training loss, not of what the adapter computes.
    return AdaLoraConfig(task_type=ref.task_type(base), base_model_name_or_path="base", total_step=100, orth_reg_weight=1e-12, **settings)


def lora_configs(base, shape):
    """{kind: config} of LoRA and what PEFT builds on it. Two targets keep the files small."""
    kind = family(shape)
    few, broad = ref.DEFAULT_TARGETS[shape], ref.BROAD_TARGETS[shape]
    some = [few[0], broad[-1]]

    def lora(**settings):
        return ref.lora_config(base, **{"r": 2, "lora_alpha": 3, "target_modules": some, **settings})

    return {
        "bias-all": lora(bias="all"),
        "bias-lora_only": lora(bias="lora_only"),
        "lora_bias": lora(lora_bias=True),
        "embedding": lora(r=3, target_modules=[few[0], EMBEDDING[kind]]),
        "modules_to_save": lora(target_modules=[few[0]], modules_to_save=["lm_head", NORM[kind]]),
        "patterns": lora(target_modules=broad, use_rslora=True, exclude_modules=[few[-1]] if len(few) > 1 else None,
                         rank_pattern={broad[0]: 1, broad[-1]: 3}, alpha_pattern={broad[-1]: 7}),
        "dora-patterns": lora(target_modules=broad, use_dora=True, use_rslora=True, layers_to_transform=[0],
                              rank_pattern={broad[-1]: 3}, alpha_pattern={broad[0]: 7}),
        "adalora": adalora_config(base, init_r=4, target_r=2, lora_alpha=6, target_modules=few),
    } | ({} if kind == "t5" else {"embedding-saved": lora(target_modules=[few[0]], modules_to_save=[EMBEDDING[kind]])})


def write_case(name, base, wrapped, lines, folder):
    shutil.rmtree(folder, ignore_errors=True)
    ref.save_adapter(wrapped, folder)
    # What a reader of the file gets: a pruned AdaLoRA has other shapes there.
    # PEFT loads no prefix for training.
    prefix = name.startswith("prefix")
    model = ref.copy.deepcopy(wrapped) if prefix else ref.load_adapter(base, folder, trainable=True)
    loaded = ref.load_adapter(base, folder) if prefix else model
    before, again = ref.forward_file(wrapped, lines)[1], ref.forward_file(loaded, lines)[1]
    if any(abs(a - b) > 1e-5 * abs(a) for a, b in zip(before, again)):
        raise RuntimeError(f"{name}: the saved adapter is not the one in memory")
    in_f64 = ref.copy.deepcopy(model).double()
    write_figures(name, model, ref.adapter_parameters(model), in_f64, ref.adapter_parameters(in_f64), lines, folder)


def write_figures(name, model, parameters, in_f64, parameters_f64, lines, folder, gradient_floor=0.0):
    """expected.safetensors and case.json of a model with {name in the file: parameter}, and the same in f64. Deviations of a gradient
    are relative to its norm plus `gradient_floor` times the norm of all: one number that is a sum of many may be near 0."""
    logits, losses, total, tokens = ref.forward_file(model, lines)
    start = {n: p.detach().clone() for n, p in parameters.items()}
    logit_lines = LOGIT_LINES if model.config.is_encoder_decoder else DECODER_LOGIT_LINES
    out = {f"adapter.logits.{i}": logits[i].contiguous() for i in logit_lines}
    out |= {f"adapter.loss.{i}": torch.tensor([loss]) for i, loss in enumerate(losses)}
    precise = ref.forward_file(in_f64, lines)
    grads, grads_f64 = ref.gradients(model, parameters, lines), ref.gradients(in_f64, parameters_f64, lines)
    records = ref.train(model, parameters, lines, STEPS, BATCH, LR)
    ref.train(in_f64, parameters_f64, lines, STEPS, BATCH, LR)
    spread = {"logits": max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(logits, precise[0])), "grad": 0.0, "adamw10": 0.0}
    noisy, floor = [], gradient_floor * math.sqrt(sum(g.double().square().sum().item() for g in grads.values()))
    for n, p in parameters.items():
        p, p64 = p.detach(), parameters_f64[n].detach()
        out[f"adapter.grad.{n}"] = grads[n]
        spread["grad"] = max(spread["grad"], ref.relative_norm(grads[n], grads_f64[n], grads_f64[n].norm() + floor))
        # Adam makes full steps of gradients that are rounding only, as that of a key's bias: no figure of such a tensor is stored.
        moved = ref.relative_norm(p, p64, p - start[n])
        if moved < 5e-4:
            out[f"adapter.adamw10.{n}"] = p.clone()
            spread["adamw10"] = max(spread["adamw10"], moved)
        else:
            noisy.append(n)
    if spread["logits"] > 1e-5 or spread["grad"] > 5e-5 or len(noisy) > 0.2 * len(parameters):
        raise RuntimeError(f"{name}: ill-conditioned, f32 and f64 differ: {spread}")
    save_file({k: v.float().contiguous() for k, v in out.items()}, os.path.join(folder, "expected.safetensors"))
    case = {"versions": ref.versions(), "logit_lines": logit_lines, "f32_against_f64": spread, "not_compared_after_training": noisy,
            "adamw": {"steps": STEPS, "batch_size": BATCH,
                      "adapter": {"lr": LR, "mean_loss_of_file": total / tokens, "steps": [{"grad_norm": r["grad_norm"]} for r in records]}}}
    if gradient_floor:
        case["gradient_floor"] = gradient_floor
    with open(os.path.join(folder, "case.json"), "w", encoding="utf-8") as f:
        json.dump(case, f, indent=1)
        f.write("\n")
    size = sum(os.path.getsize(os.path.join(folder, x)) for x in os.listdir(folder))
    print(f"{name}: {size / 1024:.0f} KiB, {json.dumps(spread)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(HERE, "adapters"))
    parser.add_argument("--kinds", help="some of the kinds, such as dora,adalora")
    parser.add_argument("--any-version", action="store_true", help="run with other versions than the pinned ones")
    args = parser.parse_args()
    ref.require_versions(args.any_version)
    ref.set_up()
    wanted = args.kinds.split(",") if args.kinds else None
    for number, (shape, seed) in enumerate(SIZES):
        world = f"{shape}-{seed}"
        base = ref.load_base(os.path.join(HERE, "models", world))
        lines = ref.read_jsonl(os.path.join(HERE, "models", world, "data.jsonl"))
        configs = {"prefix": ref.prefix_config(base, 2 + seed), "norm": ref.norm_config(base), "dora": ref.lora_config(base, r=2 + seed, lora_alpha=5, use_dora=True, target_modules=ref.BROAD_TARGETS[shape])}
        if world in WORLDS:
            configs |= lora_configs(base, shape)
        for kind, config in configs.items():
            if wanted is None or kind in wanted:
                wrapped = ref.attach(base, config, 1000 + 7 * number + len(kind), 1.0 if kind == "prefix" else None)
                write_case(f"{kind} {world}", base, wrapped, lines, os.path.join(args.out, kind, world))
                if kind == "adalora":
                    ref.prune_adalora(wrapped)
                    write_case(f"adalora-pruned {world}", base, wrapped, lines, os.path.join(args.out, "adalora-pruned", world))


if __name__ == "__main__":
    sys.exit(main())
