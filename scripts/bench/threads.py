"""What a waiting torch team costs: OMP_WAIT_POLICY default against passive, beside busy neighbours.

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


def measure(policy: str | None) -> float:
    """Milliseconds a step in a fresh process; the policy must be in its environment before it starts."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    if policy is not None:
        environment["OMP_WAIT_POLICY"] = policy
    done = subprocess.run([sys.executable, "-c", _STEP], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"{'busy neighbours':>16}{'default ms':>12}{'passive ms':>12}{'ratio':>8}")
    for neighbours in range(3):
        busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(neighbours)]
        try:
            pairs = [(measure(None), measure("passive")) for _ in range(rounds)]
        finally:
            for process in busy:
                process.kill()
                process.wait()
        default, passive = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{neighbours:>16}{default:>12.1f}{passive:>12.1f}{default / passive:>8.2f}")


if __name__ == "__main__":
    main()
