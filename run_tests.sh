#!/usr/bin/env bash
# Installs what is needed, builds, and runs the tests: run_tests.sh [release|asan|tsan]
#   release   all tests, optimized (g++)
#   asan      all tests under the address and undefined-behaviour sanitizers (clang)
#   tsan      the tests that run threads under the thread sanitizer (clang)
set -euo pipefail
cd "$(dirname "$0")"
preset="${1:-release}"
case "$preset" in
  release) packages=() tests=() ;;
  asan) packages=(--checks) tests=() ;;
  tsan)
    packages=(--checks)
    mapfile -t tests < <(basename -s .cc tests/kernels/*_test.cc)
    tests+=(thread_pool_test memory_test weight_test golden_test trainable_base_test frozen_test) ;;
  *) echo "run_tests.sh: '$preset' is none of release, asan, tsan" >&2; exit 2 ;;
esac
scripts/install_packages.sh "${packages[@]}"
cmake --preset "$preset" >/dev/null
if [ ${#tests[@]} -eq 0 ]; then
  cmake --build --preset "$preset"
  ctest --preset "$preset" -j 2
else
  cmake --build --preset "$preset" --target "${tests[@]}"
  ctest --preset "$preset" -j 2 -R "/($(IFS='|'; echo "${tests[*]}"))\$"
fi
