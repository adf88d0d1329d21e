#!/usr/bin/env bash
# Installs the page's chart library (uPlot) from npm; without npm the page shows tables only.
set -euo pipefail
cd "$(dirname "$0")/../monitoring/ui" 2>/dev/null || exit 0
[ -e package-lock.json ] || exit 0
if command -v npm >/dev/null; then
  npm ci --silent --ignore-scripts --no-audit --no-fund
else
  echo "npm is missing: the monitor's page will show tables without charts (apt-get install npm)" >&2
fi
