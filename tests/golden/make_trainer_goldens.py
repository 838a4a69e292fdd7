#!/usr/bin/env python3
"""Makes trainer/<case>.{safetensors,json}: ten optimizer steps of torch and transformers optimizers in f64 on cases of models/, with
accumulation and schedules; P-tuning's encoders trained by PEFT; and initial prompts by PEFT and numpy (see README.md).

    python make_trainer_goldens.py [--out DIR] [--any-version]
"""
import argparse
import json
import os
import sys

import numpy
import torch
import transformers
from peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file

import reference as ref

STEPS = 10
HERE = os.path.dirname(os.path.abspath(__file__))
# Lester's recipe for the prompt, but for its rate of 0.3, at which ten steps on a random model amplify a rounding to the size of the
# change itself. transformers factors every matrix, so the prompt is given to it as a vector; its decay is kept apart, because T5X
# multiplies by 1 - wd and transformers subtracts lr * wd * p.
CASES = {
    "adafactor-prompt": dict(model="t5-v1_1-1", kind="prompt", optimizer="adafactor", lr=0.01, weight_decay=1e-5, z_loss=1e-4, clip=0.0,
                             batch_size=2, accumulate=2, schedule="constant", warmup=3),
    "adafactor-factored": dict(model="llama-1", kind="lora", optimizer="adafactor-factored", lr=1e-2, weight_decay=0.0, z_loss=0.0,
                               clip=0.0, batch_size=4, accumulate=1, schedule="linear", warmup=2),
    "sgd-lora": dict(model="gpt2-1", kind="lora", optimizer="sgd", lr=3e-2, momentum=0.9, weight_decay=0.01, z_loss=0.0, clip=1.0,
                     batch_size=3, accumulate=2, schedule="cosine", warmup=2),
    "sgd-prompt": dict(model="t5-v1_0-1", kind="prompt", optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, z_loss=0.0, clip=1.0,
                       batch_size=2, accumulate=3, schedule="inverse-sqrt", warmup=4),
    "adamw-prompt": dict(model="qwen2-1", kind="prompt", optimizer="adamw", lr=1e-2, weight_decay=0.01, z_loss=0.0, clip=1.0,
                         batch_size=2, accumulate=3, schedule="linear", warmup=3),
}


def losses(model, lines, z_loss):
    """The mean over the labelled tokens of all lines of cross-entropy + z_loss * logsumexp^2, as a tensor a line."""
    tokens = sum(ref.labelled(model, line) for line in lines)
    for line in lines:
        logits, total, count = ref.run_line(model, line)
        if not count:
            continue
        if z_loss:
            if not model.config.is_encoder_decoder:
                raise ValueError("z-loss: only encoder-decoder rows are lined up here")
            kept = torch.tensor(line["labels"]) != -100
            total = total + z_loss * (torch.logsumexp(logits, -1)[kept] ** 2).sum()
        yield total / tokens


def make_optimizer(z, parameters):
    if z["optimizer"] == "sgd":
        return torch.optim.SGD(parameters.values(), lr=z["lr"], momentum=z["momentum"], weight_decay=z["weight_decay"])
    if z["optimizer"] == "adamw":
        return torch.optim.AdamW(parameters.values(), lr=z["lr"], weight_decay=z["weight_decay"])
    return transformers.Adafactor(parameters.values(), lr=z["lr"], scale_parameter=z["optimizer"] == "adafactor-factored",
                                  relative_step=False, warmup_init=False, weight_decay=0.0)


def run(z, model, lines):
    parameters = ref.adapter_parameters(model)
    flat = z["optimizer"] == "adafactor"
    # A one-dimensional view has a second moment for every element, and the same RMS.
    owned = {n: torch.nn.Parameter(p.detach().reshape(-1).clone()) if flat else p for n, p in parameters.items()}
    optimizer = make_optimizer(z, owned)
    scheduler = {
        "constant": lambda: transformers.get_constant_schedule_with_warmup(optimizer, z["warmup"]),
        "linear": lambda: transformers.get_linear_schedule_with_warmup(optimizer, z["warmup"], STEPS),
        "cosine": lambda: transformers.get_cosine_schedule_with_warmup(optimizer, z["warmup"], STEPS),
        "inverse-sqrt": lambda: transformers.get_inverse_sqrt_schedule(optimizer, z["warmup"]),
    }[z["schedule"]]()
    batches = ref.file_order_batches(lines, z["batch_size"])
    records = []
    for _ in range(STEPS):
        step_lines = [line for _ in range(z["accumulate"]) for line in next(batches)]
        for p in parameters.values():
            p.grad = None
        loss = 0.0
        for part in losses(model, step_lines, z["z_loss"]):
            part.backward()
            loss += part.item()
        norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in parameters.values())).item()
        if z["clip"] > 0:
            torch.nn.utils.clip_grad_norm_(parameters.values(), z["clip"])
        records.append({"loss_with_z": loss, "lr": optimizer.param_groups[0]["lr"], "grad_norm": norm})
        with torch.no_grad():
            if flat:
                for n, p in parameters.items():
                    owned[n].mul_(1 - z["weight_decay"])  # T5X: not times the rate
                    owned[n].grad = p.grad.reshape(-1).clone()
            optimizer.step()
            if flat:
                for n, p in parameters.items():
                    p.copy_(owned[n].reshape(p.shape))
        scheduler.step()
    return {n: p.detach().clone() for n, p in parameters.items()}, records


def make_case(name, z, out):
    folder = os.path.join(HERE, "models", z["model"])
    lines = ref.read_jsonl(os.path.join(folder, "data.jsonl"))
    base = ref.load_base(folder)
    results = {}
    for dtype in (torch.float32, torch.float64):
        model = ref.load_adapter(base, os.path.join(folder, "adapters", z["kind"])).to(dtype)
        for n, p in model.named_parameters():
            if "lora_" in n or n.startswith("prompt_encoder."):
                p.requires_grad_(True)
        before = {n: p.detach().clone() for n, p in ref.adapter_parameters(model).items()}
        results[dtype] = run(z, model, lines) + (before,)
    after, _, before = results[torch.float32]
    precise, records, _ = results[torch.float64]
    spread = max(ref.relative_norm(after[n], precise[n], after[n] - before[n]) for n in after)
    save_file({n: p.float().contiguous() for n, p in precise.items()}, os.path.join(out, name + ".safetensors"))
    with open(os.path.join(out, name + ".json"), "w", encoding="utf-8") as f:
        json.dump({"settings": z, "versions": ref.versions(), "f32_against_f64": spread, "steps": records}, f, indent=1)
        f.write("\n")
    print(name, "f32 against f64:", f"{spread:.2e}", flush=True)


def make_p_tuning(out, name, encoder_type, layers):
    """PEFT's prompt encoder of random values: its table, and its values and table after ten AdamW steps in f64."""
    z = dict(model="llama-1", kind="ptuning", optimizer="adamw", lr=1e-2, weight_decay=0.01, z_loss=0.0, clip=1.0, batch_size=4,
             accumulate=1, schedule="constant", warmup=0, virtual_tokens=5, encoder_width=7,
             encoder=encoder_type.lower(), encoder_layers=layers)
    folder = os.path.join(HERE, "models", z["model"])
    lines = ref.read_jsonl(os.path.join(folder, "data.jsonl"))
    base = ref.load_base(folder)
    tensors, results = {}, {}
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(5)
        model = get_peft_model(ref.copy.deepcopy(base), PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=z["virtual_tokens"], encoder_hidden_size=z["encoder_width"],
            encoder_reparameterization_type=encoder_type, encoder_num_layers=layers)).to(dtype).eval()
        encoder = model.prompt_encoder["default"]
        initial = {n: p.detach().clone() for n, p in encoder.named_parameters()}
        before = model.get_prompt_embedding_to_save("default").detach().clone()
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=z["lr"], weight_decay=z["weight_decay"])
        batches = ref.file_order_batches(lines, z["batch_size"])
        records = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = 0.0
            for part in losses(model, next(batches), 0.0):
                part.backward()
                loss += part.item()
            norm = torch.nn.utils.clip_grad_norm_(encoder.parameters(), z["clip"]).item()
            records.append({"loss_with_z": loss, "lr": z["lr"], "grad_norm": norm})
            optimizer.step()
        results[dtype] = model.get_prompt_embedding_to_save("default").detach().clone()
        if dtype == torch.float32:
            tensors.update({"initial." + n: p for n, p in initial.items()})
            tensors["table.before"] = before
    tensors["table.after"] = results[torch.float64].float()
    spread = ref.relative_norm(results[torch.float32], results[torch.float64], results[torch.float32] - before.float())
    save_file({n: t.contiguous() for n, t in tensors.items()}, os.path.join(out, name + ".safetensors"))
    with open(os.path.join(out, name + ".json"), "w", encoding="utf-8") as f:
        json.dump({"settings": z, "versions": ref.versions(), "f32_against_f64": spread, "steps": records}, f, indent=1)
        f.write("\n")
    print(name, "f32 against f64:", f"{spread:.2e}", flush=True)


class Tokens:
    """The tokenizer that PEFT asks for, made of given ids: which ids a text has is tested elsewhere."""

    ids = []

    @classmethod
    def from_pretrained(cls, *_, **__):
        return cls()

    def __call__(self, *_, **__):
        return {"input_ids": list(self.ids)}


def make_initial_prompts(out):
    """Of 5 rows: PEFT's TEXT from fewer ids (tiled) and from more (truncated); means of label pieces by numpy; a file."""
    base = ref.load_base(os.path.join(HERE, "models", "llama-1"))
    tensors = {}
    transformers.AutoTokenizer.from_pretrained = Tokens.from_pretrained
    for name, Tokens.ids in (("tiled", [7, 30, 99]), ("truncated", [1, 2, 3, 4, 5, 6, 7, 8])):
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, prompt_tuning_init="TEXT",
                                    prompt_tuning_init_text="any", tokenizer_name_or_path="any")
        model = get_peft_model(ref.copy.deepcopy(base), config)
        tensors[name] = ref.adapter_parameters(model)["prompt_embeddings"].detach().clone()
    table = base.get_input_embeddings().weight.detach().double().numpy()
    means = [table[ids].mean(axis=0) for ids in ([4], [10, 20, 33])]
    tensors["labels"] = torch.from_numpy(numpy.stack(means)).float()
    save_file(tensors, os.path.join(out, "initial_prompts.safetensors"))
    numpy.save(os.path.join(out, "prompt.npy"), tensors["tiled"].numpy())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(HERE, "trainer"))
    parser.add_argument("--any-version", action="store_true", help="run with other versions than the pinned ones")
    args = parser.parse_args()
    ref.require_versions(args.any_version)
    ref.set_up()
    os.makedirs(args.out, exist_ok=True)
    for name, z in CASES.items():
        make_case(name, z, args.out)
    make_p_tuning(args.out, "ptuning", "MLP", 2)
    make_p_tuning(args.out, "ptuning-lstm", "LSTM", 2)
    make_initial_prompts(args.out)


if __name__ == "__main__":
    sys.exit(main())
