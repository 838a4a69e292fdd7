#!/usr/bin/env python3
"""Makes adapterhub/<base>/: adapter folders of the AdapterHub `adapters` library and what it computes with them (see README.md).

    python make_adapterhub_goldens.py [--only gpt2-1] [--out DIR] [--any-version]

Needs requirements-adapterhub.txt: `adapters` goes with an older transformers than the other goldens.
"""
import argparse
import json
import logging
import math
import os
import shutil
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

import reference as ref
import adapters
import transformers
from adapters import (ConfigUnion, DoubleSeqBnConfig, IA3Config, LoRAConfig, MAMConfig, ParBnConfig, PrefixTuningConfig, SeqBnConfig,
                      UniPELTConfig)

PINNED = {"torch": "2.15.0", "transformers": "4.57.6", "adapters": "1.3.0"}
HERE = os.path.dirname(os.path.abspath(__file__))
ENCODER_LENGTHS, TARGET_LENGTHS, DECODER_LENGTHS = [9, 4, 6], [5, 3, 4], [8, 3, 5]

# A Llama that prefixes of this library can be put on: it takes the head size for hidden_size / num_attention_heads.
SQUARE_LLAMA = dict(vocab_size=61, hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=6, intermediate_size=29,
                    num_hidden_layers=3, max_position_embeddings=64, rms_norm_eps=1e-5, attention_dropout=0.0, rope_theta=7000.0,
                    tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=None)


def prefix(**settings):
    return PrefixTuningConfig(**{"prefix_length": 3, "bottleneck_size": 4, **settings})


def configs():
    """{base: {adapter name: config}}. Every base has few, all of them together have every field that changes the arithmetic."""
    return {
        "t5-v1_0-2": {
            "houlsby": DoubleSeqBnConfig(reduction_factor=8),
            "houlsby_cross": DoubleSeqBnConfig(cross_adapter=True, reduction_factor=5.5, use_gating=True, non_linearity="tanh"),
            "parallel": ParBnConfig(reduction_factor=8),
            "prefix_flat": prefix(flat=True, prefix_length=4),
            "prefix_mlp": prefix(),
            "prefix_self_gated": prefix(encoder_prefix=False, cross_prefix=False, flat=True, use_gating=True),
            "lora": LoRAConfig(r=3, alpha=5),
            "ia3": IA3Config(),
            "unipelt": UniPELTConfig(prefix_tuning=prefix(), adapter=SeqBnConfig(reduction_factor=9), lora=LoRAConfig(r=2, alpha=2)),
            "mam": MAMConfig(prefix_tuning=prefix(prefix_length=2), adapter=ParBnConfig(reduction_factor=10)),
        },
        "t5-v1_1-1": {
            "pfeiffer_map": SeqBnConfig(reduction_factor={"1": 9.0, "4": 14.0, "default": 7.5}, leave_out=[2]),
            "parallel_learned": ParBnConfig(reduction_factor=12, scaling="learned", use_gating=True),
            "prefix_gates": prefix(encoder_prefix=False, prefix_length=2, use_gating=True, shared_gating=False),
            "lora_all": LoRAConfig(r=2, alpha=6, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True, leave_out=[0]),
            "lora_gated": LoRAConfig(r=2, alpha=6, use_gating=True),
            "ia3": IA3Config(),
        },
        "gpt2-1": {
            "houlsby_norm_before": DoubleSeqBnConfig(reduction_factor=10, ln_before=True, non_linearity="gelu"),
            "pfeiffer_norm_after": SeqBnConfig(reduction_factor=9, ln_after=True, scaling="channel", non_linearity="gelu_new",
                                               adapter_residual_before_ln=True),
            "pfeiffer_residual": SeqBnConfig(reduction_factor=9, residual_before_ln=False, original_ln_after=False, scaling=0.5),
            "bottleneck_doubled": SeqBnConfig(reduction_factor=9, residual_before_ln=False, ln_after=True, leave_out=[1]),
            "bottleneck_lost": SeqBnConfig(reduction_factor=9, original_ln_before=False, original_ln_after=False),
            "parallel_gated": ParBnConfig(reduction_factor=8, use_gating=True, non_linearity="leakyrelu", ln_before=True),
            "lora": LoRAConfig(r=3, alpha=5),
            "lora_all": LoRAConfig(r=2, alpha=3, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True),
            "lora_gated": LoRAConfig(r=2, attn_matrices=["q", "k"], output_lora=True, use_gating=True),
            "ia3": IA3Config(),
            "prefix_flat": prefix(flat=True, leave_out=[1]),
            "prefix_mlp": prefix(non_linearity="relu"),
            "prefix_gated": prefix(flat=True, prefix_length=2, use_gating=True),
            "unipelt": UniPELTConfig(prefix_tuning=prefix(), adapter=SeqBnConfig(reduction_factor=12), lora=LoRAConfig(r=2, alpha=2)),
            "mam": MAMConfig(prefix_tuning=prefix(prefix_length=2), adapter=ParBnConfig(reduction_factor=10)),
        },
        "llama-square": {
            "houlsby_leaky": DoubleSeqBnConfig(reduction_factor=9, non_linearity="leakyrelu"),
            "pfeiffer_gated": SeqBnConfig(reduction_factor=9, use_gating=True, ln_before=True),
            "parallel_norm_after": ParBnConfig(reduction_factor=9, ln_after=True),  # no gate: the norm hides a factor of its input
            "prefix_flat": prefix(flat=True, leave_out=[0]),
            "prefix_gates": prefix(prefix_length=4, use_gating=True, shared_gating=False),
            "lora_all": LoRAConfig(r=2, alpha=5, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True),
            "lora_swapped": LoRAConfig(r=2, alpha=5, selfattn_lora=False, intermediate_lora=True, use_gating=True),
            "ia3": IA3Config(),
            "unipelt": UniPELTConfig(prefix_tuning=prefix(), adapter=SeqBnConfig(reduction_factor=9), lora=LoRAConfig(r=2, alpha=2)),
            "mam": MAMConfig(prefix_tuning=prefix(prefix_length=2), adapter=ParBnConfig(reduction_factor=9)),
        },
        "llama-2": {
            "houlsby": DoubleSeqBnConfig(reduction_factor=12),
            "lora": LoRAConfig(r=3, alpha=5),
        },
        "mistral-1": {
            "parallel_lost": ParBnConfig(reduction_factor=14, original_ln_after=False),
            "pfeiffer_channel": SeqBnConfig(reduction_factor=14, scaling="channel"),
            "lora_output": LoRAConfig(r=2, alpha=5, attn_matrices=["k"], output_lora=True),
        },
        "qwen2-1": {
            "houlsby_map": DoubleSeqBnConfig(reduction_factor={"0": 18.0, "default": 14.0}),
            "pfeiffer": SeqBnConfig(reduction_factor=18, ln_after=True),
            "parallel": ParBnConfig(reduction_factor=14, scaling=2.5),
            "lora_gated": LoRAConfig(r=2, attn_matrices=["v"], intermediate_lora=True, output_lora=True, use_gating=True),
            "ia3": IA3Config(),
            "union": ConfigUnion(LoRAConfig(r=1, alpha=2, attn_matrices=["q"]), ParBnConfig(reduction_factor=18)),
        },
    }


def versions():
    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "adapters": adapters.__version__}


def require_versions(any_version):
    have = versions()
    wrong = [f"{k} {have[k]} (pinned: {v})" for k, v in PINNED.items() if have[k] != v]
    if wrong and not any_version:
        sys.exit("error: other versions than the pinned ones: " + ", ".join(wrong) +
                 "; install requirements-adapterhub.txt or pass --any-version")


# ---- bases ---------------------------------------------------------------------------------------------------------------

def make_square_llama(folder):
    config = transformers.LlamaConfig(**SQUARE_LLAMA)
    model = transformers.AutoModelForCausalLM.from_config(config)
    ref.randomize(model, torch.Generator().manual_seed(4321), "llama", SQUARE_LLAMA["head_dim"], 1.3)
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "generation_config.json"))


def load_base(folder):
    """The model of a folder that a newer transformers wrote: this one reads RoPE's base and T5's head from other fields."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        stored = json.load(f)
    changes = {}
    if "rope_parameters" in stored:
        changes["rope_theta"] = stored["rope_parameters"]["rope_theta"]
    if stored["model_type"] == "t5":
        changes["tie_word_embeddings"] = "lm_head.weight" not in load_file(os.path.join(folder, "model.safetensors"))
    config = transformers.AutoConfig.from_pretrained(folder, **changes)
    cls = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = cls.from_pretrained(folder, config=config, attn_implementation="eager").eval()
    model.requires_grad_(False)
    expected = os.path.join(folder, "expected.safetensors")
    if os.path.exists(expected):  # what the newer one computes for the bare base
        expected = load_file(expected)
        for i, line in enumerate(ref.read_jsonl(os.path.join(folder, "data.jsonl"))):
            want = expected.get(f"none.logits.{i}")
            if want is not None and (ref.run_line(model, line)[0] - want).abs().max() > 1e-5 * want.abs().max():
                raise RuntimeError(f"{folder}: this transformers computes other logits for the bare base")
    model.config._name_or_path = "base"
    return model


def make_lines(model, generator):
    """Three lines: all labelled; no label in the first half; labels that are not the input (T5: the last one hidden)."""
    def draw(n):
        return torch.randint(3, model.config.vocab_size, (n,), generator=generator).tolist()

    lines = []
    for i in range(3):
        if model.config.is_encoder_decoder:
            ids, labels = draw(ENCODER_LENGTHS[i] - 1) + [1], draw(TARGET_LENGTHS[i] - 1) + [1]
            if i == 2:
                labels[-1] = -100
        else:
            ids = draw(DECODER_LENGTHS[i])
            labels = list(ids) if i < 2 else draw(len(ids))
        if i == 1:
            labels[:len(labels) // 2] = [-100] * (len(labels) // 2)
        lines.append({"input_ids": ids, "labels": labels})
    return lines


# ---- adapters ------------------------------------------------------------------------------------------------------------

def parameters_of(model, name):
    """{name in the file: trainable parameter}. A prefix table hangs under every attention too (`.pool.`), and the norm before a
    bottleneck is its down projection's first module as well: the first of the two names, the model's own table."""
    found, seen = {}, set()
    for key, p in model.named_parameters(remove_duplicate=False):
        if p.requires_grad and f".{name}." in key and ".pool." not in key and id(p) not in seen:
            seen.add(id(p))
            found[key] = p
    left = {id(p) for p in model.parameters() if p.requires_grad} - seen
    if left or not found:
        raise RuntimeError(f"{name}: {len(found)} parameters found, {len(left)} left over")
    return found


def value(key, shape, generator):
    """Nothing is zero and nothing drowns the base."""
    noise = torch.randn(shape, generator=generator)
    leaf, owner = key.split(".")[-1], key.split(".")[-2]
    if "norm" in owner:
        return 1 + 0.3 * noise if leaf == "weight" else 0.2 * noise
    if leaf == "scaling":
        return 0.8 + 0.3 * noise
    if owner == "gate" or "prefix_gates" in key:
        return 0.3 * noise if leaf == "bias" else 1.2 * noise / math.sqrt(shape[-1])
    if leaf == "lora_A":
        return 1.2 * noise / math.sqrt(shape[-1])
    if leaf == "lora_B":
        return 0.3 * noise
    if leaf == "control_trans":
        return 0.6 * noise
    if leaf == "bias":
        return 0.2 * noise
    if "adapter_up" in key:
        return 0.25 * noise
    return noise * {"wte": 1.0}.get(owner, 1.2 / math.sqrt(shape[-1]))


def attach(base, name, config, seed):
    model = ref.copy.deepcopy(base)
    adapters.init(model)
    model.add_adapter(name, config=config)
    model.train_adapter(name)
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in parameters_of(model, name).items():
            drawn = value(key, p.shape, generator)
            p.copy_(1 + drawn if key.endswith("lora_B") and p.shape[1] == 1 and "ia3" in name else drawn)
    return model


def save(model, name, folder):
    """By the library where it can: it refuses to write tensors that have two names, so those files are the pickle's tensors with
    the model's own copy of each prefix table. Returns who wrote."""
    try:
        model.save_adapter(folder, name, with_head=False, use_safetensors=True)
        writer = "adapters"
    except RuntimeError as error:
        if "share memory" not in str(error):
            raise
        model.save_adapter(folder, name, with_head=False, use_safetensors=False)
        pickle = os.path.join(folder, "pytorch_adapter.bin")
        tensors = {k: v.clone().contiguous() for k, v in torch.load(pickle, weights_only=True).items() if ".pool." not in k}
        os.remove(pickle)
        save_file(tensors, os.path.join(folder, "adapter.safetensors"))
        writer = "script"
    interface = os.path.join(folder, "adapter_interface.json")
    if os.path.exists(interface):
        os.remove(interface)
    return writer


def load(base, name, folder):
    model = ref.copy.deepcopy(base)
    adapters.init(model)
    loaded = model.load_adapter(folder, use_safetensors=True, set_active=True)
    if loaded != name:
        raise RuntimeError(f"{folder}: loaded as {loaded}")
    return model.eval()


def prefix_attention(model, line):
    """Mean share of attention that goes to the prefix, over all attentions that have one; None without a prefix."""
    ids = torch.tensor([line["input_ids"]])
    labels = torch.tensor([line["labels"]])
    with torch.no_grad():
        out = model(input_ids=ids, labels=labels, output_attentions=True, use_cache=False)
    if model.config.is_encoder_decoder:
        own = [(a, ids.shape[1]) for a in out.encoder_attentions + out.cross_attentions]
        own += [(a, labels.shape[1]) for a in out.decoder_attentions]
    else:
        own = [(a, ids.shape[1]) for a in out.attentions]
    shares = [a[..., :a.shape[-1] - keys].sum(-1).mean().item() for a, keys in own if a.shape[-1] > keys]
    return round(sum(shares) / len(shares), 3) if shares else None


class IllConditioned(RuntimeError):
    """A draw of values for which rounding alone is too much: a gate or scale whose gradient cancels."""


def worst(pairs):
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def make_adapter(base, bare, name, config, lines, seed, folder, out):
    """Runs one adapter, writes its folder, adds its figures to `out`; its entry of case.json."""
    model = attach(base, name, config, seed)
    writer = save(model, name, folder)
    logits, losses, total, tokens = ref.forward_file(model, lines)
    again = ref.forward_file(load(base, name, folder), lines)[0]
    if not all(torch.equal(a, b) for a, b in zip(logits, again)):
        raise RuntimeError(f"{name}: the saved adapter is not the one in memory")
    effect = min(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(logits, bare))
    if effect < 0.02:
        raise RuntimeError(f"{name}: changes the logits by {effect} only")
    share = prefix_attention(model, lines[0])
    if share is not None and not 0.1 < share < 0.85:
        raise RuntimeError(f"{name}: {share} of the attention goes to the prefix")

    parameters = parameters_of(model, name)
    grads = ref.gradients(model, parameters, lines)
    largest = max(g.abs().max().item() for g in grads.values())
    precise = ref.copy.deepcopy(model).double()
    logits_f64, losses_f64, _, _ = ref.forward_file(precise, lines)
    grads_f64 = ref.gradients(precise, parameters_of(precise, name), lines)
    spread = {"logits": worst(zip(logits, logits_f64)), "loss": max(abs(a - b) / b for a, b in zip(losses, losses_f64)),
              "grad": max(ref.relative_norm(grads[n], grads_f64[n]) for n in grads)}
    if spread["logits"] > 1e-5 or spread["grad"] > 5e-5:
        raise IllConditioned(f"{name}: f32 and f64 differ: {spread}")
    for n, g in grads.items():
        if g.abs().max() < 1e-5 * largest:
            raise RuntimeError(f"{name}: no gradient of {n}")
        out[f"{name}.grad.{n}"] = g
    for i, rows in enumerate(logits):
        out[f"{name}.logits.{i}"] = rows.contiguous().clone()
        out[f"{name}.loss.{i}"] = torch.tensor([losses[i]])
    return {"written_by": writer, "parameters": sum(p.numel() for p in parameters.values()), "labelled_tokens": tokens,
            "mean_loss_of_file": total / tokens, "least_effect_on_logits": round(effect, 3), "attention_to_prefix": share,
            "f32_against_f64": spread}


def make_case(name, chosen, root):
    folder = os.path.join(root, name)
    os.makedirs(os.path.join(folder, "adapters"))
    shared = os.path.join(HERE, "models", name)
    if os.path.isdir(shared):
        base, where = load_base(shared), f"../../models/{name}"
    else:
        make_square_llama(folder)
        base, where = load_base(folder), "."
    order = list(configs()).index(name)
    lines = make_lines(base, torch.Generator().manual_seed(900 + order))
    ref.write_jsonl(os.path.join(folder, "data.jsonl"), lines)
    bare, losses, _, _ = ref.forward_file(base, lines)
    out = {f"none.logits.{i}": rows.contiguous().clone() for i, rows in enumerate(bare)}
    out.update({f"none.loss.{i}": torch.tensor([loss]) for i, loss in enumerate(losses)})
    entries = {}
    for i, (adapter, config) in enumerate(chosen.items()):
        where_to = os.path.join(folder, "adapters", adapter)
        for attempt in range(5):
            try:
                seed = 5000 + 100 * order + i + 10000 * attempt
                entries[adapter] = make_adapter(base, bare, adapter, config, lines, seed, where_to, out)
                break
            except IllConditioned as error:
                print(error, flush=True)
                shutil.rmtree(where_to)
        else:
            raise RuntimeError(f"{name} {adapter}: no well-conditioned draw")
        print(f"{name} {adapter}: {json.dumps(entries[adapter])}", flush=True)
    save_file({k: v.float().contiguous() for k, v in out.items()}, os.path.join(folder, "expected.safetensors"))
    with open(os.path.join(folder, "case.json"), "w", encoding="utf-8") as f:
        json.dump({"base": where, "versions": versions(), "lines": len(lines), "adapters": entries}, f, indent=1)
        f.write("\n")
    for directory, _, files in os.walk(folder):
        for file in files:
            os.chmod(os.path.join(directory, file), 0o644)
    size = sum(os.path.getsize(os.path.join(d, x)) for d, _, files in os.walk(folder) for x in files)
    print(f"{name}: {size / 1024:.0f} KiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(HERE, "adapterhub"))
    parser.add_argument("--only", help="one base, such as gpt2-1")
    parser.add_argument("--any-version", action="store_true", help="run with other versions than the pinned ones")
    args = parser.parse_args()
    require_versions(args.any_version)
    ref.set_up()
    logging.getLogger("adapters").setLevel(logging.ERROR)
    os.makedirs(args.out, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out) as scratch:
        for name, chosen in configs().items():
            if args.only in (None, name):
                make_case(name, chosen, scratch)
                shutil.rmtree(os.path.join(args.out, name), ignore_errors=True)
                shutil.move(os.path.join(scratch, name), os.path.join(args.out, name))


if __name__ == "__main__":
    sys.exit(main())
