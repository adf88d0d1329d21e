#!/usr/bin/env bash
# Installs the programs that the tests drive (rsync, sshd, Chromium, npm, venv) when root and when one is missing.
set -euo pipefail
missing=()
need() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || missing+=("$2"); }
need rsync rsync; need ssh openssh-client; need sshd openssh-server; need chromium chromium; need npm npm; need git git
"$(dirname "$0")/find_python.sh" >/dev/null 2>&1 || missing+=(python3 python3-venv)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ]; then
  echo "the tests need: apt-get install ${missing[*]}" >&2
  exit 3
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
