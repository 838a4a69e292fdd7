#!/usr/bin/env bash
# Installs the library into a temporary tree, builds examples/embed against it as an outside project, and runs it.
#   run.sh SOURCE_DIR BUILD_DIR
set -euo pipefail
source_dir=$1
build_dir=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build_dir" --prefix "$work/prefix" >/dev/null
cmake -S "$source_dir/examples/embed" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_PREFIX_PATH="$work/prefix" >/dev/null
cmake --build "$work/build"
"$work/build/train_prompt" "$source_dir/tests/golden/models/llama-1" "$work/out"
test -f "$work/out/adapter_model.safetensors"
test -f "$work/out/adapter_config.json"
