#!/usr/bin/env bash
# Everything the project promises, on two cores: style, types, all tests with branch coverage. Extra words go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/system_packages.sh test
scripts/setup.sh
scripts/check.sh
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n 2 --dist worksteal --cov --cov-report=term "$@"
