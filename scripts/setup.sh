#!/usr/bin/env bash
# Makes .venv with the project and its test tools in it; does nothing when that has been done for these very files.
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv/.setup-stamp
state=$( (pwd; cat pyproject.toml setup.py constraints.txt monitoring/ui/package-lock.json 2>/dev/null || true) | sha256sum)
if [ -x .venv/bin/dropforge ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then exit 0; fi
[ -x .venv/bin/python ] || "$(scripts/find_python.sh)" -m venv .venv
echo "installing into .venv (torch makes the first time long)" >&2
.venv/bin/python -m pip install --quiet --constraint constraints.txt setuptools
.venv/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation \
  --config-settings editable_mode=compat --editable ".[dev,notify]"
scripts/page_assets.sh
printf '%s' "$state" > "$stamp"
