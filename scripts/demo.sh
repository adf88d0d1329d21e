#!/usr/bin/env bash
# The demo: everything once, in a fresh root demo/<UTC time>/. DEMO_KEEP=1 leaves it running.
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/python -m scripts.demo "$@"
