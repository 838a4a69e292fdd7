#!/usr/bin/env python3
"""Makes combine/: adapters that PEFT's add_weighted_adapter makes of others (see README.md).

    python make_combine_goldens.py [--out DIR] [--any-version]
"""
import argparse
import os
import sys

import reference as ref
from peft import PeftModel

HERE = os.path.dirname(os.path.abspath(__file__))
MORE_TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}
# The adapter of models/ (default targets, rank 3 or 4), one of its rank with other targets, one of another rank with rsLoRA.
WEIGHTS = {"linear": {"first": 0.7, "second": -0.4}, "cat": {"first": 0.7, "third": -0.4, "second": 1.5}}


def make(name, out):
    folder = os.path.join(HERE, "models", name)
    base = ref.load_base(folder)
    shape = name.rsplit("-", 1)[0]
    first = os.path.join(folder, "adapters", "lora")
    rank = ref.load_adapter(base, first).peft_config["default"].r
    second = ref.lora_config(base, r=rank, lora_alpha=5, target_modules=MORE_TARGETS[shape])
    third = ref.lora_config(base, r=rank + 2, lora_alpha=3, use_rslora=True, target_modules=ref.DEFAULT_TARGETS[shape])
    if shape == "gpt2":
        second.fan_in_fan_out = third.fan_in_fan_out = True
    for label, config, seed in (("second", second, 21), ("third", third, 22)):
        ref.save_adapter(ref.attach(base, config, seed), os.path.join(out, name, label))
    model = PeftModel.from_pretrained(ref.copy.deepcopy(base), first, adapter_name="first")
    for label in ("second", "third"):
        model.load_adapter(os.path.join(out, name, label), adapter_name=label)
    for how, weights in WEIGHTS.items():
        model.add_weighted_adapter(list(weights), list(weights.values()), adapter_name=how, combination_type=how)
        tensors = ref.get_peft_model_state_dict(model, adapter_name=how)
        path = os.path.join(out, name, how + ".safetensors")
        ref.save_file({n: t.detach().contiguous() for n, t in tensors.items()}, path)
    for root, _, files in os.walk(os.path.join(out, name)):
        for f in files:
            os.chmod(os.path.join(root, f), 0o644)
    print(name, "rank", rank, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(HERE, "combine"))
    parser.add_argument("--any-version", action="store_true", help="run with other versions than the pinned ones")
    args = parser.parse_args()
    ref.require_versions(args.any_version)
    ref.set_up()
    for name in ("llama-1", "gpt2-1"):
        make(name, args.out)


if __name__ == "__main__":
    sys.exit(main())
