#!/usr/bin/env bash
# Runs the long reliability runners in scripts/reliability/, or those named; one line for each at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
scripts/system_packages.sh test || exit $?
.venv/bin/python -m pip install --quiet atheris # the fuzzer of fuzz_gates.py; nothing else needs it
export PYTHONPATH=tests # the builders that tests use too
status=0 summary=() log=$(mktemp)
[ $# -gt 0 ] || set -- $(grep -l __main__ scripts/reliability/*.py | xargs -n1 basename -s .py)
for name in "$@"; do
  echo "== $name"
  began=$SECONDS
  .venv/bin/python -m "scripts.reliability.$name" | tee "$log"
  code=${PIPESTATUS[0]}
  [ "$code" = 0 ] && word=kept || { word="BROKEN (exit $code)"; status=1; }
  summary+=("$(printf '%-18s %-16s %4d s  %s' "$name" "$word" $((SECONDS - began)) "$(tail -n 1 "$log")")")
done
rm -f "$log"
printf '%s\n' "== summary" "${summary[@]}"
exit "$status"
