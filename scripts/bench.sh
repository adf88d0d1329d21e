#!/usr/bin/env bash
# Runs every benchmark in scripts/bench/, one after the other; each prints its own table.
set -euo pipefail
cd "$(dirname "$0")/.."
for bench in scripts/bench/[a-z]*.py; do
  echo "== $bench"
  name=${bench##*/}
  .venv/bin/python -m "scripts.bench.${name%.py}" "$@"
done
