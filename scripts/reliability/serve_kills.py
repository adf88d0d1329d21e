"""kill -9 of the inference server at every rename, link and fsync of a deployment, then a restart.

    PYTHONPATH=tests python -m scripts.reliability.serve_kills [--points 24]

Reads    nothing          Writes  a temporary root, removed at the end
Errors   exit 5 when a restarted server does not serve the old or the new checkpoint, or cannot take the new one then
Method   strace attaches to the running server and kills it at the k-th call, k = 1, 2, ... until a deployment outlives
         its last call
"""

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

from core.checkpoints import Checkpoint
from core.paths import Workspace
from serving_rig import ServerProcess, place, ready_root

CALLS = "rename,renameat2,symlink,symlinkat,fsync,mkdir,unlink,rmdir"


def kill_at(root: Path, chain: list[Checkpoint], point: int) -> tuple[bool, str]:
    """Deploy the second checkpoint over the first and kill the server at its k-th call.

    Returns (killed, what was wrong afterwards or "").
    """
    workspace = Workspace(root)
    old, new = chain
    server = ServerProcess(workspace)
    server.start()
    try:
        body = place(old, root / "served")
        if server.post("/admin/reload", body).status_code != 200:
            return False, "the first deployment failed"
        second = place(new, root / "served")
        inject = f"inject={CALLS}:signal=KILL:when={point}"
        argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject, "-p", str(server.popen.pid)]
        tracer = subprocess.Popen(argv)
        time.sleep(1.0)  # strace says nothing when it has attached
        with contextlib.suppress(requests.RequestException):
            server.post("/admin/reload", second)
        killed = _died(server)
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
        return killed, _after(server, old.id, new.id, second) if killed else ""
    finally:
        server.kill()


def _died(server: ServerProcess) -> bool:
    try:
        return server.popen.wait(2) == -signal.SIGKILL
    except subprocess.TimeoutExpired:
        return False


def _after(server: ServerProcess, old: str, new: str, body: dict[str, str]) -> str:
    """Restart; the old or the new one must answer, and the new one must be servable."""
    server.start(ready=True)
    named = server.chat().headers["X-Dropforge-Checkpoint"]
    if named not in (old, new):
        return f"serves {named} after the restart"
    served = server.workspace.root / "served"
    if not (served / new).exists() and not (served / "incoming" / new).exists():
        return "what was sent is gone"
    answer = server.post("/admin/reload", body)
    if answer.status_code != 200:
        return f"cannot deploy afterwards: {answer.text}"
    now = server.chat().headers["X-Dropforge-Checkpoint"]
    return "" if now == new else f"serves {now} after the second attempt"


def main() -> int:
    """Run the points. Returns 0, or 5 when one broke a promise."""
    parser = argparse.ArgumentParser(description="kill -9 of the inference server inside a deployment.")
    parser.add_argument("--points", type=int, default=60)
    options = parser.parse_args()
    problems, killed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template"
        _, chain = ready_root(template, (0, 10))
        for point in range(1, options.points + 1):
            root = Path(folder) / f"root-{point}"
            shutil.copytree(template, root)
            was_killed, problem = kill_at(root, chain, point)
            killed += was_killed
            if problem:
                problems.append(f"point {point}: {problem}")
            if not was_killed:
                break
    print(json.dumps({"points": killed, "problems": problems}))
    return 5 if problems or not killed else 0


if __name__ == "__main__":
    sys.exit(main())
