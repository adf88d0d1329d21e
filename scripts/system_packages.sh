#!/usr/bin/env bash
# Installs missing system programs when root: `run` is what Dropforge itself needs, `test` also what the tests drive.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=()
need() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || missing+=("$2"); }
need rsync rsync
[ -x .venv/bin/python ] || scripts/find_python.sh >/dev/null 2>&1 || missing+=(python3 python3-venv)
if [ "${1:-run}" = test ]; then
  need ssh openssh-client; need sshd openssh-server; need chromium chromium; need npm npm; need git git; need strace strace; need curl curl; need systemd-analyze systemd; need mkfs.ext4 e2fsprogs; need mount mount
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
fi
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ]; then
  echo "missing: apt-get install ${missing[*]}" >&2
  [ "${1:-run}" = run ] && exit 0 || exit 3
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
