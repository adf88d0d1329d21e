#!/usr/bin/env bash
# Prints a Python >= 3.11 that can make a virtual environment, or says how to get one.
set -euo pipefail
for name in python3.11 python3.12 python3.13 python3.14 python3; do
  if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "$name"
    exit 0
  fi
done
echo "Dropforge needs Python 3.11 or newer with venv: apt-get install python3 python3-venv" >&2
exit 3
