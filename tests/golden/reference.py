"""The reference side of the agreement tests: transformers and PEFT on one line at a time.

Shared by make_model_goldens.py (stored expectations) and ../outside/compare.py (live comparison). A *line* is a dictionary
of the contract's pre-tokenized JSONL: {"input_ids": [...], "labels": [...], optional "adapter": NAME}. Lines are run one by
one, so no padding, no attention mask and no position id can differ from what a line alone would give. All of it is eager
attention, float32, one thread, deterministic, without dropout.
"""
import copy
import json
import math
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch  # noqa: E402  (the environment above has to be set first)
import torch.nn.functional as F  # noqa: E402
import peft  # noqa: E402
import transformers  # noqa: E402
from peft import IA3Config, LNTuningConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model, get_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

PINNED = {"torch": "2.15.0", "transformers": "5.23.0", "peft": "0.21.2"}
SHAPES = ("t5-v1_0", "t5-v1_1", "llama", "mistral", "qwen2", "gpt2")
BROAD_TARGETS = {
    "t5-v1_0": ["q", "k", "v", "o", "wi", "wo"],
    "t5-v1_1": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "mistral": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
# IA3's feed-forward modules among them, whose input is scaled.
BROAD_FEEDFORWARD = {
    "t5-v1_0": ["o", "wo"], "t5-v1_1": ["o", "wo"], "llama": ["o_proj", "down_proj"], "mistral": ["o_proj", "down_proj"],
    "qwen2": ["o_proj", "down_proj"], "gpt2": ["c_proj"],
}
DEFAULT_TARGETS = {
    "t5-v1_0": ["q", "v"], "t5-v1_1": ["q", "v"], "llama": ["q_proj", "v_proj"], "mistral": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"], "gpt2": ["c_attn"],
}


def set_up():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import warnings
    warnings.filterwarnings("ignore")


def versions():
    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__}


def require_versions(any_version):
    have = versions()
    wrong = [f"{k} {have[k]} (pinned: {v})" for k, v in PINNED.items() if have[k] != v]
    if wrong and not any_version:
        sys.exit("error: other versions than the pinned ones: " + ", ".join(wrong) +
                 "; install requirements.txt or pass --any-version")


def is_t5(shape):
    return shape.startswith("t5")


# ---- models ------------------------------------------------------------------------------------------------------------

def make_config(shape, z):
    """A transformers config. `z`: vocab, d, heads, head, kv, ff, layers, decoder_layers, buckets, distance, theta, positions,
    tied, window, eps."""
    if is_t5(shape):
        v10 = shape == "t5-v1_0"
        return transformers.T5Config(
            vocab_size=z["vocab"], d_model=z["d"], d_kv=z["head"], num_heads=z["heads"], d_ff=z["ff"],
            num_layers=z["layers"], num_decoder_layers=z["decoder_layers"],
            relative_attention_num_buckets=z["buckets"], relative_attention_max_distance=z["distance"],
            feed_forward_proj="relu" if v10 else "gated-gelu", layer_norm_epsilon=z["eps"], dropout_rate=0.0,
            tie_word_embeddings=v10, scale_decoder_outputs=v10, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    if shape == "gpt2":
        return transformers.GPT2Config(
            vocab_size=z["vocab"], n_embd=z["d"], n_head=z["heads"], n_layer=z["layers"], n_inner=z["ff"],
            n_positions=z["positions"], layer_norm_epsilon=z["eps"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=z["vocab"] - 1, eos_token_id=z["vocab"] - 1)
    common = dict(
        vocab_size=z["vocab"], hidden_size=z["d"], num_attention_heads=z["heads"], num_key_value_heads=z["kv"],
        intermediate_size=z["ff"], num_hidden_layers=z["layers"], max_position_embeddings=z["positions"],
        rms_norm_eps=z["eps"], attention_dropout=0.0, tie_word_embeddings=z["tied"], bos_token_id=1, eos_token_id=2,
        pad_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": z["theta"]})
    if shape == "llama":
        return transformers.LlamaConfig(head_dim=z["head"], **common)
    if shape == "mistral":
        return transformers.MistralConfig(head_dim=z["head"], sliding_window=z["window"], **common)
    if shape == "qwen2":
        if z["d"] != z["heads"] * z["head"]:
            raise ValueError("qwen2: transformers derives the head size from the width")
        return transformers.Qwen2Config(use_sliding_window=False, **common)
    raise ValueError(shape)


def randomize(model, generator, shape, d_kv, strength):
    """Fills every tensor: attention far from uniform, norms and biases away from 1 and 0, logits of a few units. Linear weights are
    N(0, strength / sqrt(inputs)): more makes the model amplify rounding."""
    done = set()
    for name, p in sorted(model.named_parameters(), key=lambda x: x[0]):
        if p.data_ptr() in done:
            continue
        done.add(p.data_ptr())
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float32)
        leaf = name.split(".")[-2]
        if "norm" in leaf or leaf.startswith("ln_"):
            value = 1.0 + 0.3 * noise if name.endswith("weight") else 0.2 * noise
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif leaf == "relative_attention_bias":
            value = noise
        elif leaf in ("shared", "embed_tokens", "wte"):
            value = 0.4 * noise
        elif leaf == "wpe":
            value = 0.3 * noise
        elif leaf == "lm_head":
            value = noise * 2.0 / math.sqrt(p.shape[1])
        else:
            fan_in = p.shape[0] if shape == "gpt2" else p.shape[1]
            gain = strength / math.sqrt(fan_in)
            if is_t5(shape) and leaf == "q":
                gain *= 1.6 / math.sqrt(d_kv)
            value = gain * noise
        with torch.no_grad():
            p.copy_(value)


def make_base(shape, sizes, seed, folder, base_dtype=torch.float32, max_shard=None, strength=1.3):
    """Writes a random model to `folder` and returns nothing: load_base reads it back, as anybody would."""
    config = make_config(shape, sizes)
    config.dtype = base_dtype
    generator = torch.Generator().manual_seed(seed)
    model_class = transformers.T5ForConditionalGeneration if is_t5(shape) else transformers.AutoModelForCausalLM
    model = model_class(config) if is_t5(shape) else model_class.from_config(config)
    randomize(model, generator, shape, sizes["head"], strength)
    model = model.to(base_dtype)
    extra = {"max_shard_size": max_shard} if max_shard else {}
    if shape != "t5-v1_1":
        model.save_pretrained(folder, **extra)
        return
    # transformers 5 builds every T5 with a tied head; only a file that holds another lm_head.weight makes it untied.
    model.save_pretrained(folder)
    path = os.path.join(folder, "model.safetensors")
    tensors = load_file(path)
    head = torch.randn(tensors["shared.weight"].shape, generator=generator) * 2.0 / math.sqrt(sizes["d"])
    tensors["lm_head.weight"] = head.to(base_dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    model = model_class.from_pretrained(folder, dtype=base_dtype)
    if torch.equal(model.lm_head.weight, model.shared.weight):
        raise RuntimeError("t5-v1_1: the head is tied")
    os.remove(path)
    model.save_pretrained(folder, **extra)


def load_base(folder, dtype=torch.float32):
    """The model of a folder in eval mode, eager attention, f32 whatever the file stores."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        t5 = json.load(f)["model_type"] == "t5"
    cls = transformers.AutoModelForSeq2SeqLM if t5 else transformers.AutoModelForCausalLM
    model = cls.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    for p in model.parameters():
        p.requires_grad_(False)
    return model


# ---- adapters ------------------------------------------------------------------------------------------------------------

def task_type(model):
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def prompt_config(model, virtual_tokens):
    return PromptTuningConfig(task_type=task_type(model), num_virtual_tokens=virtual_tokens, base_model_name_or_path="base")


def prefix_config(model, virtual_tokens, **settings):
    c = model.config
    layers, width = c.num_hidden_layers, {}
    if c.is_encoder_decoder:
        # PEFT takes the encoder's layers and d_model / heads, with which it cannot run these bases.
        layers, width = max(c.num_layers, c.num_decoder_layers), {"token_dim": c.num_heads * c.d_kv, "num_attention_heads": c.num_heads}
    elif c.model_type in ("llama", "mistral"):
        width = {"token_dim": c.num_key_value_heads * c.head_dim, "num_attention_heads": c.num_key_value_heads}
    return PrefixTuningConfig(task_type=task_type(model), num_virtual_tokens=virtual_tokens, num_layers=layers,
                              base_model_name_or_path="base", **width, **settings)


def norm_config(model):
    return LNTuningConfig(task_type=task_type(model), base_model_name_or_path="base")


def lora_config(model, **settings):
    return LoraConfig(task_type=task_type(model), base_model_name_or_path="base", **settings)


def ia3_config(model, **settings):
    return IA3Config(task_type=task_type(model), base_model_name_or_path="base", **settings)


def attach(model, config, seed, scale=None):
    """A PEFT model on a copy of `model` whose adapter tensors are all random: prompts N(0, 0.3), A kaiming-like, B non-zero,
    IA3's vectors N(1, 0.3), DoRA's magnitudes N(1, 0.2) times their start, copies of base tensors moved by N(0, 0.1)."""
    wrapped = get_peft_model(copy.deepcopy(model), config).eval()
    config.base_model_name_or_path = "base"  # get_peft_model writes the folder it was loaded from
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in adapter_parameters(wrapped).items():
            noise = torch.randn(p.shape, generator=generator)
            if name == "prompt_embeddings":
                p.copy_((scale or 0.3) * noise)
            elif "lora_A" in name:
                p.copy_(noise / math.sqrt(p.shape[1]))
            elif "ia3_l" in name:
                p.copy_(1 + (scale or 0.3) * noise)
            elif "lora_magnitude_vector" in name:
                p.mul_(1 + 0.2 * noise)  # it starts at the norms of W
            elif "lora_" not in name:
                p.add_((scale or 0.1) * noise)  # a trained copy of a base tensor
            else:
                p.copy_((scale or 0.15) * noise)
    return wrapped


def prune_adalora(wrapped):
    """As AdaLoRA's end of training leaves an adapter: some of each module's ranks kept, none of one module's."""
    pattern = {}
    for index, (name, p) in enumerate(n for n in wrapped.named_parameters() if "lora_E" in n[0]):
        keep = [(index + i) % 3 != 0 for i in range(p.shape[0])] if index != 1 else [False] * p.shape[0]
        with torch.no_grad():
            p.mul_(torch.tensor(keep).float()[:, None])
        pattern[name.replace("base_model.model.", "").replace(".default", "")] = keep
    wrapped.peft_config["default"].rank_pattern = pattern


def adapter_parameters(wrapped):
    """{name in the adapter file: trainable parameter}, in the model's order."""
    found = {}
    for name, p in wrapped.named_parameters():
        if not p.requires_grad:
            continue
        stored_name = name.replace(".default", "").replace(".modules_to_save", "")
        if stored_name.endswith(".lora_magnitude_vector.weight"):
            stored_name = stored_name[:-len(".weight")]
        found["prompt_embeddings" if name.startswith("prompt_encoder.") else stored_name] = p
    # An adapted or replaced embed_tokens makes PEFT store the frozen embedding beside its adapter.
    stored = [n for n in get_peft_model_state_dict(wrapped) if not n.endswith("embed_tokens.base_layer.weight")]
    if set(stored) != set(found):
        raise RuntimeError(f"names of the file {sorted(stored)} differ from those of the parameters {sorted(found)}")
    return found


def save_adapter(wrapped, folder):
    wrapped.save_pretrained(folder)
    readme = os.path.join(folder, "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    path = os.path.join(folder, "adapter_config.json")
    with open(path, encoding="utf-8") as f:
        config = json.load(f)
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()  # PEFT writes a set, in any order
    with open(path, "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2, sort_keys=True)


def load_adapter(model, folder, trainable=False):
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder, is_trainable=trainable).eval()


def virtual_tokens(model):
    """Rows that a causal soft prompt puts in front of the text's, else 0. A prefix has none."""
    if not isinstance(model, peft.PeftModel) or model.config.is_encoder_decoder:
        return 0
    config = model.peft_config[model.active_adapter]
    in_front = config.is_prompt_learning and config.peft_type != "PREFIX_TUNING"
    return config.num_virtual_tokens if in_front else 0


# ---- forward, loss, training ---------------------------------------------------------------------------------------------

def run_line(model, line):
    """(logits [rows, V], sum of the labelled tokens' losses, number of labelled tokens)."""
    ids = torch.tensor([line["input_ids"]])
    labels = torch.tensor([line["labels"]])
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False)
    logits = out.logits[0]
    prompt = virtual_tokens(model)
    if model.config.is_encoder_decoder:
        rows, targets = logits, labels[0]
    elif prompt:
        rows, targets = logits[prompt - 1:-1], labels[0]  # the last virtual token predicts labels[0]
    else:
        rows, targets = logits[:-1], labels[0, 1:]
    count = int((targets != -100).sum())
    if count == 0:
        return logits[prompt:], logits.sum() * 0.0, 0
    total = F.cross_entropy(rows, targets, ignore_index=-100, reduction="sum")
    own, theirs = total.item() / count, out.loss.item()
    if abs(own - theirs) > 2e-5 * max(1.0, abs(theirs)):
        raise RuntimeError(f"the mean of the labelled tokens {own} is not the model's own loss {theirs}")
    return logits[prompt:], total, count


def forward_file(model, lines):
    """([logits], [mean loss], total loss, labelled tokens) of every line, without gradients."""
    logits, losses, total, tokens = [], [], 0.0, 0
    with torch.no_grad():
        for line in lines:
            rows, loss, count = run_line(model, line)
            logits.append(rows)
            losses.append(loss.item() / count if count else 0.0)
            total += loss.item()
            tokens += count
    return logits, losses, total, tokens


def backward(model, parameters, lines):
    """Leaves the gradient of the mean loss over all labelled tokens of `lines` in .grad; (mean loss, labelled tokens)."""
    for p in parameters.values():
        p.grad = None
    tokens = sum(labelled(model, line) for line in lines)
    mean = 0.0
    for line in lines:
        _, loss, count = run_line(model, line)
        if count:
            (loss / tokens).backward()
            mean += loss.item() / tokens
    for p in parameters.values():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    return mean, tokens


def labelled(model, line):
    first = 0 if model.config.is_encoder_decoder or virtual_tokens(model) else 1
    return sum(1 for x in line["labels"][first:] if x != -100)


def gradients(model, parameters, lines):
    backward(model, parameters, lines)
    return {name: p.grad.detach().clone() for name, p in parameters.items()}


def file_order_batches(lines, size):
    """Endless batches in file order; an epoch's last batch is short."""
    while True:
        for i in range(0, len(lines), size):
            yield lines[i:i + size]


def train(model, parameters, lines, steps, batch_size, lr, accumulate=1, schedule="constant", warmup=0,
          weight_decay=0.01, clip=1.0, betas=(0.9, 0.999), epsilon=1e-8):
    """torch AdamW under transformers' schedules. Returns a list of {loss, lr, grad_norm, tokens}, a record a step."""
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, betas=betas, eps=epsilon, weight_decay=weight_decay)
    scheduler = {
        "constant": lambda: transformers.get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": lambda: transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps),
        "cosine": lambda: transformers.get_cosine_schedule_with_warmup(optimizer, warmup, steps),
        "inverse-sqrt": lambda: transformers.get_inverse_sqrt_schedule(optimizer, warmup),
    }[schedule]()
    batches = file_order_batches(lines, batch_size)
    records = []
    for _ in range(steps):
        step_lines = [line for _ in range(accumulate) for line in next(batches)]
        loss, tokens = backward(model, parameters, step_lines)
        norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in parameters.values())).item()
        if clip > 0:
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
        records.append({"loss": loss, "lr": optimizer.param_groups[0]["lr"], "grad_norm": norm, "tokens": tokens})
        optimizer.step()
        scheduler.step()
    return records


def needs_forward_passes(model):
    """Whether PEFT's own generation leaves the prefix out after the first token, as it does without a cache."""
    config = model.config
    prefix = isinstance(model, peft.PeftModel) and model.peft_config[model.active_adapter].peft_type == "PREFIX_TUNING"
    return prefix and config.is_encoder_decoder and config.num_decoder_layers > config.num_layers


def greedy_by_forward_passes(model, ids, max_new_tokens):
    """T5's greedy tokens, each from a forward pass over all before it."""
    prompt, new = torch.tensor([ids]), []
    with torch.no_grad():
        while len(new) < max_new_tokens and (not new or new[-1] != model.config.eos_token_id):
            decoder = torch.tensor([[model.config.decoder_start_token_id] + new])
            out = model(input_ids=prompt, attention_mask=torch.ones_like(prompt), decoder_input_ids=decoder, use_cache=False)
            new.append(int(out.logits[0, -1].argmax()))
    return new


def generate(model, ids, max_new_tokens, beams):
    """The new tokens, up to and including the first end token."""
    eos = model.config.eos_token_id
    prompt = torch.tensor([ids])
    config = model.config
    # 5.23 sizes T5's cache by the encoder's layer count, and raises IndexError when the decoder has more.
    cached = not (config.is_encoder_decoder and config.num_decoder_layers > config.num_layers)
    if needs_forward_passes(model):
        if beams > 1:
            raise ValueError("a T5 prefix on a base whose decoder has more layers: greedy only")
        return greedy_by_forward_passes(model, ids, max_new_tokens)
    with torch.no_grad():
        out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_new_tokens, num_beams=beams,
                             do_sample=False, pad_token_id=config.pad_token_id or 0, eos_token_id=eos, use_cache=cached)
    new = out[0].tolist()
    new = new[1:] if model.config.is_encoder_decoder else (new[len(ids):] if new[:len(ids)] == list(ids) else new)
    return new[:new.index(eos) + 1] if eos in new else new


# ---- files, deviations ---------------------------------------------------------------------------------------------------

def write_jsonl(path, lines):
    with open(path, "w", encoding="utf-8") as f:
        for line in lines:
            f.write(json.dumps(line) + "\n")


def read_jsonl(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


def relative_norm(got, want, scale=None):
    """norm of the difference over norm of `scale` (default: `want`), in f64; 0/0 is 0."""
    difference = (got.double() - want.double()).norm().item()
    size = (want if scale is None else scale).double().norm().item()
    return 0.0 if difference == 0.0 else difference / max(size, 1e-300)
