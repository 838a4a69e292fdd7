#!/usr/bin/env bash
# Installs what is needed, builds and runs all tests. `run_tests.sh asan` runs the tests of everything that reads files, of autograd
# and of training under the address and undefined-behaviour sanitizers; `run_tests.sh asan-all` all tests; `run_tests.sh tsan`
# the threaded ones under the thread sanitizer.
set -euo pipefail
cd "$(dirname "$0")"
kind="${1:-release}"
preset="${kind%-all}"
scripts/install_packages.sh
cmake --preset "$preset" >/dev/null
case "$kind" in
  asan) tests=(fuzz_smoke_test autograd_test frozen_test golden_adapter_test bad_input_test) ;;
  tsan) tests=(thread_pool_test gemm_test matmul_test attention_test norm_test golden_test) ;;
  *) tests=() ;;
esac
if [ ${#tests[@]} -gt 0 ]; then
  cmake --build --preset "$preset" --target "${tests[@]}"
  ctest --preset "$preset" -j 2 -R "/($(IFS='|'; echo "${tests[*]}"))\$"
else
  cmake --build --preset "$preset"
  ctest --preset "$preset" -j 2
fi
