#!/usr/bin/env bash
# Formats the code, mends what ruff can mend by itself, writes the generated pages anew.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/ruff check --fix .
.venv/bin/ruff format .
.venv/bin/python scripts/make_docs.py
