#!/usr/bin/env bash
# Runs the long reliability runners in scripts/reliability/; a broken promise ends it with its exit code.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -m pip install --quiet atheris # the fuzzer of fuzz_gates.py; nothing else needs it
export PYTHONPATH=tests # the builders that tests use too
for runner in $(grep -l __main__ scripts/reliability/*.py); do
  echo "== $runner"
  name=${runner##*/}
  .venv/bin/python -m "scripts.reliability.${name%.py}"
done
