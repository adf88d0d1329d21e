#!/usr/bin/env bash
# Runs the long reliability runners in scripts/reliability/; a broken promise ends it with its exit code.
set -euo pipefail
cd "$(dirname "$0")/.."
for runner in $(grep -l __main__ scripts/reliability/*.py); do
  echo "== $runner"
  name=${runner##*/}
  .venv/bin/python -m "scripts.reliability.${name%.py}" "$@"
done
