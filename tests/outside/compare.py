#!/usr/bin/env python3
"""Compares a built permafrost with transformers and PEFT on fresh random models: the table of agreement, from outside.

    python compare.py PATH/TO/permafrost [--seed 1] [--shapes llama,gpt2] [--checks forward,train] [--keep DIR] [--verbose]
    python compare.py --self-check         the same with transformers in permafrost's place: tests this program

Needs the packages of ../golden/requirements.txt. Makes models, adapters, data and tokenizers in a temporary folder, runs the command and the
reference, and prints for each row of the table the worst deviation beside its bound. Exit status 0: all within bounds and no command failed.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "golden")]

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import reference as ref  # noqa: E402
import texts  # noqa: E402
from worlds import ADAMW, GRADIENT, LOGITS, LOSS, World, cosine  # noqa: E402

STEPS = 10
CHECKS = ("forward", "train", "schedules", "full", "starts", "roundtrip", "storage", "mixed", "variants", "bf16", "generate", "tokenize")
METHODS = ("prompt", "lora", "dora", "ia3", "prefix", "norm")
LR = {"prompt": 1e-2, "lora": 1e-3, "dora": 1e-3, "ia3": 3e-3, "prefix": 1e-2, "norm": 1e-3}


class Report:
    """Worst deviation of each row, and everything that failed outright."""

    def __init__(self, verbose):
        self.rows, self.failures, self.verbose = {}, [], verbose

    def add(self, row, where, deviation, bound):
        deviation = float("inf") if deviation != deviation else float(deviation)
        count, worst, at, _, bad = self.rows.get(row, (0, -1.0, "", bound, 0))
        if deviation > worst:
            worst, at = deviation, where
        self.rows[row] = (count + 1, worst, at, bound, bad + (deviation > bound))
        if self.verbose or deviation > bound:
            print(f"  {'FAIL' if deviation > bound else 'ok  '} {row}: {where}: {deviation:.3g} (bound {bound:.3g})", flush=True)

    def fail(self, where, message):
        self.failures.append((where, message))
        print(f"  FAIL {where}: {message}", flush=True)

    def finish(self):
        print(f"\n{'row':<44} {'cases':>6} {'worst':>10} {'bound':>9}  ok   worst at")
        for row, (count, worst, at, bound, bad) in self.rows.items():
            print(f"{row:<44} {count:>6} {worst:>10.3g} {bound:>9.3g}  {'yes' if not bad else f'NO {bad}'}  {at}")
        for where, message in self.failures:
            print(f"failed: {where}: {message}")
        good = not self.failures and not any(row[4] for row in self.rows.values())
        print("all within bounds" if good else "NOT all within bounds")
        return 0 if good else 1


class Command:
    def __init__(self, binary, threads):
        self.binary, self.threads = binary, threads

    def run(self, *args):
        args = [str(a) for a in args]
        if "--threads" not in args and args[0] in ("forward", "train"):
            args += ["--threads", str(self.threads)]
        if self.binary is None:
            import stand_in
            return stand_in.main(args)
        done = subprocess.run([self.binary, *args], capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            message = (done.stderr.strip().splitlines() or ["(nothing on stderr)"])[-1]
            raise RuntimeError(f"exit {done.returncode}: {message}   [permafrost {' '.join(args)}]")
        return done.stdout


# ---- checks ---------------------------------------------------------------------------------------------------------------

def compare_forward(report, row, where, out, want):
    """`want`: (logits, losses, ...) of ref.forward_file."""
    for i, (logits, loss) in enumerate(zip(want[0], want[1])):
        got = out[f"logits.{i}"]
        if got.dtype != torch.float32 or got.shape != logits.shape:
            raise RuntimeError(f"logits.{i} is {got.dtype} {list(got.shape)}, expected F32 {list(logits.shape)}")
        report.add(f"{row}: logits", f"{where} line {i}", (got - logits).abs().max() / logits.abs().max(), LOGITS)
        got_loss = out[f"loss.{i}"]
        if list(got_loss.shape) != [1]:
            raise RuntimeError(f"loss.{i} has shape {list(got_loss.shape)}, expected [1]")
        difference = abs(got_loss.item() - loss)
        report.add(f"{row}: loss", f"{where} line {i}", difference / abs(loss) if loss else difference, LOSS)


def compare_names(got, want, what):
    if set(got) != set(want):
        raise RuntimeError(f"{what}: missing {sorted(set(want) - set(got))[:3]}, unexpected {sorted(set(got) - set(want))[:3]}")


def forward(command, world, name, folder=None, precision="f32", threads=None):
    """(F, G) tensors of `permafrost forward`; G is None without an adapter."""
    out, grads = world.path(f"f-{name}.safetensors"), world.path(f"g-{name}.safetensors")
    args = ["forward", "--base", folder or world.base_folder, "--data", world.data, "--out", out, "--precision", precision]
    if threads:
        args += ["--threads", threads]
    if world.adapters.get(name):
        args += ["--adapter", world.adapters[name], "--gradients", grads]
    command.run(*args)
    return load_file(out), load_file(grads) if world.adapters.get(name) else None


def compare_gradients(report, row, where, got, want):
    compare_names(got, want, "gradients")
    for tensor, g in want.items():
        report.add(f"{row}: gradients", f"{where} {tensor}", ref.relative_norm(got[tensor], g), GRADIENT)


def check_forward(command, world, report, names=("none", *METHODS), row="forward"):
    for name in names:
        where = f"{world.shape} {name}"
        out, grads = forward(command, world, name)
        compare_forward(report, row, where, out, ref.forward_file(world.models[name], world.lines))
        if name == "none":
            continue
        model, parameters = world.fresh_copy(name)
        compare_gradients(report, row, where, grads, ref.gradients(model, parameters, world.lines))
        out2, grads2 = forward(command, world, name, threads=2)
        same = all(torch.equal(out[k], out2[k]) for k in out) and all(torch.equal(grads[k], grads2[k]) for k in grads)
        report.add(f"{row}: same bits with 2 threads", where, 0 if same else 1, 0)


def train_args(world, out, steps, batch_size, lr, **extra):
    settings = {"accumulate": 1, "optimizer": "adamw", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight-decay": 0.01, "clip": 1.0,
                "schedule": "constant", "warmup": 0, "order": "file", "precision": "f32", **extra}
    args = ["train", "--base", world.base_folder, "--data", world.data, "--out", out, "--steps", steps, "--batch-size", batch_size,
            "--lr", lr, "--quiet"]
    for name, value in settings.items():
        args += ["--" + name] if value is True else ["--" + name, value]
    return args


def compare_metrics(report, row, where, out, records):
    with open(os.path.join(out, "metrics.jsonl"), encoding="utf-8") as f:
        rows = {r["step"]: r for r in map(json.loads, f) if "loss" in r and "lr" in r}
    if sorted(rows) != list(range(1, len(records) + 1)):
        raise RuntimeError(f"metrics.jsonl holds steps {sorted(rows)}, expected 1 to {len(records)}")
    for i, want in enumerate(records):
        got = rows[i + 1]
        report.add(f"{row}: metrics loss", f"{where} step {i + 1}", abs(got["loss"] - want["loss"]) / max(abs(want["loss"]), 1e-9), 1e-4)
        report.add(f"{row}: metrics lr", f"{where} step {i + 1}", abs(got["lr"] - want["lr"]) / max(want["lr"], 1e-9), 1e-5)
        report.add(f"{row}: metrics grad_norm", f"{where} step {i + 1}",
                   abs(got["grad_norm"] - want["grad_norm"]) / max(want["grad_norm"], 1e-9), GRADIENT)


def check_training(command, world, report, name, row, label, batch_size=4, accumulate=1, schedule="constant", warmup=0, clip=1.0):
    where, out = f"{world.shape} {name} {label}", world.path(f"train-{name}-{label}")
    model, parameters = world.fresh_copy(name)
    precise = ref.copy.deepcopy(model).double()
    parameters64 = ref.adapter_parameters(precise)
    before = {n: p.detach().clone() for n, p in parameters.items()}
    settings = dict(steps=STEPS, batch_size=batch_size, lr=LR[name], accumulate=accumulate, schedule=schedule, warmup=warmup, clip=clip)
    records = ref.train(model, parameters, world.lines, **settings)
    ref.train(precise, parameters64, world.lines, **settings)
    command.run(*train_args(world, out, STEPS, batch_size, LR[name], **{"init-adapter": world.adapters[name]}, accumulate=accumulate,
                            schedule=schedule, warmup=warmup, clip=clip))
    got = load_file(os.path.join(out, "adapter_model.safetensors"))
    compare_names(got, parameters, "trained adapter")
    for tensor, p in parameters.items():
        p, change = p.detach(), p.detach() - before[tensor]
        # Adam turns a gradient that is only rounding noise into a step of full size: entries on which torch's own f32 and f64
        # runs part are not compared. They must be few.
        noisy = (p.double() - parameters64[tensor].detach()).abs() > 1e-3 * change.double().abs().max()
        report.add(f"{row}: entries too noisy to compare", f"{where} {tensor}", noisy.double().mean(), 0.05)
        keep = ~noisy
        report.add(f"{row}: adapter after {STEPS} steps", f"{where} {tensor}", ref.relative_norm(got[tensor][keep], p[keep], change[keep]),
                   ADAMW)
    compare_metrics(report, row, where, out, records)
    return out


def check_train(command, world, report):
    for name in METHODS:
        out = check_training(command, world, report, name, "train", "plain")
        with open(os.path.join(out, "adapter_config.json"), encoding="utf-8") as f:
            got = json.load(f)
        with open(os.path.join(world.adapters[name], "adapter_config.json"), encoding="utf-8") as f:
            want = json.load(f)
        for field in ("peft_type", "task_type", "num_virtual_tokens", "r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "num_layers",
                      "token_dim", "num_attention_heads", "target_modules"):
            # PEFT leaves its default targets open.
            if want.get(field) != got.get(field) and not (field == "target_modules" and want.get(field) is None):
                raise RuntimeError(f"adapter_config.json: {field} is {got.get(field)}, --init-adapter had {want.get(field)}")


def check_schedules(command, world, report):
    check_training(command, world, report, "prompt", "schedules", "accumulate", batch_size=2, accumulate=2)
    check_training(command, world, report, "lora", "schedules", "linear", schedule="linear", warmup=3, clip=0)
    check_training(command, world, report, "prompt", "schedules", "cosine", schedule="cosine", warmup=2, batch_size=3)
    check_training(command, world, report, "lora", "schedules", "inverse-sqrt", schedule="inverse-sqrt", warmup=2, accumulate=3)
    check_training(command, world, report, "prompt", "schedules", "constant", warmup=4, clip=0.1)


def check_full(command, world, report, steps=5, lr=1e-3):
    """The file of `full` is permafrost's own: compared by what the trained model computes and by the log."""
    where, out = f"{world.shape} full", world.path("train-full")
    model = ref.copy.deepcopy(world.base)
    parameters = dict(model.named_parameters())
    for p in parameters.values():
        p.requires_grad_(True)
    before = ref.forward_file(model, world.lines)[0]
    records = ref.train(model, parameters, world.lines, steps, 4, lr)
    want = ref.forward_file(model, world.lines)[0]
    command.run(*train_args(world, out, steps, 4, lr, method="full"))
    compare_metrics(report, "full", where, out, records)
    result = world.path("f-full.safetensors")
    command.run("forward", "--base", world.base_folder, "--adapter", out, "--data", world.data, "--out", result)
    got = load_file(result)
    for i, logits in enumerate(want):
        report.add("full: change of logits", f"{where} line {i}", ref.relative_norm(got[f"logits.{i}"], logits, logits - before[i]), 2e-2)


def check_starts(command, world, report, steps=8, lr=1e-3):
    """PiSSA and OLoRA: PEFT takes the start out of the base's weights, permafrost subtracts it beside them."""
    targets = world.targets[:3]
    # PEFT's OLoRA takes a Conv1D's weight for [outputs, inputs] and fails on GPT-2.
    for init in ("pissa", "olora") if world.shape != "gpt2" else ("pissa",):
        where, out = f"{world.shape} {init}", world.path(f"start-{init}")
        rank = 3
        config = ref.lora_config(world.base, r=rank, lora_alpha=4, target_modules=targets, init_lora_weights=init)
        model = ref.peft.get_peft_model(ref.copy.deepcopy(world.base), config).eval()
        before = ref.forward_file(world.base, world.lines)[0]
        records = ref.train(model, ref.adapter_parameters(model), world.lines, steps, 4, lr)
        want = ref.forward_file(model, world.lines)[0]
        command.run(*train_args(world, out, steps, 4, lr, method="lora", rank=rank, alpha=4, targets=",".join(targets), **{"init-lora": init}))
        compare_metrics(report, "starts", where, out, records)
        got = ref.forward_file(ref.load_adapter(world.base, out), world.lines)[0]
        for i, logits in enumerate(want):
            report.add("starts: change of logits", f"{where} line {i}", ref.relative_norm(got[i], logits, logits - before[i]), 2e-2)


def check_roundtrip(command, world, report):
    """Adapters that permafrost starts and writes itself, loaded by PEFT."""
    targets = ",".join(world.targets[:3])
    for label, settings in (("prompt", {"method": "prompt", "virtual-tokens": 4, "init": "random"}),
                            ("prompt-vocab", {"method": "prompt", "virtual-tokens": 6, "init": "vocab"}),
                            ("lora", {"method": "lora", "rank": 3, "alpha": 5, "targets": targets}),
                            ("dora", {"method": "dora", "rank": 3, "alpha": 5, "targets": targets}),
                            ("lora-plus", {"method": "lora", "rank": 2, "targets": targets, "lora-plus-ratio": 0.5, "init-lora": "gaussian"}),
                            ("pissa", {"method": "lora", "rank": 3, "targets": targets, "init-lora": "pissa"}),
                            ("olora", {"method": "lora", "rank": 3, "targets": targets, "init-lora": "olora"}),
                            ("bias", {"method": "lora", "rank": 2, "targets": targets, "bias": "all"}),
                            ("embedding", {"method": "lora", "rank": 2, "targets": f"{targets},{world.embedding}"}),
                            ("modules", {"method": "lora", "rank": 2, "targets": targets, "modules-to-save": f"lm_head,{world.norm}"}),
                            ("layers", {"method": "lora", "rank": 2, "targets": targets, "layers": 0, "exclude": world.targets[1]}),
                            ("ia3", {"method": "ia3", "targets": targets}),
                            ("ptuning", {"method": "ptuning", "virtual-tokens": 4, "encoder-width": 6}),
                            ("ptuning-lstm", {"method": "ptuning", "virtual-tokens": 4, "encoder-width": 6, "encoder": "lstm"}),
                            ("prefix", {"method": "prefix", "virtual-tokens": 4}),
                            ("prefix-zero", {"method": "prefix", "virtual-tokens": 3, "init": "zero"}),
                            ("prefix-network", {"method": "prefix", "virtual-tokens": 4, "prefix-projection": True, "projection-width": 6}),
                            ("norm", {"method": "norm"}),
                            ("norm-targets", {"method": "norm", "targets": world.norm}),
                            ("continued-prefix", {"init-adapter": world.adapters["prefix"]}),
                            ("continued-norm", {"init-adapter": world.adapters["norm"]}),
                            ("continued", {"init-adapter": world.adapters["lora"]})):
        where, out = f"{world.shape} {label}", world.path(f"own-{label}")
        command.run(*train_args(world, out, 3, 4, 1e-2, seed=5, **settings))
        world.adapters[f"own-{label}"] = out
        got, grads = forward(command, world, f"own-{label}")
        loaded = ref.load_adapter(world.base, out)
        compare_forward(report, "roundtrip", where, got, ref.forward_file(loaded, world.lines))
        stored = load_file(os.path.join(out, "adapter_model.safetensors"))
        # PEFT stores a frozen embed_tokens beside an adapter on it; permafrost need not.
        read = {n: t for n, t in ref.get_peft_model_state_dict(loaded).items() if not n.endswith("embed_tokens.base_layer.weight")}
        compare_names(stored, read, "adapter file against PEFT's names")
        compare_names(grads, stored, "gradients against the adapter file")
        unlike = [n for n, t in read.items() if not torch.equal(t, stored[n])]
        report.add("roundtrip: tensors that PEFT read", where, len(unlike), 0)


def check_storage(command, world, report):
    """Shards, F16 and BF16 files, and a config as transformers 4 wrote it."""
    weights = sum(p.numel() for p in world.base.parameters())
    for label, dtype, shards in (("sharded", torch.float32, 4), ("bf16", torch.bfloat16, 1), ("f16", torch.float16, 1),
                                 ("bf16-sharded", torch.bfloat16, 3), ("config-v4", torch.float32, 1)):
        folder = world.path(f"base-{label}")
        world.make(folder, dtype, weights * dtype.itemsize // shards if shards > 1 else None)
        if shards > 1 and not os.path.exists(os.path.join(folder, "model.safetensors.index.json")):
            raise RuntimeError(f"{label}: transformers wrote no shards")
        if label == "config-v4":
            rewrite_config(folder)
        base = ref.load_base(folder)
        for name in ("none", "prompt", "lora", "ia3"):
            model = base if name == "none" else ref.load_adapter(base, world.adapters[name])
            got, _ = forward(command, world, name, folder)
            compare_forward(report, f"storage {label}", f"{world.shape} {name}", got, ref.forward_file(model, world.lines))


def rewrite_config(folder):
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as f:
        config = json.load(f)
    rope = config.pop("rope_parameters", None)
    if rope:
        config.update(rope_theta=rope["rope_theta"], rope_scaling=None)
    if "scale_decoder_outputs" in config:
        config["tie_word_embeddings"] = config.pop("scale_decoder_outputs")
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    config["transformers_version"] = "4.46.0"
    with open(path, "w", encoding="utf-8") as f:
        json.dump(config, f)


def check_mixed(command, world, report):
    """Several adapters on the lines of one file."""
    world.add("lora2", world.lora(target_modules=world.targets[:2]))
    world.add("prompt2", ref.prompt_config(world.base, world.rng.randint(1, 9)))
    pick = [None, "prompt", "norm", "lora2", "prompt2", "ia3", "prefix", None, "lora"]
    lines = [dict(line, **({"adapter": a} if a else {})) for line, a in zip(world.lines, pick)]
    data, out = world.path("mixed.jsonl"), world.path("mixed.safetensors")
    ref.write_jsonl(data, lines)
    args = ["forward", "--base", world.base_folder, "--data", data, "--out", out]
    for name in ("prompt", "lora", "lora2", "prompt2", "ia3", "prefix", "norm"):
        args += ["--adapter", f"{name}={world.adapters[name]}"]
    command.run(*args)
    want = [ref.forward_file(world.models[line.get("adapter", "none")], [line]) for line in lines]
    compare_forward(report, "mixed adapters", world.shape, load_file(out), ([w[0][0] for w in want], [w[1][0] for w in want]))


def check_variants(command, world, report):
    leaf, other = world.targets[0], world.targets[-1]
    layer = "block.0" if world.t5 else ("h.0" if world.shape == "gpt2" else "layers.0")
    world.add("rslora", world.lora(r=5, lora_alpha=3, target_modules=world.targets, use_rslora=True))
    world.add("patterns", world.lora(r=4, target_modules=world.targets, rank_pattern={leaf: 2, f"{layer}.*{other}": 6},
                                     alpha_pattern={other: 9, leaf: 1}))
    world.add("patterns-rslora", world.lora(r=4, lora_alpha=2, target_modules=world.targets, rank_pattern={leaf: 2},
                                            alpha_pattern={other: 3}, use_rslora=True))
    world.add("regex", world.lora(target_modules=rf".*\.{layer}\..*\.({leaf}|{other})"))
    world.add("dotted", world.lora(target_modules=[f"{'SelfAttention' if world.t5 else 'attn' if world.shape == 'gpt2' else 'self_attn'}.{leaf}"]))
    world.add("all-linear", world.lora(target_modules="all-linear"))
    world.add("layers", world.lora(target_modules=world.targets, layers_to_transform=[0]))
    world.add("excluded", world.lora(target_modules=world.targets, exclude_modules=[leaf]))
    world.add("excluded-regex", world.lora(target_modules=world.targets, exclude_modules=rf".*{layer}.*{leaf}"))
    world.add("dropout", world.lora(target_modules=world.targets, lora_dropout=0.3))
    world.add("dora-patterns", world.lora(r=4, target_modules=world.targets, use_dora=True, use_rslora=True, rank_pattern={leaf: 2},
                                          alpha_pattern={other: 3}))
    world.add("bias-all", world.lora(target_modules=[leaf], bias="all"))
    world.add("bias-lora_only", world.lora(target_modules=[leaf, other], bias="lora_only"))
    world.add("lora_bias", world.lora(target_modules=[leaf, other], lora_bias=True))
    world.add("embedding", world.lora(target_modules=[leaf, world.embedding]))
    world.add("modules_to_save", world.lora(target_modules=[leaf], modules_to_save=["lm_head", world.norm]))
    world.add("adalora", world.adalora())
    world.add_pruned("adalora-pruned")
    more = ("dora-patterns", "bias-all", "bias-lora_only", "lora_bias", "embedding", "modules_to_save", "adalora", "adalora-pruned")
    if not world.t5:
        world.add("embedding-saved", world.lora(target_modules=[leaf], modules_to_save=[world.embedding]))
        more += ("embedding-saved",)
    for name in more + ("rslora", "patterns", "patterns-rslora", "regex", "dotted", "all-linear", "layers", "excluded", "excluded-regex",
                 "dropout"):
        try:
            check_forward(command, world, report, (name,), "lora variants")
        except Exception as error:  # noqa: BLE001  (one refused variant must not hide the others)
            report.fail(f"{world.shape} variants {name}", str(error))


def check_bf16(command, world, report):
    for name in ("none", *METHODS):
        out, grads = forward(command, world, name, precision="bf16")
        _, losses, total, tokens = ref.forward_file(world.models[name], world.lines)
        model = world.models[name]
        counts = [ref.labelled(model, line) for line in world.lines]
        got = sum(out[f"loss.{i}"].item() * n for i, n in enumerate(counts)) / tokens
        report.add("bf16: loss", f"{world.shape} {name}", abs(got - total / tokens) / (total / tokens), 0.01)
        if name == "none":
            continue
        model, parameters = world.fresh_copy(name)
        want = ref.gradients(model, parameters, world.lines)
        compare_names(grads, want, "gradients")
        report.add("bf16: 1 - cosine of gradients", f"{world.shape} {name}", 1 - cosine(grads, want), 0.01)


def stable_output(model, ids, beams, rng):
    """The reference's new tokens, or None where rounding could change them."""
    want = ref.generate(model, ids, 12, beams)
    moved = ref.copy.deepcopy(model)
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    with torch.no_grad():
        for p in moved.parameters():
            p.mul_(1 + 3e-5 * torch.randn(p.shape, generator=generator))
    agree = ref.generate(ref.copy.deepcopy(model).double(), ids, 12, beams) == want and ref.generate(moved, ids, 12, beams) == want
    return want if agree else None


def check_generate(command, world, report, wanted=2):
    tokenizer, eos = texts.Reference(world.base_folder), world.base.config.eos_token_id
    for name in ("none", *METHODS, "embedding", "modules_to_save"):
        if name not in world.models:  # of check_variants
            continue
        for label, beams in (("greedy", 1), ("beam", 4), ("beam", 3)):
            if beams > 1 and ref.needs_forward_passes(world.models[name]):
                continue
            found = 0
            for _ in range(12):
                text = texts.sentence(world.rng)
                want = stable_output(world.models[name], tokenizer.encode(text), beams, world.rng)
                if want is None:
                    continue
                args = ["generate", "--base", world.base_folder, "--prompt", text, "--max-new-tokens", 12, "--json"]
                args += ["--beams", beams] if beams > 1 else []
                args += ["--adapter", world.adapters[name]] if world.adapters[name] else []
                got = json.loads(command.run(*args))
                ids = got["ids"]
                wrong = [i for i in ids if i != eos] != [i for i in want if i != eos]
                if wrong:
                    print(f"    got {ids}\n    want {want}")
                report.add(f"generate: {label}, wrong outputs", f"{world.shape} {name} {text!r}", int(wrong), 0)
                found += 1
                if found == wanted:
                    break


def check_tokenize(command, world, report):
    tokenizer = texts.Reference(world.base_folder)
    strings = texts.random_texts(world.rng, 150)
    data = world.path("texts.jsonl")
    ref.write_jsonl(data, [{"text": t} for t in strings])
    for flags in ([], ["--plain"]):
        got = [json.loads(x)["ids"] for x in command.run("tokenize", "--base", world.base_folder, "--data", data, *flags).split("\n") if x]
        if len(got) != len(strings):
            raise RuntimeError(f"tokenize: {len(got)} lines for {len(strings)} texts")
        wrong = [(t, g, tokenizer.encode(t, bool(flags))) for t, g in zip(strings, got) if g != tokenizer.encode(t, bool(flags))]
        for text, ids, want in wrong[:5]:
            print(f"    {text!r}: got {ids} want {want}")
        report.add("tokenize: wrong texts", f"{world.shape} {' '.join(flags)}", len(wrong), 0)
    ids = [tokenizer.encode(t, plain=True) for t in strings]
    data = world.path("ids.jsonl")
    ref.write_jsonl(data, [{"ids": i} for i in ids])
    got = [json.loads(x)["text"] for x in command.run("tokenize", "--base", world.base_folder, "--data", data, "--decode").split("\n") if x]
    wrong = [(i, g) for i, g in zip(ids, got) if g != tokenizer.decode(i)]
    for i, text in wrong[:5]:
        print(f"    {i}: got {text!r} want {tokenizer.decode(i)!r}")
    report.add("tokenize --decode: wrong texts", world.shape, len(wrong) + abs(len(got) - len(ids)), 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?")
    parser.add_argument("--self-check", action="store_true", help="put transformers in permafrost's place")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shapes", default=",".join(ref.SHAPES))
    parser.add_argument("--checks", default=",".join(CHECKS), help="of: " + ", ".join(CHECKS))
    parser.add_argument("--threads", type=int, default=1, help="of permafrost")
    parser.add_argument("--keep", help="make models and outputs in this new folder, and leave them there")
    parser.add_argument("--any-version", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="print every comparison")
    args = parser.parse_args()
    unknown = (set(args.checks.split(",")) - set(CHECKS)) | (set(args.shapes.split(",")) - set(ref.SHAPES))
    if unknown or bool(args.binary) == args.self_check:
        parser.error(f"unknown: {', '.join(sorted(unknown))}" if unknown else "give the permafrost binary, or --self-check")
    ref.require_versions(args.any_version)
    ref.set_up()
    command = Command(os.path.abspath(args.binary) if args.binary else None, args.threads)
    report = Report(args.verbose)
    with tempfile.TemporaryDirectory(prefix="permafrost-compare-") as scratch:
        root = args.keep or scratch
        for shape in args.shapes.split(","):
            world = World(shape, args.seed, root)
            print(f"{shape}: {world.sizes}", flush=True)
            for check in args.checks.split(","):
                try:
                    globals()["check_" + check](command, world, report)
                except Exception as error:  # noqa: BLE001  (a failed check must not hide the others)
                    report.fail(f"{shape} {check}", str(error))
                    if args.verbose or not args.binary:
                        traceback.print_exc()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
