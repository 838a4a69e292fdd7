#!/usr/bin/env bash
# Optimizer steps of Permafrost and of a PyTorch + PEFT peer program in turns, one thread, one JSON line each.
#   compare_step.sh PERMAFROST "PYTHON torch_peft.py" [steps]
set -euo pipefail
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=100000000
permafrost=$1
read -r -a peer <<<"$2"
steps=${3:-3}
row() { # shape method precision tokens batch
  "$permafrost" bench step --shape "$1" --method "$2" --precision "$3" --tokens "$4" --batch-size "$5" --steps "$steps"
  "${peer[@]}" --model "$1" --method "$2" --dtype "$3" --tokens "$4" --batch "$5" --steps "$steps"
}
for precision in bf16 f32; do
  row smollm2-135m prompt $precision 128 16
  row smollm2-135m lora $precision 128 16
  row t5-base prompt $precision 128 32
done
for method in lora prefix ia3; do
  row t5-base $method bf16 128 16
  row gpt2 $method bf16 128 16
done
