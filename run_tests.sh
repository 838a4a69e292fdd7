#!/usr/bin/env bash
# Installs what is needed, builds and runs all tests. `run_tests.sh asan` runs them under the address and undefined-behaviour
# sanitizers, `run_tests.sh tsan` the threaded ones under the thread sanitizer.
set -euo pipefail
cd "$(dirname "$0")"
preset="${1:-release}"
scripts/install_packages.sh
cmake --preset "$preset" >/dev/null
if [ "$preset" = tsan ]; then
  threaded=(thread_pool_test gemm_test matmul_test attention_test norm_test golden_test)
  cmake --build --preset tsan --target "${threaded[@]}"
  ctest --preset tsan -j 2 -R "/($(IFS='|'; echo "${threaded[*]}"))\$"
else
  cmake --build --preset "$preset"
  ctest --preset "$preset" -j 2
fi
