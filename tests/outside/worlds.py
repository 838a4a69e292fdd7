"""Fresh random models for compare.py: a base folder with tokenizer and data, adapters, and the reference models of all of them."""
import os
import random

import torch
from peft import AdaLoraConfig

import reference as ref
import texts

LOGITS, LOSS, GRADIENT, ADAMW = 2e-5, 1e-5, 1e-3, 2e-3  # the contract's bounds for models up to 4 layers


def fresh_sizes(shape, vocab, rng):
    kv = rng.choice([1, 2, 3])
    heads = kv * rng.choice([1, 2, 3])
    head = 2 * rng.randint(2, 6)
    d = heads * rng.randint(3, 6) if heads > 3 else heads * rng.randint(7, 12)
    if shape in ("qwen2", "gpt2"):
        d = heads * head
    return dict(vocab=vocab, d=d, head=head + (1 if ref.is_t5(shape) else 0), heads=heads, kv=kv, ff=2 * rng.randint(15, 40) + 1,
                layers=rng.randint(1, 4), decoder_layers=rng.randint(1, 4), buckets=2 * rng.randint(4, 18),
                distance=rng.randint(40, 160), theta=float(rng.choice([500, 10000, 54321, 500000])), positions=260,
                tied=rng.random() < 0.5, window=rng.choice([None, 1000]), eps=rng.choice([1e-5, 1e-6]))


def fresh_lines(t5, vocab, rng):
    lines = []
    lengths = [1, rng.randint(130, 200), 2] + [rng.randint(3, 40) for _ in range(6)]
    rng.shuffle(lengths)
    for i, length in enumerate(lengths):
        ids = [rng.randrange(3, vocab) for _ in range(length)]
        labels = [rng.randrange(3, vocab) for _ in range(rng.choice([1, 2, 6, 140 if i == 0 else 9]))] if t5 else list(ids)
        labels = [-100 if rng.random() < 0.25 * (i % 3) else x for x in labels]
        lines.append({"input_ids": ids, "labels": labels})
    lines[rng.randrange(1, len(lines))]["labels"] = [-100] * (4 if t5 else len(lines[-1]["input_ids"]))
    for line in lines:
        if not t5 and len(line["labels"]) != len(line["input_ids"]):
            line["labels"] = [-100] * len(line["input_ids"])
    if t5 or len(lines[0]["labels"]) > 1:
        lines[0]["labels"][-1] = 5
    return lines


class World:
    """One shape: its base folder, data, adapters and reference models."""

    def __init__(self, shape, seed, root):
        self.shape, self.rng = shape, random.Random(f"{shape} {seed}")
        self.folder = os.path.join(root, shape)
        self.base_folder = self.path("base")
        os.makedirs(self.base_folder)
        self.t5 = ref.is_t5(shape)
        vocab = texts.make_tokenizer(shape, self.base_folder, self.rng)
        self.vocab = vocab + self.rng.choice([1, 3, 5])
        self.targets = ref.BROAD_TARGETS[shape]
        self.embedding = "wte" if shape == "gpt2" else "embed_tokens"
        self.norm = "final_layer_norm" if self.t5 else "ln_f" if shape == "gpt2" else "norm"
        self.data = self.path("data.jsonl")
        for _ in range(20):
            self.draw()
            if self.well_conditioned():
                break
        else:
            raise RuntimeError(f"{shape}: 20 random models in a row amplify rounding too much to be compared")

    def draw(self):
        self.sizes = fresh_sizes(self.shape, self.vocab, self.rng)
        self.model_seed = self.rng.randrange(1 << 30)
        self.make(self.base_folder)
        self.base = ref.load_base(self.base_folder)
        self.lines = fresh_lines(self.t5, self.vocab, self.rng)
        ref.write_jsonl(self.data, self.lines)
        self.models, self.adapters = {"none": self.base}, {"none": None}
        self.add("prompt", ref.prompt_config(self.base, self.rng.randint(1, 9)))
        self.add("lora", self.lora(target_modules=self.targets))
        self.add("dora", self.lora(target_modules=self.targets, use_dora=True))
        self.add("ia3", ref.ia3_config(self.base, target_modules=self.targets, feedforward_modules=ref.BROAD_FEEDFORWARD[self.shape]))
        self.add("prefix", ref.prefix_config(self.base, self.rng.randint(1, 9)))
        self.add("norm", ref.norm_config(self.base))

    def make(self, folder, dtype=torch.float32, shard=None):
        ref.make_base(self.shape, self.sizes, self.model_seed, folder, dtype, shard, strength=1.0)

    def well_conditioned(self):
        """Torch's own f32 and f64 runs agree far within the bounds, and weights rounded to bf16 leave the gradient its direction."""
        for name in ("prompt", "lora", "dora", "ia3", "prefix", "norm"):
            model, parameters = self.fresh_copy(name)
            precise, rounded = ref.copy.deepcopy(model).double(), ref.copy.deepcopy(model)
            with torch.no_grad():
                for p in rounded.parameters():
                    p.copy_(p if p.requires_grad else p.bfloat16().float())
            logits, logits64 = (ref.forward_file(m, self.lines)[0] for m in (model, precise))
            if any((a - b).abs().max() > 0.25 * LOGITS * b.abs().max() for a, b in zip(logits, logits64)):
                return False
            g, g64, g16 = (ref.gradients(m, ref.adapter_parameters(m), self.lines) for m in (model, precise, rounded))
            if any(ref.relative_norm(g[n], g64[n]) > 0.05 * GRADIENT for n in g) or 1 - cosine(g, g16) > 0.002:
                return False
        return True

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def lora(self, **settings):
        return ref.lora_config(self.base, **{"r": self.rng.randint(3, 6), "lora_alpha": self.rng.randint(2, 7), **settings})

    def adalora(self, **settings):
        # PEFT adds its penalty on A and B to the loss in training; it is not part of what the adapter computes.
        return AdaLoraConfig(task_type=ref.task_type(self.base), base_model_name_or_path="base", total_step=100, orth_reg_weight=1e-12,
                             **{"init_r": 4, "target_r": 2, "lora_alpha": 6, "target_modules": self.targets, **settings})

    def add_pruned(self, name):
        """An AdaLoRA as the end of its training leaves it, read back from its file."""
        model = ref.attach(self.base, self.adalora(), self.rng.randrange(1 << 30))
        ref.prune_adalora(model)
        self.adapters[name] = self.path("adapters", name)
        ref.save_adapter(model, self.adapters[name])
        self.models[name] = ref.load_adapter(self.base, self.adapters[name], trainable=True)

    def add(self, name, config):
        self.models[name] = ref.attach(self.base, config, self.rng.randrange(1 << 30))
        self.adapters[name] = self.path("adapters", name)
        ref.save_adapter(self.models[name], self.adapters[name])

    def fresh_copy(self, name):
        """(model, parameters by file name) that training may change."""
        model = ref.copy.deepcopy(self.models[name])
        return model, ref.adapter_parameters(model)


def cosine(got, want):
    """Of two sets of tensors with the same names, each taken as one vector."""
    a = torch.cat([got[n].double().flatten() for n in want])
    b = torch.cat([w.double().flatten() for w in want.values()])
    return (a @ b / (a.norm() * b.norm())).item()
