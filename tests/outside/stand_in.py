"""The commands that compare.py uses, done by transformers and PEFT in f64 with the contract's flags and files.

Lets `compare.py --self-check` test itself: its flags, file reading, bounds and table, without a built permafrost. Proves nothing about
permafrost. bf16 is imitated by rounding the base weights.
"""
import argparse
import json
import os
import shutil

import torch
from peft import LoraConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

import reference as ref
import texts


def base_model(args):
    model = ref.load_base(args.base)
    if args.precision == "bf16":
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.bfloat16().float())
    return model.double()


def with_adapter(model, folder):
    with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as f:
        kind = json.load(f)["peft_type"]
    if kind == "PERMAFROST_FULL":
        model.load_state_dict(load_file(os.path.join(folder, "adapter_model.safetensors")), strict=False)
        return model, dict(model.named_parameters())
    wrapped = ref.load_adapter(model, folder).double()
    for name, p in wrapped.named_parameters():
        p.requires_grad_(any(part in name for part in ("prompt_encoder", "lora_", "ia3_l", "ln_tuning_layers")))
    return wrapped, ref.adapter_parameters(wrapped)


def forward(args):
    base, lines = base_model(args), ref.read_jsonl(args.data)
    named = dict(a.split("=", 1) for a in args.adapter if "=" in a)
    models = {name: with_adapter(base, folder)[0] for name, folder in named.items()}
    parameters, default = {}, base
    if args.adapter and not named:
        default, parameters = with_adapter(base, args.adapter[0])
    out = {}
    for i, line in enumerate(lines):
        logits, losses, _, _ = ref.forward_file(models[line["adapter"]] if "adapter" in line else default, [line])
        out[f"logits.{i}"], out[f"loss.{i}"] = logits[0].float(), torch.tensor([losses[0]], dtype=torch.float32)
    save_file(out, args.out)
    if args.gradients:
        save_file({n: g.float() for n, g in ref.gradients(default, parameters, lines).items()}, args.gradients)
    return ""


def train(args):
    base = base_model(args)
    os.makedirs(args.out)
    if args.method == "full":
        wrapped, parameters = base, dict(base.named_parameters())
        for p in parameters.values():
            p.requires_grad_(True)
    elif args.init_adapter:
        wrapped, parameters = with_adapter(base, args.init_adapter)
    elif args.method == "prompt":
        config = PromptTuningConfig(task_type=ref.task_type(base), num_virtual_tokens=args.virtual_tokens)
        wrapped = ref.attach(base, config, args.seed)
        parameters = ref.adapter_parameters(wrapped)
    elif args.method == "prefix":
        wrapped = ref.attach(base, ref.prefix_config(base, args.virtual_tokens), args.seed)
        parameters = ref.adapter_parameters(wrapped)
    elif args.method == "norm":
        wrapped = ref.attach(base, ref.norm_config(base), args.seed)
        parameters = ref.adapter_parameters(wrapped)
    else:
        split = lambda names: names.split(",") if names else None  # noqa: E731
        start = args.init_lora if args.init_lora in ("gaussian", "pissa", "olora") else True
        config = LoraConfig(task_type=ref.task_type(base), r=args.rank, lora_alpha=args.alpha, target_modules=split(args.targets),
                            use_dora=args.method == "dora", init_lora_weights=start, bias=args.bias or "none",
                            modules_to_save=split(args.modules_to_save), exclude_modules=split(args.exclude),
                            layers_to_transform=[int(x) for x in args.layers.split(",")] if args.layers else None)
        wrapped = ref.attach(base, config, args.seed)
        parameters = ref.adapter_parameters(wrapped)
    wrapped.double()
    records = ref.train(wrapped, parameters, ref.read_jsonl(args.data), args.steps, args.batch_size, args.lr, args.accumulate,
                        args.schedule, args.warmup, args.weight_decay, args.clip, (args.beta1, args.beta2), args.epsilon)
    with open(os.path.join(args.out, "metrics.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"step": i + 1, **r}) + "\n" for i, r in enumerate(records))
    tensors = {n: p.detach().float().contiguous() for n, p in parameters.items()}
    save_file(tensors, os.path.join(args.out, "adapter_model.safetensors"), metadata={"format": "pt"})
    target = os.path.join(args.out, "adapter_config.json")
    if args.method == "full":
        with open(target, "w", encoding="utf-8") as f:
            json.dump({"peft_type": "PERMAFROST_FULL"}, f)
    elif args.init_adapter:
        shutil.copy(os.path.join(args.init_adapter, "adapter_config.json"), target)
    else:
        wrapped.peft_config["default"].save_pretrained(args.out)
    return ""


def generate(args):
    base = base_model(args)
    model = with_adapter(base, args.adapter[0])[0] if args.adapter else base
    tokenizer = texts.Reference(args.base)
    ids = ref.generate(model, tokenizer.encode(args.prompt), args.max_new_tokens, args.beams)
    return json.dumps({"text": tokenizer.decode(ids), "ids": ids})


def tokenize(args):
    tokenizer = texts.Reference(args.base)
    rows = ref.read_jsonl(args.data)
    if args.decode:
        return "\n".join(json.dumps({"text": tokenizer.decode(r["ids"])}) for r in rows)
    return "\n".join(json.dumps({"ids": tokenizer.encode(r["text"], plain=args.plain)}) for r in rows)


def main(argv):
    """Runs a command line; returns what the command would print to stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["forward", "train", "generate", "tokenize"])
    for flag in ("base", "data", "out", "gradients", "method", "init-adapter", "targets", "prompt", "optimizer", "order", "init",
                 "init-lora", "bias", "modules-to-save", "exclude", "layers", "lora-plus-ratio", "encoder-width", "projection-width"):
        parser.add_argument("--" + flag)
    for flag, kind, default in (("steps", int, 1), ("batch-size", int, 1), ("accumulate", int, 1), ("warmup", int, 0), ("seed", int, 0),
                                ("threads", int, 1), ("virtual-tokens", int, 1), ("rank", int, 8), ("alpha", float, 8), ("beams", int, 1),
                                ("max-new-tokens", int, 1), ("lr", float, 0), ("beta1", float, 0), ("beta2", float, 0),
                                ("epsilon", float, 0), ("weight-decay", float, 0), ("clip", float, 0)):
        parser.add_argument("--" + flag, type=kind, default=default)
    parser.add_argument("--adapter", action="append", default=[])
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--schedule", default="constant")
    for flag in ("json", "plain", "decode", "quiet", "prefix-projection"):
        parser.add_argument("--" + flag, action="store_true")
    args = parser.parse_args(argv)
    return {"forward": forward, "train": train, "generate": generate, "tokenize": tokenize}[args.command](args)
