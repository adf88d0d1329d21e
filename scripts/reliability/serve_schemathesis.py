"""schemathesis over the inference server's own OpenAPI document: whatever it makes up, no answer is a server error.

    PYTHONPATH=tests python -m scripts.reliability.serve_schemathesis [--requests 3000] [--seed 1]

Reads    /openapi.json of a real server with two checkpoints, a reload and rollbacks among the routes
Writes   a temporary root, removed at the end
Errors   exit 5 when an answer is a 5xx, breaks its documented shape or status, or too few requests were made
Method   schemathesis runs, each with another seed, until the server has counted the requests; a context of 96 tokens
         keeps answers short
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from serving_rig import ServerProcess, place, ready_root, running

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "unsupported_method,allow_header_conformance"
)
CONTEXT_TOKENS = 96
MOST_RUNS = 20
# CPython's own fault when two threads parse at once (python/cpython#106905), in what makes requests up: it sends fewer
# then, and another run makes up for them. Whatever it did send must have passed.
_GENERATOR_FAILED = "AST constructor recursion depth mismatch"
_ALL_PASSED = re.compile(r"(\d+) generated, \1 passed")
_ANSWER = re.compile(r'^dropforge_http_answers_total\{status="(\d+)"\} ([0-9.e+]+)$', re.MULTILINE)


def answers(server: ServerProcess) -> Counter[str]:
    """HTTP answers so far by status, as the server counts them."""
    return Counter({status: int(float(count)) for status, count in _ANSWER.findall(server.get("/metrics").text)})


def fuzz(server: ServerProcess, seed: int, examples: int, phases: str) -> tuple[int, str]:
    """One run; its examples a route come on top of what each field's limits give. Returns (exit code, output)."""
    argv = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", CHECKS]
    argv += ["--seed", str(seed), "--max-examples", str(examples), "--phases", phases]
    argv += ["--workers", "2", "--request-timeout", "30", "--suppress-health-check", "all", "--warnings", "off"]
    argv += ["--continue-on-failure", "--generation-database", "none", "--no-color"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    return done.returncode, done.stdout + done.stderr


def run(folder: Path, requests: int, seed: int, phases: str = "coverage,fuzzing") -> tuple[Counter[str], list[str]]:
    """Fuzz until enough was asked. Returns answers by status, and what schemathesis complained about."""
    workspace, chain = ready_root(folder / "root", context_tokens=CONTEXT_TOKENS)
    complaints = []
    with running(workspace) as server:
        for checkpoint in chain:
            server.post("/admin/reload", place(checkpoint, workspace.root / "served")).raise_for_status()
        before = answers(server)
        for number in range(MOST_RUNS):
            left = requests - (answers(server) - before).total()
            if left <= 0:
                break
            code, said = fuzz(server, seed + number, max(1, min(300, left // 10)), phases)
            if code and not (_GENERATOR_FAILED in said and _ALL_PASSED.search(said)):
                complaints.append(said[-6000:])
        return answers(server) - before, complaints


def main() -> int:
    """Run it. Returns 0, or 5."""
    parser = argparse.ArgumentParser(description="schemathesis over /openapi.json.")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counted, complaints = run(Path(folder), options.requests, options.seed)
    for said in complaints:
        print(said)
    errors = sum(count for status, count in counted.items() if status.startswith("5"))
    print(json.dumps({"requests": counted.total(), "server_errors": errors, "answers": dict(sorted(counted.items()))}))
    return 5 if errors or complaints or counted.total() < options.requests else 0


if __name__ == "__main__":
    sys.exit(main())
