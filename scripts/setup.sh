#!/usr/bin/env bash
# Makes .venv with the project and its test tools in it; does nothing when that has been done for these very files.
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv/.setup-stamp
state=$( (pwd; cat pyproject.toml setup.py constraints.txt monitoring/ui/package-lock.json) | sha256sum)
if [ -x .venv/bin/dropforge ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then exit 0; fi
scripts/system_packages.sh run
if [ ! -x .venv/bin/python ]; then
  python=$(scripts/find_python.sh)
  "$python" -m venv .venv
fi
echo "installing into .venv (torch makes the first time long)" >&2
.venv/bin/python -m pip install --quiet --constraint constraints.txt setuptools
.venv/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation \
  --config-settings editable_mode=compat --editable ".[dev,notify,postgres]"
scripts/page_assets.sh
printf '%s' "$state" > "$stamp"
