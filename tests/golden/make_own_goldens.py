#!/usr/bin/env python3
"""Makes adapters/<kind>/<world>/ of methods that PEFT does not have (see README.md): UniPELT with gates, mix-and-match, bottleneck
adapters, BitFit, trained heads and top layers, written here from their equations on transformers' models.

    python make_own_goldens.py [--kinds unipelt,bitfit] [--out DIR] [--any-version]
"""
import argparse
import functools
import json
import os
import shutil
import sys
import types

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import reference as ref
from make_adapter_goldens import write_figures

HERE = os.path.dirname(os.path.abspath(__file__))
ATTENTION = "with_prefix"
GRADIENT_FLOOR = 3e-3  # a gate's bias is one number, a key's bias has no effect without rotary positions
THREE = ("t5-v1_0-1", "llama-1", "gpt2-1")


# ---- places of the bases ---------------------------------------------------------------------------------------------------

def layers(base):
    """[(stack, number, layer)]"""
    if base.config.is_encoder_decoder:
        return [(stack, i, layer) for stack in ("encoder", "decoder") for i, layer in enumerate(getattr(base, stack).block)]
    return [("decoder", i, layer) for i, layer in enumerate(base.transformer.h if hasattr(base, "transformer") else base.model.layers)]


def sublayers(base):
    """[(name in files, its norm, which reads the residual stream, the module between norm and residual)]"""
    found = []
    for stack, i, layer in layers(base):
        if base.config.is_encoder_decoder:
            bodies = {"SelfAttention": "self_attention", "EncDecAttention": "cross_attention", "DenseReluDense": "feed_forward"}
            pairs = [(name, part.layer_norm, getattr(part, body)) for part in layer.layer for body, name in bodies.items() if hasattr(part, body)]
        elif hasattr(layer, "ln_1"):
            pairs = [("self_attention", layer.ln_1, layer.attn), ("feed_forward", layer.ln_2, layer.mlp)]
        else:
            pairs = [("self_attention", layer.input_layernorm, layer.self_attn), ("feed_forward", layer.post_attention_layernorm, layer.mlp)]
        found += [(f"{stack}.layers.{i}.{name}", norm, body) for name, norm, body in pairs]
    return found


def linears(base):
    """{name: module} of the layers' linears, GPT-2's Conv1D among them."""
    return {n: m for n, m in base.named_modules() if n != "lm_head" and (isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D")}


def sizes(module):
    """(inputs, outputs)"""
    return tuple(module.weight.shape) if type(module).__name__ == "Conv1D" else tuple(reversed(module.weight.shape))


# ---- equations -------------------------------------------------------------------------------------------------------------

def mean_gate(x, weight, bias, whole):
    """[1, T, n]: the mean of sigmoid(w x + b) over the text, or over the rows up to each."""
    s = torch.sigmoid(x @ weight.T + bias)
    if whole:
        return s.mean(1, keepdim=True).expand_as(s)
    return s.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]


def attend(module, query, key, value, mask, scaling=1.0, position_bias=None, **_):
    """softmax([q (g_k K_p)^T; q K^T + bias]) [g_v V_p; V]: every row sees all of the prefix."""
    groups = query.shape[1] // key.shape[1]
    scores = scaling * query @ key.repeat_interleave(groups, 1).transpose(2, 3)
    scores = scores + (0 if position_bias is None else position_bias) + (0 if mask is None else mask[..., :key.shape[2]])
    value = value.repeat_interleave(groups, 1)
    prefix = getattr(module, "prefix", None)
    if prefix is None:
        return (scores.softmax(-1) @ value).transpose(1, 2), None
    p_keys, p_values = (t.transpose(0, 1)[None].repeat_interleave(groups, 1) for t in (prefix.keys, prefix.values))  # [1, H, P, K]
    key_gate, value_gate = prefix.gates[:, None, :, :1], prefix.gates[:, None, :, -1:]  # [1, 1, T, 1]
    slots = scaling * key_gate * (query @ p_keys.transpose(2, 3)) + prefix.bias
    weights = torch.cat([slots, scores], -1).softmax(-1)
    p = p_keys.shape[2]
    return (value_gate * (weights[..., :p] @ p_values) + weights[..., p:] @ value).transpose(1, 2), None


class Reference:
    """A base with an adapter of our formats; `parameters` by their names in the file. `values` are the adapter's tensors, else they
    are random."""

    def __init__(self, base, config, values=None, seed=0, dtype=torch.float32):
        self.base = ref.copy.deepcopy(base).to(dtype)
        self.base.set_attn_implementation(ATTENTION)
        self.config, self.dtype = self.base.config, dtype
        self.values, self.generator = values, torch.Generator().manual_seed(seed)
        self.parameters, self.replaced, self.first_position = {}, {}, 0
        if dtype == torch.float64:
            make_norms_exact(self.base)
        for part in config.get("parts", [config]):
            PARTS[part["peft_type"]](self, part)

    def __call__(self, input_ids, **inputs):
        if self.first_position:
            inputs["position_ids"] = self.first_position + torch.arange(input_ids.shape[1])[None]
        replaced = {n: p.T if transposed else p for n, (p, transposed) in self.replaced.items()}
        return torch.func.functional_call(self.base, replaced, (), {"input_ids": input_ids, **inputs})

    def tensor(self, name, *shape, deviation, start=0.0):
        fresh = start + deviation * torch.randn(shape, generator=self.generator) if self.values is None else self.values[name]
        self.parameters[name] = nn.Parameter(fresh.to(self.dtype).clone(memory_format=torch.contiguous_format))
        return self.parameters[name]

    def gate(self, config, name, width, outputs=1, bias_shape=None):
        """(x, whether x is of a bidirectional stack) -> [1, T, outputs]"""
        kind = config["gate"]
        if kind not in ("running", "whole"):
            return lambda x, whole: torch.full((1, x.shape[1], 1), 1.0 if kind is None else kind, dtype=x.dtype)
        weight = self.tensor(name + ".weight", outputs, width, deviation=0.3)
        bias = self.tensor(name + ".bias", *(bias_shape or (1, outputs)), deviation=0.5)
        return lambda x, whole: mean_gate(x, weight, bias, whole or kind == "whole")

    def replace(self, name, deviation):
        """Trains a copy of a base tensor; linears are stored [outputs, inputs]."""
        value = self.base.get_parameter(name).detach()
        transposed = value.dim() == 2 and type(self.base.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
        value = value.T if transposed else value
        self.replaced[name] = self.tensor(name, *value.shape, deviation=deviation, start=value), transposed


def add_prefix(r, c):
    p, t5 = c["num_virtual_tokens"], r.config.is_encoder_decoder
    if c["text_after_prefix"] and not t5:
        r.first_position = p
    groups = {"encoder_prefix": ("encoder.", "self_attention"), "self_prefix": ("decoder.", "self_attention"), "cross_prefix": ("decoder.", "cross_attention")}
    for name, (stack, end) in groups.items():
        modules = [m for n, _, m in sublayers(r.base) if n.startswith(stack) and n.endswith(end)] if c[name] else []
        if not modules:
            continue
        heads = getattr(r.config, "num_key_value_heads", None) or r.config.num_attention_heads
        size = r.config.d_kv if t5 else modules[0].head_dim
        table = r.tensor(name, p, 2 * len(modules) * heads * size, deviation=1.0)
        biased = t5 and c["position_bias"] and end == "self_attention"
        for layer, module in enumerate(modules):
            gate = r.gate(c, f"{name}.{layer}.gate", r.config.hidden_size, 1 if c["shared_gates"] else 2)

            def before(module, args, kwargs, layer=layer, gate=gate, table=table, first=modules[0], whole=stack == "encoder.", biased=biased):
                x = args[0] if args else kwargs["hidden_states"]
                keys, values = table.view(p, -1, 2, heads, size)[:, layer].unbind(1)
                total = p + x.shape[1]
                bias = first.compute_bias(total, total)[:, :, p:, :p] if biased else 0
                module.prefix = types.SimpleNamespace(keys=keys, values=values, gates=gate(x, whole), bias=bias)

            module.register_forward_pre_hook(before, with_kwargs=True)


def add_lora(r, c):
    for name, module in linears(r.base).items():
        if name.rpartition(".")[2] not in c["target_modules"]:
            continue
        inputs, outputs = sizes(module)
        a = r.tensor(f"base_model.model.{name}.lora_A.weight", c["r"], inputs, deviation=inputs ** -0.5)
        b = r.tensor(f"base_model.model.{name}.lora_B.weight", outputs, c["r"], deviation=0.3)
        gate = r.gate(c, f"base_model.model.{name}.lora_gate", inputs)
        # Cross attention's keys and values are made from the encoder's rows.
        whole = name.startswith("encoder.") or name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        module.register_forward_hook(lambda m, args, y, a=a, b=b, gate=gate, whole=whole: y + gate(args[0], whole) * (args[0] @ a.T @ b.T))


def add_adapters(r, c):
    wanted = {"self_attention": c["mh_adapter"], "cross_attention": c["cross_adapter"], "feed_forward": c["output_adapter"]}
    activation, d, width = {"relu": F.relu, "swish": F.silu}[c["non_linearity"]], r.config.hidden_size, c["bottleneck"]
    for name, norm, body in sublayers(r.base):
        if not wanted[name.rpartition(".")[2]]:
            continue
        down, down_bias = r.tensor(name + ".adapter_down.weight", width, d, deviation=d ** -0.5), r.tensor(name + ".adapter_down.bias", width, deviation=0.2)
        up, up_bias = r.tensor(name + ".adapter_up.weight", d, width, deviation=0.15), r.tensor(name + ".adapter_up.bias", d, deviation=0.05)
        gate = r.gate(c, name + ".gate", d, bias_shape=(1,))
        norm.register_forward_pre_hook(lambda m, args, body=body: setattr(body, "residual", args[0]))

        def after(body, args, output, down=down, down_bias=down_bias, up=up, up_bias=up_bias, gate=gate, whole=name.startswith("encoder.")):
            y = output[0] if isinstance(output, tuple) else output
            h = body.residual if c["is_parallel"] else body.residual + y if c["original_ln_before"] else y
            y = y + c["scaling"] * gate(h, whole) * (activation(h @ down.T + down_bias) @ up.T + up_bias)  # the model adds the residual
            return (y,) + output[1:] if isinstance(output, tuple) else y

        body.register_forward_hook(after)


def add_bitfit(r, c):
    targets = c.get("target_modules")
    named = {n: m for n, m in linears(r.base).items() if targets is None or n.rpartition(".")[2] in targets}
    biases = [n for n, _ in r.base.named_parameters() if n.endswith(".bias") and (targets is None or n.removesuffix(".bias") in named)]
    for name in biases:
        r.replace(name, 0.1)
    if targets is None and biases:
        return
    for name, module in named.items():
        if name + ".bias" not in biases:
            bias = r.tensor(name + ".bias", sizes(module)[1], deviation=0.1)
            module.register_forward_hook(lambda m, args, y, bias=bias: y + bias)


def add_full(r, c):
    if c["part"] == "head":
        tied = r.base.get_output_embeddings().weight is r.base.get_input_embeddings().weight
        names = [n for n, p in r.base.named_parameters() if p is r.base.get_output_embeddings().weight] if tied else ["lm_head.weight"]
    else:
        last = len(layers(r.base)) - c["layers"]
        top = [id(p) for _, _, layer in layers(r.base)[last:] for p in layer.parameters()]
        names = [n for n, p in r.base.named_parameters() if id(p) in top or n.startswith(("model.norm.", "transformer.ln_f.", "decoder.final_layer_norm."))]
    for name in names:
        r.replace(name, 0.03)


PARTS = {"PERMAFROST_PREFIX_TUNING": add_prefix, "LORA": add_lora, "PERMAFROST_ADAPTER": add_adapters, "PERMAFROST_BITFIT": add_bitfit, "PERMAFROST_FULL": add_full}


# ---- configs, in the fields of our files -----------------------------------------------------------------------------------

def gates(kind, shared=True):
    return {"gate": kind, "shared_gates": shared}


def prefix(base, gate, after, biased=False):
    t5 = base.config.is_encoder_decoder
    return {"peft_type": "PERMAFROST_PREFIX_TUNING", "num_virtual_tokens": 3, "encoder_prefix": t5, "self_prefix": True, "cross_prefix": t5,
            "prefix_projection": False, "encoder_hidden_size": 0, "embedding_size": 0, "dropout": 0.0, "position_bias": biased,
            "text_after_prefix": after, "leave_out": [], **gate}


def adapter(gate=gates(None), **fields):
    return {"peft_type": "PERMAFROST_ADAPTER", "bottleneck": 3, "layer_bottlenecks": {}, "mh_adapter": False, "cross_adapter": False,
            "output_adapter": True, "is_parallel": False, "non_linearity": "relu", "scaling_kind": "fixed", "scaling": 1.0,
            "original_ln_before": True, "original_ln_after": True, "residual_before_ln": True, "adapter_residual_before_ln": False,
            "ln_before": False, "ln_after": False, "dropout": 0.0, "leave_out": [], "adapter_drop": 0, "init_weights": "bert", **gate, **fields}


def lora(base, shape, gate):
    return {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False, "bias": "none",
            "lora_bias": False, "fan_in_fan_out": shape == "gpt2", "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {},
            "layers_to_transform": None, "exclude_modules": None, "target_modules": ref.DEFAULT_TARGETS[shape], **gate}


def union(*parts):
    return {"peft_type": "PERMAFROST_UNIPELT", "parts": list(parts)}


def configs(base, shape, world):
    """{kind: config}"""
    found = {}
    if world in THREE:
        separate, shared = gates("running", False), gates("running")
        parallel = adapter(is_parallel=True, scaling=4.0, init_weights="mam_adapter")
        found |= {
            "unipelt": union(prefix(base, separate, after=True), lora(base, shape, separate), adapter(separate)),
            "unipelt-shared": union(prefix(base, shared, after=False), lora(base, shape, shared), adapter(shared)),
            "houlsby": adapter(mh_adapter=True, non_linearity="swish", original_ln_before=False),
            "parallel": parallel,
        }
        if shape == "llama":
            found["unipelt-other"] = union(prefix(base, gates(0.5), after=True), lora(base, shape, gates(0.75)), adapter(gates("whole")))
        else:
            found["mam"] = union(prefix(base, gates(None), after=True, biased=True), parallel)
    if world in THREE + ("qwen2-1",):
        found["bitfit"] = {"peft_type": "PERMAFROST_BITFIT"}
    if world == "qwen2-1":  # q_proj has a bias, o_proj none
        found["bitfit-targets"] = {"peft_type": "PERMAFROST_BITFIT", "target_modules": ["q_proj", "o_proj"], "layers_to_transform": None,
                                   "exclude_modules": None}
    if world in ("t5-v1_0-1", "llama-1"):  # a tied and an own head
        found["head"] = {"peft_type": "PERMAFROST_FULL", "part": "head", "layers": 0}
    if world == "gpt2-1":
        found["top-layers"] = {"peft_type": "PERMAFROST_FULL", "part": "top-layers", "layers": 1}
    return found


# ---- files -----------------------------------------------------------------------------------------------------------------

def make_norms_exact(base):
    """transformers computes these norms in f32 whatever the model is."""
    def norm(module, x):
        epsilon = module.variance_epsilon
        return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)

    for module in base.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = functools.partial(norm, module)


def check_against_differences(name, model, lines):
    """The gradient along a random direction against the loss's central difference, in f64."""
    gradient = ref.gradients(model, model.parameters, lines)
    generator, step, losses = torch.Generator().manual_seed(5), 1e-7, []
    direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.parameters.items()}
    with torch.no_grad():
        for factor in (1, -2, 1):
            for n, p in model.parameters.items():
                p.add_(direction[n], alpha=factor * step)
            _, _, total, tokens = ref.forward_file(model, lines)
            losses.append(total / tokens)
    slope, along = (losses[0] - losses[1]) / (2 * step), sum((gradient[n] * direction[n]).sum().item() for n in direction)
    if abs(slope - along) > 1e-6 * max(abs(along), 1e-2):
        raise RuntimeError(f"{name}: the gradient along a direction is {along}, the difference of the loss {slope}")


def write_case(name, base, config, seed, lines, folder):
    model = Reference(base, config, seed=seed)
    values = {n: p.detach().clone() for n, p in model.parameters.items()}
    check_against_differences(name, Reference(base, config, values, dtype=torch.float64), lines)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as f:
        json.dump({"base_model_name_or_path": "base", "inference_mode": True, "task_type": ref.task_type(base), **config}, f, indent=2)
        f.write("\n")
    save_file(values, os.path.join(folder, "adapter_model.safetensors"))
    in_f64 = Reference(base, config, values, dtype=torch.float64)
    write_figures(name, model, model.parameters, in_f64, in_f64.parameters, lines, folder, GRADIENT_FLOOR if name.startswith(("unipelt", "bitfit")) else 0.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(HERE, "adapters"))
    parser.add_argument("--kinds", help="some of the kinds, such as unipelt,bitfit")
    parser.add_argument("--any-version", action="store_true", help="run with other versions than the pinned ones")
    args = parser.parse_args()
    ref.require_versions(args.any_version)
    ref.set_up()
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, eager_mask)
    wanted = args.kinds.split(",") if args.kinds else None
    for number, world in enumerate(THREE + ("qwen2-1",)):
        shape = world.rpartition("-")[0]
        base = ref.load_base(os.path.join(HERE, "models", world))
        lines = ref.read_jsonl(os.path.join(HERE, "models", world, "data.jsonl"))
        for kind, config in configs(base, shape, world).items():
            if wanted is None or kind in wanted:
                write_case(f"{kind} {world}", base, config, 2000 + 7 * number + len(kind), lines, os.path.join(args.out, kind, world))


if __name__ == "__main__":
    sys.exit(main())
