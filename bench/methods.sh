#!/usr/bin/env bash
# Every method on one base and data set at equal steps, as a Markdown table: trained values, accuracy of each seed, and
# of a step of 16 x 128 tokens on the shape of SmolLM2-135M, one thread, bf16: CPU seconds and memory above the weights.
#
#   bench/methods.sh BINARY OUT STEPS "SEEDS" [FLAGS OF train: --base, --data, --eval-data, --task, --batch-size ...]
#   COST=0 bench/methods.sh ...      without the costs
#
# All methods train at once on the one base (train --runs), each to what it gives alone.
set -euo pipefail
binary="$1" out="$2" steps="$3" seeds="$4"
shift 4
mkdir -p "$out"

# name | flags of its run, as JSON
methods=(
  'prompt|"method": "prompt"'
  'ptuning|"method": "ptuning"'
  'prefix|"method": "prefix"'
  'prefix, projected|"method": "prefix", "prefix_projection": true, "lr": 0.001'
  'lora|"method": "lora"'
  'dora|"method": "dora"'
  'ia3|"method": "ia3"'
  'adapter (Pfeiffer)|"method": "adapter"'
  'adapter (Houlsby)|"method": "adapter", "adapter_form": "houlsby"'
  'parallel-adapter|"method": "parallel-adapter"'
  'bitfit|"method": "bitfit"'
  'norm|"method": "norm"'
  'head|"method": "head"'
  'top-layers (1)|"method": "top-layers"'
  'unipelt|"method": "unipelt"'
  'unipelt, no gates|"method": "unipelt", "gates": "none"'
)

for seed in $seeds; do
  runs="$out/runs-$seed.json"
  {
    echo '['
    for i in "${!methods[@]}"; do
      [ "$i" = 0 ] || echo ','
      echo "{${methods[$i]#*|}, \"seed\": $seed, \"out\": \"$out/$seed/$i\"}"
    done
    echo ']'
  } > "$runs"
  "$binary" train --runs "$runs" --steps "$steps" "$@" 2> "$out/log-$seed"
done

# A figure of the last evaluation of a run.
accuracy() { grep -o '"eval_accuracy": *[0-9.e-]*' "$1/metrics.jsonl" | tail -n 1 | cut -d: -f2 | tr -d " "; }
field() { grep -o "\"$1\": *[0-9.e+-]*" | head -n 1 | cut -d: -f2; }

echo "| method | trained values | accuracy after $steps steps (seeds $seeds) | CPU s a step | MB above the weights |"
echo "|---|---|---|---|---|"
first="${seeds%% *}"
for i in "${!methods[@]}"; do
  name="${methods[$i]%%|*}"
  trained="$(grep -o "^$out/$first/$i: training [0-9]*" "$out/log-$first" | grep -o '[0-9]*$')"
  figures=""
  for seed in $seeds; do figures+="$(printf '%.4f' "$(accuracy "$out/$seed/$i")") "; done
  cost=" - | - "
  method="$(sed 's/.*"method": "\([a-z0-9-]*\)".*/\1/' <<< "${methods[$i]}")"
  if [ "${COST:-1}" != 0 ]; then
    if row="$("$binary" bench step --shape smollm2-135m --method "$method" --precision bf16 --batch-size 16 --tokens 128 \
      --threads 1 --warmup 1 --steps 3 2> /dev/null)"; then
      cpu="$(field cpu_min <<< "$row")" activations="$(field activation_mb <<< "$row")" workspace="$(field workspace_mb <<< "$row")"
      cost="$(awk -v c="$cpu" -v a="$activations" -v w="$workspace" 'BEGIN { printf " %.2f | %.0f ", c, a + w }')"
    fi
  fi
  echo "| $name | $trained | $figures|$cost|"
done
