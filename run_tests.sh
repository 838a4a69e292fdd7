#!/usr/bin/env bash
# Installs what is needed, builds and runs all tests. `run_tests.sh asan` and `run_tests.sh tsan` do so under
# sanitizers (tsan: the threaded tests only).
set -euo pipefail
cd "$(dirname "$0")"
preset="${1:-release}"
scripts/install_packages.sh
cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset"
filter=()
if [ "$preset" = tsan ]; then filter=(-R 'thread_pool|gemm_test|attention_test|golden'); fi
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=1}"
ctest --preset "$preset" -j 2 "${filter[@]}"
