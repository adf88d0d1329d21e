"""What a waiting torch team costs beside busy neighbours: how long it spins before it sleeps.

    python scripts/bench/threads.py [--rounds 3]

Each line is the median of interleaved rounds, in milliseconds a step of a small network (12 layers of width 96, 2,200
rows, forward and backward) on as many threads as there are cores.
"""

import argparse
import os
import statistics
import subprocess
import sys

_STEP = """
import sys, time, torch
network = torch.nn.Sequential(*[torch.nn.Linear(96, 96) for _ in range(12)])
rows = torch.randn(2200, 96)
def step():
    hidden = rows
    for layer in network:
        hidden = torch.nn.functional.silu(layer(hidden)) + hidden
    hidden.sum().backward()
for _ in range(3):
    step()
began, steps = time.monotonic(), 0
while time.monotonic() - began < 2:
    step()
    steps += 1
print(2000 / steps)
"""
_BUSY = "while True: pass"


WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"spin {n}": {"GOMP_SPINCOUNT": n} for n in ("1000", "5000", "20000", "100000")},
}


def measure(way: dict[str, str]) -> float:
    """Milliseconds a step in a fresh process; the policy must be in its environment before it starts."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    environment |= way
    done = subprocess.run([sys.executable, "-c", _STEP], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"{'busy neighbours':>16}" + "".join(f"{name:>13}" for name in WAYS))
    for neighbours in range(3):
        busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(neighbours)]
        try:
            table = [[measure(way) for way in WAYS.values()] for _ in range(rounds)]
        finally:
            for process in busy:
                process.kill()
                process.wait()
        medians = [statistics.median(column) for column in zip(*table, strict=True)]
        print(f"{neighbours:>16}" + "".join(f"{ms:>13.1f}" for ms in medians), flush=True)


if __name__ == "__main__":
    main()
