#!/usr/bin/env bash
# Runs every benchmark in scripts/bench/, one after the other; each prints its own table.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=tests # the builders that tests use too
for bench in $(grep -l __main__ scripts/bench/*.py); do
  echo "== $bench"
  name=${bench##*/}
  .venv/bin/python -m "scripts.bench.${name%.py}" "$@"
done
