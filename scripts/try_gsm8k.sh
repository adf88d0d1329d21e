#!/usr/bin/env bash
# All of GSM8K through the whole chain with the embedded model: scripts/try_gsm8k.sh DATA_DIR (the folder with train.jsonl)
set -euo pipefail
data=$(realpath "${1:?usage: scripts/try_gsm8k.sh DATA_DIR, the folder that holds train.jsonl}")
cd "$(dirname "$0")/.."
exec .venv/bin/python -m scripts.try_gsm8k "$data"
